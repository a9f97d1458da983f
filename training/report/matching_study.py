"""Trains BCL in the variants that its report compares, over several seeds, and keeps the figures of every training."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bcl.config import BclConfig
from training.bcl.train import train_bcl
from training.data.dataset import DataSet
from training.evaluation import baselines
from training.evaluation.matching import (
    MatchingProtocol,
    MatchingTask,
    MatchingTasks,
    Scorer,
    evaluate_matching,
    inner_product,
)
from training.evaluation.metrics import ceiling, chance
from training.evaluation.popularity import by_popularity
from training.evaluation.results import Evaluation, EvaluationError, summarise
from training.evaluation.vectors import known
from training.folders import replace_folder
from training.progress import Progress

FULL = "full"
PRIOR = "prior "
PROTOCOL = MatchingProtocol(cuts=(50,))
"""BCL's figures: Recall@50 and NDCG@50."""
Figures = dict[str, NDArray[np.float64]]
"""R@50 and N@50 of each query [Q], with the prior under "prior R@50" and "prior N@50"; its weight as "weight" [1], and
the number of embedded fields F of a training as "fields" [1].
"""


def variants(config: BclConfig) -> dict[str, BclConfig]:
    """The model, what is left of it without each of its ideas, and with each operator alone; each of them once."""
    changes: dict[str, dict[str, Any]] = {
        FULL: {},
        "no bootstrapping (alpha = 1)": {"correlation_alpha": 1.0},
        "no CGM (random groups)": {"random_groups": True},
        "no contrast": {"contrastive_weight": 0.0},
        "BPR and contrast": {"supervised": "bpr"},
        "BPR only": {"supervised": "bpr", "contrastive_weight": 0.0},
    }
    changes |= {f"{name.replace('_', ' ')} alone": {"augmentations": (name,)} for name in config.augmentations}
    found: dict[str, BclConfig] = {}
    for name, change in changes.items():
        variant = replace(config, **change)
        if variant not in found.values():
            found[name] = variant
    return found


def measure(scorer: Scorer, tasks: MatchingTasks) -> Figures:
    """The figures of each test query, without and with the popularity prior, whose weight validation tracks choose."""
    weight = tasks.prior_weight(scorer)
    methods = {"": scorer}
    if weight is not None:
        methods[PRIOR] = baselines.plus_popularity(scorer, tasks.warm, weight)
    found = evaluate_matching(methods, tasks.test)
    figures = {f"{m.method}{name}": values for m in found.methods for name, values in m.per_query.items()}
    return figures if weight is None else figures | {"weight": np.array([weight])}


def mean_of(runs: Sequence[Figures]) -> Figures:
    """The mean over runs for each query."""
    return {key: np.mean([run[key] for run in runs], 0) for key in runs[0]}


def compare(methods: Mapping[str, Figures], tasks: MatchingTasks, prior: bool = False) -> Evaluation:
    """Those of the methods that have such figures as one evaluation, with tail, head and deciles as its parts."""
    start, task = PRIOR if prior else "", tasks.test
    results = []
    for name, figures in methods.items():
        mine = {key: figures[f"{start}{key}"] for key in _names(task) if f"{start}{key}" in figures}
        if mine:
            results.append(summarise(name, mine))
    sizes, cuts = np.diff(task.truth.indptr), task.protocol.cuts
    return Evaluation(
        f"matching{', with the popularity prior' if prior else ''}",
        {"cuts": cuts, "truth": task.protocol.truth, "candidates": len(task.candidates)},
        len(task.queries),
        chance(sizes, np.full(len(sizes), len(task.candidates)), cuts),
        ceiling(sizes, cuts),
        results,
        parts=by_popularity(tasks.listeners, max(cuts)),
    )


def _names(task: MatchingTask) -> list[str]:
    return [f"{letter}@{cut}" for cut in task.protocol.cuts for letter in "RN"]


@dataclass(frozen=True)
class MatchingStudy:
    """A data set, LARP's vectors of it by name ({} where there are none), and the settings whose variants are compared.

    What is compared is the trained half z of a matching vector: the content half is the same whatever BCL is.
    `further`: columns that are fields beyond the usual ones, as in `train_bcl`. Figures stay in `folder`: a report that
    is broken off, or written again, trains only what is missing.
    """

    dataset: DataSet
    vectors: Mapping[str, NDArray[np.float32]]
    config: BclConfig
    folder: Path
    progress: Progress
    further: tuple[str, ...] = ()
    protocol: MatchingProtocol = PROTOCOL

    @cached_property
    def tasks(self) -> MatchingTasks:
        """Test and validation. Raises EvaluationError for a data set without listens, or without a truth."""
        return MatchingTasks.of(self.dataset, self.protocol)

    @cached_property
    def content(self) -> dict[str, NDArray[np.float32]]:
        """Those of `vectors` that some track has."""
        return {name: rows for name, rows in self.vectors.items() if known(rows).any()}

    def runs(self, name: str, config: BclConfig, seeds: int) -> list[Figures]:
        """The figures of one variant's trainings with the seeds 0, 1, ... Raises EvaluationError when the tracks have
        one field alone: there are no two views of it.
        """
        found = []
        for seed in range(seeds):
            seeded = replace(config, loop=replace(config.loop, seed=seed))
            folder = self.folder / self._key(seeded)
            if not folder.exists():
                self.progress.say(f"{name}, seed {seed} ({seed + 1} of {seeds})")
                replace_folder(folder, lambda inside, seeded=seeded: self._train(seeded, inside))
            with np.load(folder / "figures.npz", allow_pickle=False) as kept:
                found.append(dict(kept))
        return found

    def _train(self, config: BclConfig, inside: Path) -> None:
        data = self.dataset
        alone = replace(config, content_dims=0, content_share=0.0)
        with tempfile.TemporaryDirectory(prefix="debut-bcl-") as name:
            result = train_bcl(
                data.tracks,
                self.vectors,
                data.listens,
                data.track_split,
                Path(name),
                alone,
                self.progress,
                further=self.further,
            )
        groups = result.model.fields.groups
        if len(groups) < 2:
            raise EvaluationError(
                f"the tracks have one field ({groups[0]}): a contrast needs two; name more columns with --fields"
            )
        figures = measure(inner_product(result.vectors), self.tasks)
        np.savez(inside / "figures.npz", **figures, fields=np.array([float(len(groups))]))

    def _key(self, config: BclConfig) -> str:
        parts = (self._data, config.to_json(), repr(self.protocol))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def _data(self) -> str:
        digest = hashlib.sha256(self.dataset.fingerprint.encode())
        names = sorted({name for track in self.dataset.tracks for name in track.attributes})
        digest.update(repr((names, self.further)).encode())
        for name, array in sorted(self.vectors.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
