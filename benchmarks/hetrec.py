"""python -m benchmarks.hetrec DATA: BCL's matching and its ablation on HetRec last.fm, over five seeds, as Markdown.

DATA is HetRec-2011 last.fm 2k as a data set directory, one "track" an artist, its genres the tags (for
non-commercial use: it is not part of this repository). Only listens of train tracks are learnt from; the epoch and
the weight of the popularity prior are chosen on validation tracks, test tracks are ranked once a run. A figure is the
mean over seeds for each query; intervals are bootstraps over queries, differences are taken query by query. What is
measured is BCL's trained vector z, without the content that a release puts beside it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from index.models.fields import FieldSpec
from index.tracks.track import Track
from training.bcl.config import BclConfig, bcl_preset
from training.bcl.train import train_bcl
from training.data.dataset import TEST, DataSet
from training.evaluation import baselines
from training.evaluation.estimates import Estimate, paired_difference
from training.evaluation.matching import MatchingTasks, evaluate_matching, inner_product
from training.evaluation.popularity import tail_minus_head
from training.evaluation.vectors import Vectors, unit
from training.progress import Silent
from training.report import tables
from training.report.matching_study import PRIOR, PROTOCOL, Figures, compare, mean_of, measure
from training.report.matching_tables import by_halves, in_tenths, spread

RECALL, TAGS = "R@50", 256
BPR, FAST, JOINED, SOFTMAX, BCL = "BPR only", "BPR only, lr 6e-3", "BPR + contrast", "no contrast", "BCL"
POPULARITY, TFIDF, TIMES = "popularity", "TF-IDF of the tags", "TF-IDF of the tags, times ln(1 + listeners)"
NAMED = "TF-IDF of tags and artist"  # a name that is nobody else's shortens the vectors of who has few tags
VARIANTS: dict[str, dict[str, object]] = {
    BPR: {"supervised": "bpr", "negatives": 2, "contrastive_weight": 0.0},
    FAST: {"supervised": "bpr", "negatives": 2, "contrastive_weight": 0.0},
    SOFTMAX: {"contrastive_weight": 0.0},
    BCL: {},
    JOINED: {"supervised": "bpr", "negatives": 2},
    "static correlation": {"correlation_alpha": 1.0},
    "random groups": {"random_groups": True},
    "random mask alone": {"augmentations": ("random_mask",)},
    "span mask alone": {"augmentations": ("span_mask",)},
    "uniform noise alone": {"augmentations": ("uniform_noise",)},
}
RATES = {BPR: 1e-3, JOINED: 1e-3}
"""Learning rates other than the preset's. On validation tracks BPR did better with this one, worse with the prior."""
CORE = (BPR, FAST, SOFTMAX, BCL)
FIELDS = (
    FieldSpec("artist", "categorical", "artist"),
    FieldSpec("genres", "multi", "genres", slots=20),
    FieldSpec("tags", "dense", "text"),
)
CHOICES: dict[str, dict[str, object]] = {
    "contrast 0.02": {},
    "contrast 0.0": {"contrastive_weight": 0.0},
    "contrast 0.1": {"contrastive_weight": 0.1},
    "contrast 0.3": {"contrastive_weight": 0.3},
    "swing": {"pairs": "swing"},
    "alpha 0": {"correlation_alpha": 0.0},
    "alpha 0.99": {"correlation_alpha": 0.99},
    "k 1": {"correlation_every": 1},
    "k 100": {"correlation_every": 100},
    "tau 0.05": {"contrastive_temperature": 0.05},
    "tau 0.2": {"contrastive_temperature": 0.2},
    "T_g 0": {"grouping_temperature": 0.0},
    "T_g 4": {"grouping_temperature": 4.0},
}
"""What `--choose` compares with the preset, which comes first."""


