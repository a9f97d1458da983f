"""CAT at 100,000 listeners: the whole question, from a matching vector to the ranked listeners."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.folder import Folder
from benchmarks.timing import interleaved, milliseconds
from index.audience import Audience, write_audience
from index.collection import Collection, write_collection
from index.tracks import Track

TRACKS, LISTENERS, HEARD, TASTES = 20_000, 100_000, 20, 60
Row = tuple[str, str]


def run() -> list[Row]:
    """Listeners of two tastes each, tracks drawn from them by a power law."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        folder = Folder(Path(directory))
        matching = _write(folder.path, rng)
        began = time.perf_counter()
        audience, collection = Audience.open(folder), Collection.open(folder)
        opened = time.perf_counter() - began
        queries = matching[rng.choice(TRACKS, 60, replace=False)]
        seconds = interleaved(
            {
                "chosen": lambda i: audience.target(queries[i], collection),
                "given": lambda i: audience.target(queries[i], collection, clusters=5),
                "many": lambda i: audience.target(queries[i], collection, clusters=5, limit=10_000),
            },
            rounds=30,
        )
    return [
        (f"audience of {LISTENERS} listeners and {TRACKS} tracks, opened", f"{opened:.2f} s"),
        ("100 listeners, number of clusters chosen", milliseconds(seconds["chosen"])),
        ("100 listeners, 5 clusters", milliseconds(seconds["given"])),
        ("10,000 listeners, 5 clusters", milliseconds(seconds["many"])),
    ]


def _write(directory: Path, rng: np.random.Generator) -> np.ndarray:
    tastes = rng.standard_normal((TASTES, 128)) / np.sqrt(128)
    of_track = rng.integers(0, TASTES, TRACKS)
    matching = tastes[of_track] + 0.6 * rng.standard_normal((TRACKS, 128)) / np.sqrt(128)
    matching = (matching / np.linalg.norm(matching, axis=1, keepdims=True)).astype(np.float32)
    tracks = [Track(f"t{row}") for row in range(TRACKS)]
    parts = dict.fromkeys(("audio", "text", "continuation"), matching)
    write_collection(directory, tracks, np.ones(TRACKS, np.int32), parts, matching)
    by_taste = np.argsort(of_track, kind="stable")
    starts = np.searchsorted(of_track[by_taste], np.arange(TASTES + 1))
    listener = np.repeat(np.arange(LISTENERS), HEARD)
    liked = rng.integers(0, TASTES, (LISTENERS, 2))
    taste = liked[listener, rng.integers(0, 2, len(listener))]
    place = (np.diff(starts)[taste] * rng.random(len(listener)) ** 2).astype(np.int64)
    plays = rng.geometric(0.2, len(listener)).astype(np.float32)
    ids = [f"u{number}" for number in range(LISTENERS)]
    write_audience(directory / "audience", ids, listener, by_taste[starts[taste] + place], plays, matching)
    return matching
