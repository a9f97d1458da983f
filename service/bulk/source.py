"""What is to be sent: the recordings of a folder with their tags, or the rows of a CSV file, as uploads to be."""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import orjson

from index.errors import DebutError
from index.sound.containers import AudioError, sniff
from service.http.schemas import TrackMetadata

SUFFIXES = frozenset([".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav"])
PATH, CONTENT = "path", "content"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")
_ISRC = re.compile(r"[A-Z]{2}[A-Z0-9]{3}[0-9]{7}")
_ISRC_TAGS = ("isrc", "tsrc")


class SourceError(DebutError):
    """What is to be sent cannot be read. Codes: source_missing, source_unreadable."""

    code = "source_unreadable"


@dataclass(frozen=True, slots=True)
class Item:
    """One recording to send: `key` names it in journal and report; `metadata` is TrackMetadata's fields."""

    key: str
    file: Path
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """The recordings under `root`. `id_from`: what becomes the track_id, PATH, CONTENT, or a tag's name."""

    root: Path
    id_from: str = PATH

    def files(self) -> list[Path]:
        """Return the recordings, by their names' endings, in a stable order; hidden ones are not looked at.

        Raises SourceError when there are none.
        """
        found = sorted(
            path
            for path in self.root.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(self.root))
        )
        if not found:
            raise SourceError(f"{self.root} holds no recording ({', '.join(sorted(SUFFIXES))}): name another folder.")
        return found

    def items(self) -> Iterator[Item]:
        """Yield each recording with what its tags say; a tag is read when its turn comes."""
        for file in self.files():
            key = file.relative_to(self.root).as_posix()
            tags = read_tags(file)
            metadata = metadata_of(tags)
            if self.id_from == PATH:
                metadata["track_id"] = unicodedata.normalize("NFC", key)
            elif self.id_from != CONTENT and (track_id := _clean(tags.get(self.id_from.lower(), ""))):
                metadata["track_id"] = track_id
            yield Item(key, file, metadata)

    def __len__(self) -> int:
        return len(self.files())


@dataclass(frozen=True, slots=True)
class Listing:
    """The rows of a CSV file: `path` (from the file's own folder) and columns named as TrackMetadata's fields."""

    file: Path

    def items(self) -> Iterator[Item]:
        """Yield each row as an upload. Raises SourceError, naming the line."""
        for line, row in self._rows():
            try:
                metadata = _typed({name: value.strip() for name, value in row.items() if name != "path"})
            except ValueError as error:
                raise SourceError(f"{self.file}, line {line}: {error}.") from None
            yield Item(row["path"], self.file.parent / row["path"], metadata)

    def __len__(self) -> int:
        return sum(1 for _ in self._rows())

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        known = {"path", *TrackMetadata.model_fields}
        try:
            with self.file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, strict=True)
                names = set(reader.fieldnames or ())
                if "path" not in names or names - known:
                    wrong = f"has a column {min(names - known)!r}" if names - known else "has no column 'path'"
                    raise SourceError(f"{self.file} {wrong}; columns are {', '.join(sorted(known))}.")
                for row in reader:
                    if None in row or None in row.values() or not row["path"]:
                        raise SourceError(
                            f"{self.file}, line {reader.line_num}: it has other columns than the first, or no path."
                        )
                    yield reader.line_num, row
        except (OSError, UnicodeError, csv.Error) as error:
            raise SourceError(f"{self.file} cannot be read ({error}): it has to be CSV in UTF-8.") from None


def source_of(path: Path, id_from: str) -> Folder | Listing:
    """Return what `path` holds. Raises SourceError when it is neither a folder nor a CSV file."""
    if path.is_dir():
        return Folder(path, id_from)
    if not path.is_file():
        raise SourceError(f"There is no {path}: name a folder of recordings or a CSV file.", code="source_missing")
    if path.suffix.lower() != ".csv":
        raise SourceError(f"{path} is neither a folder nor a .csv file; a single recording is sent with curl.")
    return Listing(path)


def read_tags(file: Path) -> dict[str, str]:
    """Return a recording's tags, names in lower case; {} where there are none, or it cannot be opened.

    The service says what is wrong with a recording. The file is opened by us and its format by its content, so that
    nothing in it (a playlist of addresses, say) makes FFmpeg open another.
    """
    try:
        with file.open("rb") as opened:
            container = sniff(opened)
            opened.seek(0)
            demuxer = "mov" if container == "mp4" else container
            with closing(av.open(opened, "r", format=demuxer, metadata_errors="ignore")) as media:
                tags = dict(media.metadata)
                for stream in media.streams.audio[:1]:
                    tags = {**stream.metadata, **tags}  # Ogg has them on the stream
    except (AudioError, av.FFmpegError, OSError, ValueError):
        return {}
    return {name.lower(): value for name, value in tags.items()}


def metadata_of(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return what tags say as TrackMetadata's fields; what does not fit them is left out, for it is a guess."""
    found: dict[str, Any] = {
        name: text for name in ("title", "artist", "album") if (text := _clean(tags.get(name, "")))
    }
    if genres := [text for part in tags.get("genre", "").split(";") if (text := _clean(part))]:
        found["genres"] = genres
    date = tags.get("date", "").strip()[:10]
    if _DATE.fullmatch(date) and not date.startswith("0000"):
        found["release_date"] = date
    isrc = next((tags[name] for name in _ISRC_TAGS if name in tags), "").replace("-", "").strip().upper()
    if _ISRC.fullmatch(isrc):
        found["isrc"] = isrc
    return found


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row's texts as JSON has them; what is blank is unknown. Raises ValueError."""
    fields: dict[str, Any] = {name: value for name, value in row.items() if value}
    if "genres" in fields:
        fields["genres"] = [genre.strip() for genre in row["genres"].split(";") if genre.strip()]
    if "explicit" in fields:
        if fields["explicit"].lower() not in ("true", "false"):
            raise ValueError(f"explicit is {fields['explicit']!r}, not true or false")
        fields["explicit"] = fields["explicit"].lower() == "true"
    if "attributes" in fields:
        try:
            fields["attributes"] = orjson.loads(fields["attributes"])
        except orjson.JSONDecodeError as error:
            raise ValueError(f"attributes is not JSON ({error})") from None
    return fields


def _clean(text: str) -> str:
    """Return a tag without control characters and what cannot be written as UTF-8, and without space around it."""
    return _CONTROL.sub(" ", text.encode("utf-8", "ignore").decode()).strip()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