@dataclass(frozen=True)
class Bench:
    """The data, its tasks, and the two contents that methods read."""

    dataset: DataSet
    tasks: MatchingTasks
    tfidf: Vectors
    tags: NDArray[np.float32]
    """The TF-IDF of the tags in `TAGS` dimensions, fitted without test tracks: NaN rows where there are none."""

    @classmethod
    def open(cls, directory: Path) -> "Bench":
        """Read the data and set the tasks."""
        dataset = DataSet.open(directory)
        tfidf = baselines.tfidf_attributes([Track(t.track_id, genres=t.genres) for t in dataset.tracks])
        tags = unit(TruncatedSVD(TAGS, random_state=0).fit(tfidf[dataset.track_split != TEST]).transform(tfidf))
        tags[np.asarray(tfidf.sum(1)).ravel() == 0] = np.nan
        return cls(dataset, MatchingTasks.of(dataset, PROTOCOL), tfidf, tags.astype(np.float32))

    @property
    def warm(self) -> sparse.csr_array:
        """The listens of training tracks."""
        return self.tasks.warm

    def on_validation(self) -> "Bench":
        """The same with validation tracks as the queries that are measured; they choose the prior's weight too."""
        valid, listens = self.tasks.valid, self.dataset.listens
        assert valid is not None and listens is not None  # noqa: PT018
        listeners = np.bincount(listens.row, minlength=len(self.dataset.tracks))[valid.queries].astype(np.float64)
        return replace(self, tasks=replace(self.tasks, test=valid, listeners=listeners))

    def trained(self, config: BclConfig, path: Path) -> Figures:
        """The figures of one training, kept at `path`."""
        if not path.exists():
            data, vectors = self.dataset, {"text": self.tags}
            with tempfile.TemporaryDirectory() as folder:
                result = train_bcl(data.tracks, vectors, data.listens, data.track_split, Path(folder), config, Silent())
            np.savez(path, **measure(inner_product(result.vectors), self.tasks))
        with np.load(path) as found:
            return dict(found)


