"""python -m benchmarks.hetrec DATA: BCL's matching and its ablation on HetRec last.fm, over five seeds, as Markdown.

DATA is HetRec-2011 last.fm 2k as a data set directory, one "track" an artist, its genres the tags (for
non-commercial use: it is not part of this repository). Only listens of train tracks are learnt from; the epoch and
the weight of the popularity prior are chosen on validation tracks, test tracks are ranked once a run. A figure is the
mean over seeds for each query; intervals are bootstraps over queries, differences are taken query by query.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from index.fields import FieldSpec
from index.tracks import Track
from training.bcl.config import BclConfig, bcl_preset
from training.bcl.similarity import listen_matrix
from training.bcl.train import train_bcl
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.evaluation import baselines
from training.evaluation.estimates import Estimate, bootstrap, paired_difference
from training.evaluation.matching import (
    MatchingProtocol,
    MatchingTask,
    Scorer,
    evaluate_matching,
    inner_product,
    matching_task,
    prior_weight,
)
from training.evaluation.vectors import Vectors, unit
from training.progress import Progress, Silent

CUT, TAGS = 50, 256
BPR, FAST, SOFTMAX, BCL, TFIDF = "BPR only", "BPR only, lr 6e-3", "no contrast", "BCL", "TF-IDF of the tags"
VARIANTS: dict[str, dict[str, object]] = {
    BPR: {"supervised": "bpr", "contrastive_weight": 0.0},
    FAST: {"supervised": "bpr", "contrastive_weight": 0.0},
    SOFTMAX: {"contrastive_weight": 0.0},
    BCL: {},
    "BPR + contrast": {"supervised": "bpr"},
    "static correlation": {"correlation_alpha": 1.0},
    "random groups": {"random_groups": True},
    "random mask alone": {"augmentations": ("random_mask",)},
    "span mask alone": {"augmentations": ("span_mask",)},
    "uniform noise alone": {"augmentations": ("uniform_noise",)},
}
RATES = {BPR: 1e-3, "BPR + contrast": 1e-3}
"""Learning rates other than the preset's. On validation tracks BPR did better with this one, worse with the prior."""
CORE = (BPR, FAST, SOFTMAX, BCL)
FIELDS = (
    FieldSpec("artist", "categorical", "artist"),
    FieldSpec("genres", "multi", "genres", slots=20),
    FieldSpec("tags", "dense", "text"),
)
Figures = dict[str, NDArray[np.float64]]
"""R@50 and N@50 of each query, with the prior under "prior R@50" and "prior N@50"; the weight under "weight" [1]."""


@dataclass(frozen=True)
class Bench:
    """The data, its two tasks, and what every method may know of popularity: the listens of train tracks."""

    dataset: DataSet
    test: MatchingTask
    valid: MatchingTask
    warm: sparse.csr_array
    popularity: NDArray[np.float64]
    """Listeners of each test query, on all listens."""
    tfidf: Vectors
    tags: NDArray[np.float32]
    """The TF-IDF of the tags in `TAGS` dimensions, fitted without test tracks: NaN rows where there are none."""

    @classmethod
    def open(cls, directory: Path) -> "Bench":
        """Read the data and set both tasks."""
        dataset = DataSet.open(directory)
        split, listens = dataset.track_split, dataset.listens
        if listens is None:
            raise SystemExit(f"{directory} has no listens.parquet: this benchmark is about listens")
        shape = (len(listens.listener_ids), len(dataset.tracks))

        def heard(*parts: int) -> sparse.csr_array:
            return listen_matrix(listens.listener, listens.row, shape, np.isin(split, parts))

        full, protocol = heard(TRAIN, VALID, TEST), MatchingProtocol(cuts=(CUT,))
        test = matching_task(full, np.flatnonzero(split == TEST), np.flatnonzero(split == TRAIN), protocol)
        known = heard(TRAIN, VALID)
        valid = matching_task(known, np.flatnonzero(split == VALID), np.flatnonzero(split == TRAIN), protocol)
        popularity = np.asarray(full.sum(0)).ravel()[test.queries]
        tfidf = baselines.tfidf_attributes([Track(t.track_id, genres=t.genres) for t in dataset.tracks])
        tags = unit(TruncatedSVD(TAGS, random_state=0).fit(tfidf[split != TEST]).transform(tfidf))
        tags[np.asarray(tfidf.sum(1)).ravel() == 0] = np.nan
        return cls(dataset, test, valid, heard(TRAIN), popularity, tfidf, tags.astype(np.float32))

    def measure(self, scorer: Scorer) -> Figures:
        """The figures of each test query, without and with the prior, whose weight validation tracks choose."""
        weight = prior_weight(scorer, self.warm, self.valid)
        methods = {"": scorer, "prior ": baselines.plus_popularity(scorer, self.warm, weight)}
        found = evaluate_matching(methods, self.test)
        return {f"{m.method}{name}": values for m in found.methods for name, values in m.per_query.items()} | {
            "weight": np.array([weight])
        }

    def trained(self, config: BclConfig, directory: Path) -> Figures:
        """The figures of one training."""
        data, vectors = self.dataset, {"text": self.tags}
        result = train_bcl(data.tracks, vectors, data.listens, data.track_split, directory, config, Silent())
        return self.measure(inner_product(result.vectors))


