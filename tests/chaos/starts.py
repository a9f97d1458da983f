"""python -m tests.chaos.starts: how long a service takes from exec to /readyz after SIGKILL, on a long ledger.

Every track in the ledger has vectors of its own and the sound of one recording.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.models.encoder import TrackVectors
from index.sound.audio import decode
from index.sound.features import log_mel, quantise
from index.tracks.track import Track
from service.ledger.ledger import Embedding, Ledger, TrackAdded
from service.ledger.opening import open_ledger
from service.ledger.records import PackedFeatures
from service.serving.serving import Serving
from service.settings import Settings
from tests.chaos import sounds
from tests.chaos.__main__ import RELEASES, made_release
from tests.chaos.processes import Server
from tests.service.service_redis import RedisServer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m tests.chaos.starts", description=__doc__)
    parser.add_argument("--tracks", type=int, default=100_000, help="of the release")
    parser.add_argument("--ledger-tracks", type=int, default=20_000, help="in the ledger, not folded")
    parser.add_argument("--ledger", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--towers", choices=("demo", "full"), default="demo")
    parser.add_argument("--starts", type=int, default=7)
    told = parser.parse_args()
    releases = made_release(told.tracks, told.towers)
    with tempfile.TemporaryDirectory(dir=RELEASES) as folder, contextlib.ExitStack() as stack:
        shared = told.ledger == "redis"
        redis = stack.enter_context(RedisServer(Path(folder, "redis"))) if shared else None
        where = redis.url if redis else Path(folder, "ledger.sqlite")
        settings = Settings(releases=releases, ledger=where, encoder_threads=1)
        with contextlib.closing(open_ledger(settings)) as ledger:
            fill(ledger, settings, told.ledger_tracks)
        server = Server(0, Path(folder), releases=releases, ledger=where)
        stack.callback(server.kill)
        starts = []
        for _ in range(told.starts):
            server.start()
            starts.append(server.ready())
            server.kill()
    assert {start.tracks for start in starts} == {told.tracks + told.ledger_tracks}
    wall, cpu = (sorted(getattr(start, name) for start in starts) for name in ("wall_s", "cpu_s"))
    sys.stdout.write(
        f"{told.ledger}, {told.tracks:,} tracks in the release ({told.towers} towers), {told.ledger_tracks:,} on top: "
        f"{len(starts)} starts, median {statistics.median(wall):.2f} s ({wall[0]:.2f} to {wall[-1]:.2f}), processor "
        f"time {statistics.median(cpu):.2f} s ({cpu[0]:.2f} to {cpu[-1]:.2f})\n"
    )


def fill(ledger: Ledger, settings: Settings, count: int) -> None:
    """Append `count` additions."""
    if not count:
        return
    serving = Serving.open(settings)
    heard = log_mel(decode(sounds.recording(2)).clips)
    features, rng = PackedFeatures.pack(quantise(heard)), np.random.default_rng(0)
    placed = serving.embed(Track("first", title="First"), heard)
    for number in range(count):
        track = Track(f"l{number}", f"Late {number}", f"Artist {number % 500}", duration_s=12.5)
        audio, text, continuation = (_unit(rng, placed.vectors.continuation.size) for _ in range(3))
        vectors = TrackVectors(audio=audio, text=text, lyrics=None, continuation=continuation)
        embedding: Embedding = replace(placed, vectors=vectors, matching=_unit(rng, placed.matching.size))
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        ledger.append(TrackAdded(track, f"{number:064x}", features, embedding, now))


def _unit(rng: np.random.Generator, dims: int) -> NDArray[np.float32]:
    vector = rng.standard_normal(dims, dtype=np.float32)
    return vector / np.linalg.norm(vector)


if __name__ == "__main__":
    main()
