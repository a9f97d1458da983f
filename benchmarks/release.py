"""python -m benchmarks.release ROOT TRACKS TOWERS: publish a release of random tracks around untrained models.

The towers have the demo's sizes, or `full` ones (HTS-AT as in laion/clap-htsat-unfused, a six-layer BERT). Run as a
process of its own: torch stays out of whoever asks for it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

LISTENERS, HEARD = 2000, 20


def publish_release(root: Path, count: int, towers: str) -> None:
    """Publish `count` random tracks t0, t1, ... under `root`, with vectors spread over the whole sphere."""
    import torch

    from index.audience.listening_file import write_audience
    from index.collection import write_collection
    from index.models.fields import FieldSet, FieldSpec
    from index.models.matcher import Matcher
    from index.release.release import publish
    from index.sound.sketch import WIDTH
    from index.tracks.track import Track
    from training.bcl.config import BclConfig
    from training.bcl.export import export_matcher
    from training.bcl.model import Bcl
    from training.larp.config import AudioTowerConfig, TextTowerConfig
    from training.larp.export import export_towers
    from training.larp.presets import larp_preset
    from training.larp.towers import build_larp

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tracks = [
        Track(f"t{n}", f"Title {n}", f"Artist {n % 4000}", f"Album {n % 9000}", genres=(f"genre {n % 20}",))
        for n in range(count)
    ]

    def unit(dims: int) -> np.ndarray:
        vectors = rng.standard_normal((count, dims), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    audio, text = unit(256), unit(256)
    both = audio + text
    vectors = {"audio": audio, "text": text, "continuation": both / np.linalg.norm(both, axis=1, keepdims=True)}
    vectors["sketch"] = unit(WIDTH)
    larp = larp_preset("demo", seed=0, clauses=("title", "artist"))
    if towers == "full":
        larp = replace(
            larp,
            audio=AudioTowerConfig(width=96, depths=(2, 2, 6, 2), heads=(4, 8, 16, 32)),
            text=TextTowerConfig(width=384, layers=6, heads=12),
        )
    specs = [FieldSpec("genres", "multi", "genres"), FieldSpec("audio", "dense", "audio")]
    some = tracks[:1000]
    fields = FieldSet.fit(specs, some, {"audio": audio[:1000]})
    listener, row = np.repeat(np.arange(LISTENERS), HEARD), rng.integers(0, count, LISTENERS * HEARD)

    def fill(folder: Path) -> None:
        export_towers(build_larp(larp, [f"The track {t.title} by {t.artist}" for t in some]), folder / "encoder")
        export_matcher(Bcl(fields, BclConfig()), folder / "matcher")
        matching = unit(Matcher.open(folder / "matcher", 1).vectors(some[:1], {"audio": audio[:1]}).shape[1])
        write_collection(folder, tracks, np.ones(count, np.int32), vectors, matching)
        ids = [f"u{n}" for n in range(LISTENERS)]
        write_audience(folder / "audience", ids, listener, row, np.ones(len(row), np.float32), matching)

    publish(root, fill, facts={"counts": {"tracks": count}})


if __name__ == "__main__":
    publish_release(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