def main() -> int:
    """Train everything, print the tables and the claims; 1 when a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set directory")
    parser.add_argument("--keep", type=Path, help="folder for the figures of each training: a run goes on from them")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of BCL and of what the claims compare it with")
    parser.add_argument("--ablate", type=int, default=5, help="trainings of each ablation, no more than --seeds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, bench, progress = time.monotonic(), Bench.open(given.data), Progress()
    fixed = _baselines(bench)
    with tempfile.TemporaryDirectory() as scratch:
        keep = given.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        runs: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
        plan = [(name, seed) for seed in range(given.seeds) for name in CORE]
        plan += [(name, seed) for seed in range(given.ablate) for name in VARIANTS if name not in CORE]
        for name, seed in plan:
            config = bcl_preset("small", seed=seed, fields=FIELDS, **VARIANTS[name])
            config = replace(config, loop=replace(config.loop, lr=RATES.get(name, config.loop.lr)))
            runs[name].append(_kept(keep / f"{name} {seed}.npz", bench, config, Path(scratch) / "bcl"))
            progress.say(f"{name}, seed {seed}: done")
    core = fixed | {name: mean_of(runs[name]) for name in CORE}
    parts = {name: mean_of(found) for name, found in runs.items() if found and name not in CORE}
    print(_table(core | parts, runs))
    print("", _differences(core, core[BCL]), "", _by_popularity(bench, core), sep="\n")
    if parts:
        print(f"\nBCL minus an ablation, seeds 0 to {given.ablate - 1}:\n")
        print(_differences(parts, mean_of(runs[BCL][: given.ablate])))
    checks = _claims(bench, core)
    print("", *(f"* {'holds' if holds else 'FAILS'}: {what}" for what, holds in checks), sep="\n")
    print(f"\n{len(bench.test.queries)} queries, {given.seeds} seeds, {(time.monotonic() - began) / 60:.0f} minutes")
    return 0 if all(holds for _, holds in checks) else 1


def mean_of(runs: Sequence[Figures]) -> Figures:
    """The mean over runs for each query."""
    return {key: np.mean([run[key] for run in runs], 0) for key in runs[0]}


def _kept(path: Path, bench: Bench, config: BclConfig, directory: Path) -> Figures:
    if not path.exists():
        np.savez(path, **bench.trained(config, directory))
    with np.load(path) as found:
        return dict(found)


def _baselines(bench: Bench) -> dict[str, Figures]:
    tfidf = inner_product(bench.tfidf)
    product = evaluate_matching({"": baselines.times_popularity(tfidf, bench.warm)}, bench.test)
    popularity = evaluate_matching({"": baselines.popularity(bench.warm)}, bench.test)
    times = {f"prior {key}": values for key, values in product.methods[0].per_query.items()}
    alone = {f"prior {key}": values for key, values in popularity.methods[0].per_query.items()}
    return {"popularity": alone, TFIDF: bench.measure(tfidf), f"{TFIDF}, times ln(1 + listeners)": times}


def _table(methods: Mapping[str, Figures], runs: Mapping[str, list[Figures]]) -> str:
    lines = [
        "| | Recall@50 | NDCG@50 | Recall@50 with prior | NDCG@50 with prior | prior | sd over seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in methods.items():
        cells = [told(bootstrap(found[key])) if key in found else "" for key in KEYS]
        weight = f"{found['weight'][0]:.3f}" if "weight" in found else ""
        spread = " / ".join(
            f"{np.std([run[key].mean() for run in runs[name]], ddof=1):.4f}" for key in ("R@50", "prior R@50")
        ) if len(runs.get(name, ())) > 1 else ""  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} | {weight} | {spread} |")
    return "\n".join(lines)


KEYS = ("R@50", "N@50", "prior R@50", "prior N@50")


def _differences(methods: Mapping[str, Figures], bcl: Figures) -> str:
    lines = ["| BCL minus | Recall@50 | NDCG@50 | Recall@50 with prior | NDCG@50 with prior |", "|---|---|---|---|---|"]
    for name, found in methods.items():
        if name != BCL:
            cells = [told(paired_difference(bcl[key], found[key]), "+") if key in found else "" for key in KEYS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _halves(bench: Bench) -> dict[str, NDArray[np.bool_]]:
    tail = bench.popularity <= np.median(bench.popularity)
    return {"tail": tail, "head": ~tail}


def _by_popularity(bench: Bench, methods: Mapping[str, Figures]) -> str:
    """Recall@50 in the two halves of the queries by listeners, and what BCL gains over each method there."""
    halves = _halves(bench)
    middle = int(np.median(bench.popularity))
    sizes = ", ".join(f"{name} {int(rows.sum())} queries" for name, rows in halves.items())
    lines = [
        f"Tail: at most {middle} listeners ({sizes}).",
        "",
        "| | tail | head | tail, prior | head, prior | BCL's gain: tail | head | tail, prior | head, prior |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in methods.items():
        levels, gains = [], []
        for key in ("R@50", "prior R@50"):
            for rows in halves.values():
                levels.append(f"{found[key][rows].mean():.4f}" if key in found else "")
                gained = paired_difference(methods[BCL][key][rows], found[key][rows]) if key in found else None
                gains.append(told(gained, "+") if gained and name != BCL else "")
        lines.append(f"| {name} | {' | '.join(levels + gains)} |")
    return "\n".join(lines)


def _claims(bench: Bench, methods: Mapping[str, Figures]) -> list[tuple[str, bool]]:
    def above(first: Figures, second: Figures, key: str, what: str) -> tuple[str, bool]:
        found = paired_difference(first[key], second[key])
        return f"{what}: {told(found, '+')}", found.low > 0

    bcl, times = methods[BCL], methods[f"{TFIDF}, times ln(1 + listeners)"]
    return [
        above(bcl, methods[TFIDF], "R@50", f"BCL > {TFIDF}"),
        above(bcl, methods[BPR], "R@50", f"BCL > {BPR}"),
        above(bcl, times, "prior R@50", f"BCL with prior > {TFIDF} times ln(1 + listeners)"),
        above(bcl, methods[TFIDF], "prior R@50", f"BCL with prior > {TFIDF} with a prior chosen alike"),
        above(bcl, methods[SOFTMAX], "R@50", f"BCL > {SOFTMAX}"),
        above(bcl, methods[SOFTMAX], "prior R@50", f"BCL with prior > {SOFTMAX}, with prior"),
        # Without the prior: a greater weight of it moves hits from the head to the tail, whatever it is added to.
        *(
            (f"gain over {name} in the tail minus in the head: {told(found, '+')}", found.low > 0)
            for name in (BPR, FAST, SOFTMAX)
            for found in [_tail_minus_head(bench, bcl["R@50"] - methods[name]["R@50"])]
        ),
    ]


def _tail_minus_head(bench: Bench, gain: NDArray[np.float64]) -> Estimate:
    """The mean of `gain` in the tail minus that in the head; each half is drawn from by itself."""
    tail, head = (gain[rows] for rows in _halves(bench).values())
    rng = np.random.default_rng(1)
    means = [
        part[rng.integers(0, len(part), (2000, len(part)))].mean(1) * sign for part, sign in ((tail, 1), (head, -1))
    ]
    low, high = np.percentile(means[0] + means[1], [2.5, 97.5])
    return Estimate(float(tail.mean() - head.mean()), float(low), float(high))


def told(found: Estimate, sign: str = "") -> str:
    """A figure with its interval."""
    return f"{found.value:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


if __name__ == "__main__":
    sys.exit(main())
