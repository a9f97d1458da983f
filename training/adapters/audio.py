"""Audio by track id: a folder of files that are named by it, listed once and linked into the data set."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training.adapters.report import AdapterError

LINK = "audio"
SUFFIXES = (".flac", ".wav", ".m4a", ".opus", ".ogg", ".mp3")  # the earlier one is taken where a track has two
_DEEPEST = 2  # folders between the root and a file: xx/yy/<id>.mp3


class AudioFolder:
    """The audio files under `root` by the name before their suffix, in up to two levels of sub-folders.

    Raises AdapterError when there are none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise AdapterError(f"{root} is no folder: --audio wants one of files named by the track's id")
        self.root = root.resolve()
        self._paths: dict[str, str] = {}
        self.doubles = 0
        """Files left aside because another file has the same id."""
        for path in sorted(_files(self.root, "", 0), key=_rank):
            key = Path(path).stem
            self.doubles += key in self._paths
            self._paths.setdefault(key, path)
        if not self._paths:
            raise AdapterError(f"{root} holds no audio files ({', '.join(SUFFIXES)}), nor do its sub-folders")

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, ids: Iterable[Sequence[str | None]]) -> list[str | None]:
        """For each track, known by one or several ids, the path of its file within the data set, else None."""
        return [next((f"{LINK}/{self._paths[key]}" for key in keys if key in self._paths), None) for keys in ids]

    def link(self, dataset: Path) -> None:
        """Make `dataset`/audio a symbolic link to the folder: paths of audio must stay within the data set."""
        (dataset / LINK).symlink_to(self.root, target_is_directory=True)


def _files(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield prefix + entry.name
            elif depth < _DEEPEST and entry.is_dir():
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)


def _rank(path: str) -> tuple[int, str]:
    return SUFFIXES.index(Path(path).suffix.lower()), path
