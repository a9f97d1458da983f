"""What several rooms of tests share: a small data set of real songs, and what training makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    from small_run import SmallRun

DATA = Path(__file__).parents[1] / "demo" / "data"
CHOSEN = {"train": 3, "valid": 1}
BRAHMS = "set_fac292748c"  # the test cycle: the one that README.md and the tour speak of


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set directory of five whole cycles of the demo, with links to its audio."""
    root = tmp_path_factory.mktemp("small")
    splits = pq.read_table(DATA / "splits.parquet").to_pylist()
    playlists = pq.read_table(DATA / "playlists.parquet")
    chosen = {BRAHMS}
    for name, count in CHOSEN.items():
        ids = [s["id"] for s in splits if s["kind"] == "playlist" and s["split"] == name]
        chosen.update(sorted(ids)[:count])
    playlists = playlists.filter(np.isin(playlists["playlist_id"].to_numpy(), sorted(chosen)))
    ids = set(playlists["track_id"].to_pylist())
    tracks = pq.read_table(DATA / "tracks.parquet")
    tracks = tracks.filter(np.isin(tracks["track_id"].to_numpy(), sorted(ids)))
    listens = pq.read_table(DATA / "listens.parquet")
    listens = listens.filter(np.isin(listens["track_id"].to_numpy(), sorted(ids)))
    kept = [s for s in splits if s["id"] in ids or s["id"] in chosen]
    for name, table in (("tracks", tracks), ("playlists", playlists), ("listens", listens)):
        pq.write_table(table, root / f"{name}.parquet")
    pq.write_table(pq.read_table(DATA / "splits.parquet").from_pylist(kept), root / "splits.parquet")
    (root / "audio").symlink_to(DATA / "audio")
    return root


@pytest.fixture(scope="session")
def small_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> "SmallRun":
    """Every step, with towers of the smallest size and an epoch a stage."""
    from small_run import SmallRun

    from training.bcl.config import bcl_preset
    from training.data.dataset import TEST, DataSet
    from training.evaluate import Protocols
    from training.evaluation.matching import MatchingProtocol
    from training.larp.config import AudioTowerConfig, TextTowerConfig
    from training.larp.presets import larp_preset
    from training.pipeline import Pipeline
    from training.progress import Silent
    from training.workspace import Workspace

    base = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(DataSet.open(small_data, attributes=("composer_born",)), Workspace(base / "work"), Silent())
    demo = larp_preset("demo", seed=3, clauses=("title", "artist"))
    larp = replace(
        demo,
        audio=AudioTowerConfig(patch=16, width=16, depths=(1, 1), heads=(1, 2)),
        text=TextTowerConfig(width=32, layers=1, heads=2),
        stages=tuple(replace(stage, epochs=1, warmup_steps=1) for stage in demo.stages),
        queue=64,
    )
    bcl = bcl_preset("demo", seed=3)
    pipeline.prepare()
    pipeline.train_larp(larp)
    pipeline.train_bcl(replace(bcl, loop=replace(bcl.loop, epochs=2)))
    pipeline.evaluate(Protocols(matching=MatchingProtocol(min_common=1)))
    left_out = [int(row) for row in np.flatnonzero(pipeline.dataset.track_split == TEST)[:3]]
    return SmallRun(pipeline, pipeline.publish(base / "releases", left_out), left_out)