def main() -> int:
    """Train everything, print the tables and the claims; 1 when a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set directory")
    parser.add_argument("--keep", type=Path, help="folder for the figures of each training: a run goes on from them")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of BCL and of what the claims compare it with")
    parser.add_argument("--ablate", type=int, default=5, help="trainings of each ablation, no more than --seeds")
    parser.add_argument("--choose", type=int, help="instead: so many trainings of each choice, on validation tracks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, bench = time.monotonic(), Bench.open(given.data)
    with tempfile.TemporaryDirectory() as scratch:
        keep = given.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        if given.choose:
            failed = _choose(bench.on_validation(), keep, given.choose)
        else:
            failed = _ablate(bench, keep, given.seeds, given.ablate)
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes")
    return failed


def _choose(bench: Bench, keep: Path, seeds: int) -> int:
    plan = [(name, seed) for seed in range(seeds) for name in CHOICES]
    runs = _train(bench, plan, CHOICES, keep, "valid ")
    first = next(iter(CHOICES))
    print(f"{len(bench.tasks.test.queries)} validation queries, {seeds} seeds")
    print(_tables(bench, {name: mean_of(its) for name, its in runs.items()}, runs, first))
    return 0


def _ablate(bench: Bench, keep: Path, seeds: int, ablate: int) -> int:
    plan = [(name, seed) for seed in range(seeds) for name in CORE]
    plan += [(name, seed) for seed in range(ablate) for name in VARIANTS if name not in CORE]
    runs = _train(bench, plan, VARIANTS, keep)
    core = _baselines(bench) | {name: mean_of(runs[name]) for name in CORE}
    print(f"{len(bench.tasks.test.queries)} test queries, {seeds} seeds")
    print(_tables(bench, core, runs, BCL))
    if ablate:
        cut = {name: its[:ablate] for name, its in runs.items() if name != FAST}
        parts = {name: mean_of(its) for name, its in cut.items()}
        print(f"\nThe ideas, one by one, seeds 0 to {ablate - 1}:\n\n{_tables(bench, parts, cut, BCL)}")
        paper = compare({name: parts[name] for name in (BPR, JOINED)}, bench.tasks)
        print(f"\nThe contrast beside the paper's own supervised loss:\n\n{tables.compared(paper, BPR)}")
    checks = _claims(bench, core)
    print("", *(f"* {'holds' if holds else 'FAILS'}: {what}" for what, holds in checks), sep="\n")
    return 0 if all(holds for _, holds in checks) else 1


def _train(
    bench: Bench, plan: Sequence[tuple[str, int]], changes: Mapping[str, Mapping[str, Any]], keep: Path, mark: str = ""
) -> dict[str, list[Figures]]:
    runs: dict[str, list[Figures]] = {name: [] for name, _ in plan}
    for name, seed in plan:
        config = bcl_preset("small", seed=seed, fields=FIELDS, content_dims=0, content_share=0.0, **changes[name])
        config = replace(config, loop=replace(config.loop, lr=RATES.get(name, config.loop.lr)))
        runs[name].append(bench.trained(config, keep / f"{mark}{name} {seed}.npz"))
        print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    return runs


def _baselines(bench: Bench) -> dict[str, Figures]:
    """What is a prior alone, or holds one by itself, stands with those that have one."""
    tfidf, warm = inner_product(bench.tfidf), bench.warm
    priors = {POPULARITY: baselines.popularity(warm), TIMES: baselines.times_popularity(tfidf, warm)}
    named = inner_product(baselines.tfidf_of(bench.dataset.tracks))
    found = {TFIDF: measure(tfidf, bench.tasks), NAMED: measure(named, bench.tasks)}
    for method in evaluate_matching(priors, bench.tasks.test).methods:
        found[method.method] = {f"{PRIOR}{key}": values for key, values in method.per_query.items()}
    return found


def _tables(bench: Bench, methods: Mapping[str, Figures], runs: Mapping[str, Sequence[Figures]], against: str) -> str:
    """Figures and differences to `against`, in tail and head, and in tenths; without the prior, then with it."""
    listeners, blocks = bench.tasks.listeners, []
    for prior in (False, True):
        key = f"{PRIOR * prior}{RECALL}"
        found = in_tenths(compare(methods, bench.tasks, prior), listeners, RECALL)
        beside = spread(runs, key, against)
        if prior:
            beside["mean w"] = {name: float(its["weight"][0]) for name, its in methods.items() if "weight" in its}
        blocks += [
            f"{'With' if prior else 'Without'} the popularity prior:",
            tables.compared(found, against, beside),
            by_halves(found, listeners, against, RECALL),
            tables.by_part(found),
        ]
    return "\n\n".join(blocks)


def _claims(bench: Bench, methods: Mapping[str, Figures]) -> list[tuple[str, bool]]:
    def above(first: Figures, second: Figures, key: str, what: str) -> tuple[str, bool]:
        found = paired_difference(first[key], second[key])
        return f"{what}: {tables.signed(found)}", found.low > 0

    bcl, recall, prior = methods[BCL], RECALL, f"{PRIOR}{RECALL}"
    claims = [
        above(bcl, methods[TFIDF], recall, f"BCL > {TFIDF}"),
        above(bcl, methods[BPR], recall, f"BCL > {BPR}"),
        above(bcl, methods[TIMES], prior, f"BCL with prior > {TIMES}"),
        above(bcl, methods[TFIDF], prior, f"BCL with prior > {TFIDF} with a prior chosen alike"),
        above(bcl, methods[NAMED], prior, f"BCL with prior > {NAMED} with a prior chosen alike"),
        above(bcl, methods[SOFTMAX], recall, f"BCL > {SOFTMAX}"),
        above(bcl, methods[SOFTMAX], prior, f"BCL with prior > {SOFTMAX}, with prior"),
    ]
    # Without the prior: a greater weight of it moves hits from the head to the tail, whatever it is added to.
    for name in (BPR, FAST, SOFTMAX):
        found = tail_minus_head(bcl[recall] - methods[name][recall], bench.tasks.listeners)
        if found:
            claims.append((f"gain over {name} in the tail minus in the head: {tables.signed(found)}", found.low > 0))
    return claims


def told(found: Estimate, sign: str = "") -> str:
    """A figure with its interval."""
    return tables.signed(found) if sign else tables.with_interval(found)


if __name__ == "__main__":
    sys.exit(main())
