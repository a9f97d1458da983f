"""python -m benchmarks.hetrec_audience DATA: CAT against unions and cosines on HetRec last.fm, as Markdown.

DATA as for `benchmarks.hetrec`. All listeners of a cold track are hidden, and all listeners ranked. CAT runs as in the
service: over the TF-IDF of the tags (128 dimensions), over BCL's trained vectors z (preset "small", five seeds; each
figure their mean), and over what a release holds, z and content side by side.
Intervals are bootstraps over tracks, differences are taken track by track.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.hetrec import FIELDS, Bench, Figures, mean_of, told
from training.bcl.config import bcl_preset
from training.bcl.train import BclResult, train_bcl
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.evaluation import baselines
from training.evaluation.audience import AudienceProtocol, Scorer, evaluate_audience
from training.evaluation.cat import cat_scorer, centroid_scorer
from training.evaluation.estimates import bootstrap, paired_difference
from training.evaluation.matching import evaluate_matching, inner_product
from training.evaluation.vectors import unit
from training.matched import choose_activity
from training.progress import Progress, Silent
from training.report.matching_study import PRIOR, measure

DIMS, FAINT = 128, 1e-6
KEYS = ("R@100", "AUC", "lift@1%", "lift@5%", "lift@10%")
COSINE, UNION = "cosine, TF-IDF", "union, TF-IDF"


class Task:
    """Who heard what, and the cold tracks whose audience is asked for."""

    def __init__(self, bench: Bench, split: int) -> None:
        dataset = self.dataset = bench.dataset
        listens = dataset.listens
        assert listens is not None  # `Bench.open` has looked
        shape, kept = bench.warm.shape, dataset.track_split[listens.row] == TRAIN
        plays = np.asarray(listens.plays, np.float64)[kept]
        self.warm = bench.warm
        everything = (np.asarray(listens.plays, np.float64), (listens.listener, listens.row))
        self.everything = sparse.csr_array(everything, shape=shape)
        self.plays = sparse.csr_array((plays, (listens.listener[kept], listens.row[kept])), shape=shape)
        self.heard = sparse.csr_array((np.ones(len(listens.row)), (listens.listener, listens.row)), shape=shape)
        self.queries = np.flatnonzero(dataset.track_split == split)
        self.candidates = np.flatnonzero(dataset.track_split == TRAIN)

    def over(self, vectors: NDArray[np.float32], clusters: bool = True) -> dict[str, Figures]:
        """CAT, its ablations and the baselines over one space, f32 [N, 128] unit or NaN; figures of each query."""
        tracks = self.dataset.tracks
        methods: dict[str, Scorer] = {
            "cosine": baselines.profile_cosine(vectors, self.warm),
            "union": baselines.union_of_nearest(inner_product(vectors), self.warm, self.candidates),
        }
        with ExitStack() as stack:
            power, _ = choose_activity(tracks, vectors, self.everything, self.dataset.track_split)
            cat = cat_scorer(tracks, vectors, self.plays, clusters=1, activity=power)
            methods["CAT"] = stack.enter_context(cat)
            if clusters:
                methods["nearest centroid"] = stack.enter_context(centroid_scorer(tracks, vectors, self.plays))
                methods["one centroid"] = stack.enter_context(centroid_scorer(tracks, vectors, self.plays, clusters=1))
            return self.measured(methods)

    def measured(self, methods: Mapping[str, Scorer]) -> dict[str, Figures]:
        """The figures of each query by method."""
        found = evaluate_audience(dict(methods), self.heard, self.queries, AudienceProtocol())
        return {method.method: {key: method.per_query[key] for key in KEYS} for method in found.methods}


def main() -> None:
    """Train, measure, print the table and what CAT gains over each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set directory")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of BCL")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="of the tracks that are asked for")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, bench, progress = time.monotonic(), Bench.open(given.data), Progress()
    task = Task(bench, {"valid": VALID, "test": TEST}[given.split])
    methods = task.measured(
        {
            COSINE: baselines.profile_cosine(bench.tfidf, bench.warm),
            UNION: baselines.union_of_nearest(inner_product(bench.tfidf), bench.warm, task.candidates),
        }
    )
    tags = bench.tags[:, :DIMS]  # the strongest components come first; a rare tag may be in none of them
    tags = unit(np.where(np.linalg.norm(tags, axis=1, keepdims=True) > FAINT, tags, np.nan))
    methods |= {f"{name}, tags": figures for name, figures in task.over(tags).items()}
    spaces, matched = _by_seed(bench, task, given.seeds, progress)
    for space, found in spaces.items():
        methods |= {f"{name}, {space}": mean_of([one[name] for one in found if name in one]) for name in found[0]}
    print(_table(methods))
    if given.split == "test":
        print("", _matching(bench, {name: mean_of(found) for name, found in matched.items()}), sep="\n")
    for ours in ("CAT, tags", "CAT, BCL", "CAT, both"):
        print("", _differences(methods, ours), sep="\n")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(task.queries)} {given.split} tracks, {given.seeds} seeds, {minutes:.0f} minutes")


def _by_seed(
    bench: Bench, task: Task, seeds: int, progress: Progress
) -> tuple[dict[str, list[dict[str, Figures]]], dict[str, list[Figures]]]:
    """The figures of audiences, by method, and of matching, of each space and seed."""
    found: dict[str, list[dict[str, Figures]]] = {"BCL": [], "both": []}
    matched: dict[str, list[Figures]] = {"BCL": [], "both": []}
    for seed in range(seeds):
        trained = _bcl(bench, seed)
        for name, space in (("BCL", trained.vectors), ("both", trained.matching)):
            found[name].append(task.over(space, clusters=seed == 0))
            matched[name].append(measure(inner_product(space), bench.tasks))
        progress.say(f"BCL, seed {seed}: done")
    return found, matched


def _bcl(bench: Bench, seed: int) -> BclResult:
    data: DataSet = bench.dataset
    config = bcl_preset("small", seed=seed, fields=FIELDS)
    with tempfile.TemporaryDirectory() as folder:
        vectors = {"text": bench.tags}
        return train_bcl(data.tracks, vectors, data.listens, data.track_split, Path(folder) / "bcl", config, Silent())


def _table(methods: Mapping[str, Figures]) -> str:
    lines = [f"| | {' | '.join(KEYS)} |", "|---" * (1 + len(KEYS)) + "|"]
    for name, found in methods.items():
        cells = [told(bootstrap(found[key])) if key in KEYS[:2] else f"{found[key].mean():.2f}" for key in KEYS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _matching(bench: Bench, spaces: Mapping[str, Figures]) -> str:
    """Recall@50 of the tracks that share an audience, over the same vectors, as `benchmarks.hetrec` measures it."""
    times = baselines.times_popularity(inner_product(bench.tfidf), bench.warm)
    product = evaluate_matching({"x": times}, bench.tasks.test).method("x").per_query["R@50"]
    lines = ["| matching | R@50 | R@50 with prior | minus TF-IDF x ln(1 + listeners) |", "|---|---|---|---|"]
    for name, figures in spaces.items():
        bare, prior = (figures[f"{start}R@50"] for start in ("", PRIOR))
        cells = (told(bootstrap(bare)), told(bootstrap(prior)), told(paired_difference(prior, product), "+"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(methods: Mapping[str, Figures], ours: str) -> str:
    lines = [f"| {ours} minus | R@100 | AUC |", "|---|---|---|"]
    for name, found in methods.items():
        if name != ours:
            cells = [told(paired_difference(methods[ours][key], found[key]), "+") for key in KEYS[:2]]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
