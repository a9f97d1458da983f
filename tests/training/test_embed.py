"""Embedding the catalogue: what is missing, and what cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from index.models.encoder import TrackVectors
from index.sound.sketch import sketch
from index.tracks.track import Track
from training.embed import PARTS, EmbeddingError, Embeddings, embed_catalogue
from training.progress import Silent

AUDIO = Path(__file__).parents[2] / "demo" / "data" / "audio"


class Towers:
    """Stands in for the towers, which have tests of their own: says which parts it was given."""

    dims = 4
    hears = reads = True

    def caption(self, track: Track) -> str:
        return track.title or ""

    def track(self, mel: np.ndarray | None, text: str, lyrics: str | None) -> TrackVectors:
        one = np.eye(4, dtype=np.float32)
        return TrackVectors(
            audio=one[0] if mel is not None else None,
            text=one[1] if text else None,
            lyrics=one[2] if lyrics else None,
            continuation=one[3],
            sketch=sketch(mel) if mel is not None else None,
        )


class Songs:
    """A data set of tracks with the given audio files."""

    def __init__(self, songs: list[tuple[Track, Path | None]]) -> None:
        self.tracks = [track for track, _ in songs]
        self._paths = [path for _, path in songs]

    def audio_path(self, row: int) -> Path | None:
        return self._paths[row]


def embed(songs: list[tuple[Track, Path | None]]) -> Embeddings:
    return embed_catalogue(Songs(songs), Towers(), Silent())  # type: ignore[arg-type]


def test_missing_parts_are_nan() -> None:
    song = sorted(AUDIO.glob("*.ogg"))[0]
    found = embed(
        [
            (Track("whole", title="A", lyrics="la"), song),
            (Track("text alone", title="B"), None),
            (Track("sound alone"), song),
            (Track("nothing"), None),
        ]
    )
    there = {name: (~np.isnan(found.part(name)).any(1)).tolist() for name in PARTS}
    assert there == {
        "audio": [True, False, True, False],
        "text": [True, True, False, False],
        "lyrics": [True, False, False, False],
        "continuation": [True, True, True, False],
        "sketch": [True, False, True, False],
    }


def test_more_than_a_hundredth_unreadable_is_an_error_that_names_one(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ogg"
    broken.write_bytes(b"no sound at all")
    song = sorted(AUDIO.glob("*.ogg"))[0]
    whole: list[tuple[Track, Path | None]] = [(Track(f"t{n}", title="A"), song) for n in range(110)]
    found = embed([(Track("bad", title="B"), broken), *whole])
    assert np.isnan(found.audio).any(1).tolist() == [True] + 110 * [False]
    assert not np.isnan(found.text[0]).any()
    silent: list[tuple[Track, Path | None]] = [(Track(f"t{n}", title="A"), None) for n in range(500)]
    with pytest.raises(EmbeddingError, match=r"1 of 51 audio files .*broken\.ogg"):
        embed([(Track("bad", title="B"), broken), *whole[:50], *silent])


def test_vectors_are_kept_as_they_are(tmp_path: Path) -> None:
    found = embed([(Track("a", title="A"), None), (Track("b"), None)])
    found.save(tmp_path / "vectors")
    again = Embeddings.load(tmp_path / "vectors")
    for name in PARTS:
        np.testing.assert_array_equal(found.part(name), again.part(name))


def test_a_folder_that_lacks_a_part_says_what_to_do(tmp_path: Path) -> None:
    Embeddings(*(np.zeros((1, 2), np.float32) for _ in PARTS)).save(tmp_path)
    (tmp_path / "sketch.npy").unlink()
    with pytest.raises(EmbeddingError, match=r"no sketch\.npy: run .* again"):
        Embeddings.load(tmp_path)
