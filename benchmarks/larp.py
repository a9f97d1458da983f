"""LARP's training: a step with one encoding against one with two, as published; an epoch with frozen encoders."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import interleaved
from index.tracks.track import Track
from training.data.dataset import DataSet, Playlists
from training.larp.config import AudioTowerConfig, LarpConfig, StageConfig, TextTowerConfig
from training.larp.corpus import Corpus
from training.larp.features import FrozenContent
from training.larp.model import Larp
from training.larp.presets import PRESETS
from training.larp.pretraining import Pretraining
from training.larp.task import LarpTask
from training.larp.towers import build_larp
from training.loop import fit
from training.progress import Silent

BATCH, FROZEN_TRACKS, WIDTH = 16, 60_000, 768
Row = tuple[str, str]


def run() -> list[Row]:
    """Measure with the cores there are: this is training, not serving."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    return [*_step(), *_frozen(cores)]


class Live:
    """Noise for HTS-AT and captions for BERT, the same for all tracks: what they hold does not change the time."""

    frozen = False

    def __init__(self, tracks: int) -> None:
        self._known = np.ones(tracks, bool)

    def available(self, name: str) -> np.ndarray:  # noqa: ARG002
        """All tracks have everything."""
        return self._known

    def inputs(
        self,
        name: str,
        rows: np.ndarray,
        larp: Larp,
        rngs: object = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, ...]:
        """As `training.larp.content.Content`."""
        if name == "text":
            return larp.tokens(["The track Nacht und Träume by Franz Schubert on album Lieder"] * len(rows))
        return (torch.full((len(rows), 1, 1001, 64), -30.0),)


def _step() -> list[Row]:
    """A step of WTC+TTC with towers of the paper's sizes (HTS-AT tiny, BERT base of six layers), random weights."""
    config = LarpConfig(
        audio=AudioTowerConfig(width=96, depths=(2, 2, 6, 2), heads=(4, 8, 16, 32)),
        text=TextTowerConfig(width=WIDTH, layers=6, heads=12),
        batch_size=BATCH,
        queue=4096,
    )
    dataset = _dataset(200, 20)
    corpus = Corpus(dataset, Live(200), config)
    pretraining = Pretraining(build_larp(config, ["The track Nacht und Träume by Franz Schubert"]), config, 200)
    both = LarpTask("both", 1, StageConfig(("wtc", "ttc"), 1), pretraining, corpus, None)
    passes = [LarpTask(name, 1, StageConfig((name,), 1), pretraining, corpus, None) for name in ("wtc", "ttc")]
    batch = next(both.batches(0))

    def step(tasks: list[LarpTask]) -> None:
        for task in tasks:
            for part in task.parts(batch):
                task.loss(part)[0].backward()
        pretraining.zero_grad()

    seconds = interleaved({"once": lambda _: step([both]), "twice": lambda _: step(passes)}, rounds=5)
    share = seconds["once"] / seconds["twice"]
    return [
        (f"step of WTC+TTC, {BATCH} tracks, each encoded once", f"{seconds['once']:.2f} s"),
        ("the same with a pass for each loss, as published", f"{seconds['twice']:.2f} s"),
        ("once / twice", f"{share:.2f}"),
    ]


def _frozen(cores: int) -> list[Row]:
    """An epoch of each stage of the preset "cpu" over made-up outputs of frozen encoders."""
    preset = PRESETS["cpu"]
    tiny = {"audio": AudioTowerConfig(), "text": TextTowerConfig(width=WIDTH, layers=1, heads=2)}
    config = replace(preset, **tiny, loop=replace(preset.loop, threads=cores))
    rng = np.random.default_rng(0)
    dataset = _dataset(FROZEN_TRACKS, 3000)
    larp = build_larp(config, ["The track Nacht"])
    widths = {name: larp.tower(name).head.in_features for name in larp.names}
    features = {name: rng.standard_normal((FROZEN_TRACKS, width)).astype(np.float16) for name, width in widths.items()}
    content = FrozenContent(features, dict.fromkeys(larp.names, np.ones(FROZEN_TRACKS, bool)))
    corpus = Corpus(dataset, content, config)
    pretraining = Pretraining(larp, config, len(corpus))
    rows = []
    for number, stage in enumerate(config.stages, 1):
        task = LarpTask(f"stage {number}", number, stage, pretraining, corpus, None)
        began = time.perf_counter()
        fit(task, config.loop_of(replace(stage, epochs=1)), Silent())
        what = f"epoch of {'+'.join(stage.losses).upper()} on {FROZEN_TRACKS} tracks, encoders frozen, {cores} cores"
        rows.append((what, f"{time.perf_counter() - began:.1f} s"))
    return rows


def _dataset(tracks: int, playlists: int, length: int = 60) -> DataSet:
    """Tracks in random training playlists, nothing else."""
    rng = np.random.default_rng(1)
    lists = [np.sort(rng.choice(tracks, min(length, tracks), replace=False)) for _ in range(playlists)]
    names = [f"p{number}" for number in range(playlists)]
    indptr = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])])
    known = [Track(f"t{row}", title="Nacht") for row in range(tracks)]
    row_of = {track.track_id: row for row, track in enumerate(known)}
    held = Playlists(names, [None] * playlists, indptr, np.concatenate(lists))
    splits = (np.zeros(tracks, np.int8), np.zeros(playlists, np.int8), np.zeros(0, np.int8))
    return DataSet(Path(), known, row_of, [None] * tracks, held, None, *splits, fingerprint="benchmark")
