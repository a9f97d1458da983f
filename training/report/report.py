"""Writes the report of one data set: README.md, figures.json and pictures in a folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.data.dataset import TEST, TRAIN
from training.evaluate import test_queries
from training.evaluation import baselines
from training.evaluation.continuation import (
    ContinuationProtocol,
    ContinuationQuery,
    Scorer,
    evaluate_continuation,
    mean_of_seeds,
)
from training.evaluation.questions import homogeneity
from training.evaluation.results import Evaluation
from training.progress import Progress
from training.recommenders.clcrec import fit_clcrec
from training.recommenders.dropoutnet import fit_dropoutnet
from training.recommenders.itemknn import fit_itemknn
from training.recommenders.recommender import Fit, scorer
from training.report import figures, tables
from training.report.page import finish
from training.report.variants import FULL, PLAIN, RAW, UNTRAINED, Study, Variant

RECOMMENDERS: dict[str, Fit] = {"ItemKNN": fit_itemknn, "DropoutNet": fit_dropoutnet, "CLCRec": fit_clcrec}
SEEDS = (1, 5, 10, 30)
CHECKS: dict[str, Sequence[Any]] = {
    "temperature": (0.03, 0.07, 0.2),
    "momentum": (0.0, 0.9, 0.99, 0.995),
    "queue": (0, 512, 4096, 57_600),
}
_HOMOGENEITY = ("least alike", "middle", "most alike")


@dataclass(frozen=True)
class Scope:
    """How much a report covers. Every variant is one more training."""

    protocol: ContinuationProtocol = field(default_factory=ContinuationProtocol)
    seeds: tuple[int, ...] = SEEDS
    """The J of Figure 4; none leaves it out."""
    recommenders: bool = True
    """Whether DropoutNet and CLCRec are fitted too (Table 2)."""
    checks: bool = False
    """Whether the sensitivity to temperature, momentum and queue is measured: ten more trainings."""


class Report:
    """A report as it grows: Markdown in `text`, figures in `numbers`, pictures in `folder`."""

    def __init__(self, study: Study, folder: Path, scope: Scope) -> None:
        self.study, self.folder, self.scope = study, folder, scope
        self.dataset = study.dataset
        self.queries = test_queries(self.dataset, scope.protocol)
        self.candidates = np.flatnonzero(self.dataset.track_split == TEST)
        self.text: list[str] = []
        self.numbers: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, others: Sequence[Study] = ()) -> Path:
        """Train what is missing, measure, draw, and write README.md; `others` have Table 4's other training sets."""
        variants = self.study.ablation(self.scope.seeds)
        main = {name: variants[name] for name in variants if not name.startswith("J = ")}
        self._opening(main[FULL])
        self._table_3(main)
        self._table_2(main)
        for other in others:
            self._table_4(other, main)
        self._homogeneity(main)
        self._pictures(main)
        self._seeds(variants)
        if self.scope.checks:
            self._checks(main[FULL])
        return finish(self.folder, self.text, self.numbers)

    def evaluate(self, methods: Mapping[str, Scorer], queries: Sequence[ContinuationQuery] = ()) -> Evaluation:
        """Measure methods by the report's protocol."""
        return evaluate_continuation(methods, queries or self.queries, self.candidates, self.scope.protocol)

    def _add(self, *blocks: str) -> None:
        self.text += blocks

    def _opening(self, full: Variant) -> None:
        dataset, config = self.dataset, self.study.config
        counts = {name: int((dataset.track_split == split).sum()) for name, split in (("train", TRAIN), ("test", TEST))}
        alike = homogeneity(full.joined, self.queries).mean()
        self._add(
            "# LARP: report",
            f"{counts['train']} training tracks in {len(dataset.members(TRAIN).ids)} playlists; {counts['test']} test "
            f"tracks; {len({query.playlist for query in self.queries})} test playlists, {len(self.queries)} draws of "
            f"seeds. Homogeneity (mean cosine of a test playlist's tracks by the full model) {alike:.2f}. "
            f"Towers: {', '.join(config.towers)}{', encoders frozen' if config.freeze else ''}; audio checkpoint "
            f"{_named(config.audio.checkpoint)}, text checkpoint {_named(config.text.checkpoint)}; captions of "
            f"{', '.join(config.clauses)}; seed {config.loop.seed}; data {dataset.fingerprint[:16]}.",
            "Strict cold start: no test track and no test playlist is seen in training. Half of a test playlist is "
            "given, the other half is the truth, all test tracks are candidates. Intervals are 95 % bootstraps over "
            "playlists; differences are taken playlist by playlist.",
        )

    def _trivial(self) -> dict[str, Scorer]:
        tracks, clauses = self.dataset.tracks, self.study.config.clauses
        return {
            "random": baselines.random_continuation(),
            "same artist": mean_of_seeds(baselines.same_artist(tracks)),
            "TF-IDF of the caption": mean_of_seeds(baselines.tfidf_captions(tracks, clauses)),
        }

    def _table_3(self, variants: Mapping[str, Variant]) -> None:
        methods = self._trivial()
        towers = self.study.config.towers
        methods |= {f"{tower} encoder, raw": mean_of_seeds(variants[RAW].vectors[tower]) for tower in towers}
        methods |= {name: mean_of_seeds(variant.joined) for name, variant in variants.items() if name != RAW}
        if len(towers) == 2:
            methods |= {f"{FULL}, {tower} alone": mean_of_seeds(variants[FULL].vectors[tower]) for tower in towers}
        found = self.evaluate(methods)
        self._keep("table 3", found)
        self._add("## Table 3: ablation (ItemKNN)", tables.of_evaluation(found, against=FULL, first="encoder"))

    def _table_2(self, variants: Mapping[str, Variant]) -> None:
        chosen = RECOMMENDERS if self.scope.recommenders else {"ItemKNN": fit_itemknn}
        encoders = {f"{tower} encoder, raw": vectors for tower, vectors in variants[RAW].vectors.items()}
        encoders |= {name: variant.joined for name, variant in variants.items() if name not in (RAW, PLAIN)}
        found = {}
        for recommender, fit in chosen.items():
            methods = {name: self._fitted(fit, vectors) for name, vectors in encoders.items()}
            found[recommender] = self.evaluate(methods)
            self._keep(f"table 2, {recommender}", found[recommender])
        self._add("## Table 2: encoders and recommenders", tables.by_recommender(found))

    def _fitted(self, fit: Fit, vectors: NDArray[np.float32]) -> Scorer:
        members = self.dataset.members(TRAIN)
        entries = np.ones(len(members.rows), np.float32)
        shape = (len(members.ids), len(self.dataset.tracks))
        playlists = sparse.csr_array((entries, members.rows, members.indptr), shape=shape)
        known = np.flatnonzero((self.dataset.track_split == TRAIN) & ~np.isnan(vectors).any(1))
        return scorer(fit(sparse.csr_array(playlists[:, known]), vectors[known], self.study.progress), vectors)

    def _table_4(self, other: Study, here: Mapping[str, Variant]) -> None:
        there = other.transferred(self.dataset, self.study.clips)
        methods = self._trivial()
        methods |= {f"{name}, trained here": mean_of_seeds(here[name].joined) for name in (UNTRAINED, FULL)}
        methods[f"{FULL}, trained on {other.dataset.root.name}"] = mean_of_seeds(there.joined)
        found = self.evaluate(methods)
        self._keep(f"table 4, {other.dataset.root.name}", found)
        title = f"## Table 4: trained on {other.dataset.root.name}, tested on {self.dataset.root.name}"
        self._add(title, tables.of_evaluation(found, first="encoder"))

    def _homogeneity(self, variants: Mapping[str, Variant]) -> None:
        alike = homogeneity(variants[FULL].joined, self.queries)
        groups = np.digitize(alike, np.quantile(alike, [1 / 3, 2 / 3]))
        head, rows = ["encoder", *_HOMOGENEITY], []
        for name in (name for name in variants if name != RAW):
            cells = []
            for group in range(len(_HOMOGENEITY)):
                chosen = [query for query, its in zip(self.queries, groups, strict=True) if its == group]
                if not chosen:
                    cells.append("")
                    continue
                first = self.evaluate({name: mean_of_seeds(variants[name].joined)}, chosen).methods[0].figures
                cells.append(tables.with_interval(next(iter(first.values()))))
            rows.append([name, *cells])
        self._add(
            f"## Recall@{self.scope.protocol.cuts[0]} by playlist homogeneity",
            "Thirds of the test playlists by the mean cosine of their tracks, by the full model's vectors.",
            tables.table(head, rows),
        )

    def _pictures(self, variants: Mapping[str, Variant]) -> None:
        shown = {name: variant.joined for name, variant in variants.items() if name != RAW}
        known = np.all([~np.isnan(vectors).any(1) for vectors in shown.values()], axis=0)
        self._cloud(shown, known)
        full = variants[FULL]
        if full.score_name:  # else nothing scored the epochs
            figures.convergence(full.history, None, _scored(full.score_name), self.folder / "figure-5.png")
            self._add("## Figure 5: convergence over the stages", "![Figure 5](figure-5.png)")
        if len(full.vectors) == 2 and _complete(full, self.candidates) > 1:
            both = {name: variants[name].vectors for name in (UNTRAINED, "LARP-WTC", FULL)}
            figures.modalities(both, self.candidates, self.folder / "modalities.png")
            self._add("## Audio and text vectors of the same tracks (t-SNE)", "![t-SNE](modalities.png)")
        self._same_against_random(shown)

    def _cloud(self, shown: Mapping[str, NDArray[np.float32]], known: NDArray[np.bool_]) -> None:
        playlists = [np.concatenate([query.seeds, query.truth]) for query in self.queries]
        rows = max((tracks[known[tracks]] for tracks in playlists), key=len)
        cloud = self.candidates[known[self.candidates]]
        if not len(rows) or len(cloud) < 2:
            self._add("## Figure 3", "Not drawn: no test playlist has a track with a vector.")
            return
        figures.playlist_in_the_cloud(shown, cloud, rows, self.folder / "figure-3.png")
        self._add(
            f"## Figure 3: {len(rows)} tracks of a test playlist in the cloud of all test tracks (PCA)",
            "![Figure 3](figure-3.png)",
        )

    def _same_against_random(self, shown: Mapping[str, NDArray[np.float32]]) -> None:
        title = "## Pairs from one test playlist against random pairs"
        pairs = {name: _pairs(vectors, self.queries, self.candidates) for name, vectors in shown.items()}
        if not all(len(same) and len(random) for same, random in pairs.values()):
            self._add(title, "Not drawn: no two tracks of a test playlist have vectors.")
            return
        figures.same_against_random(pairs, self.folder / "pairs.png")
        rows_of = [
            [name, f"{same.mean():.3f}", f"{other.mean():.3f}", f"{_auc(same, other):.3f}"]
            for name, (same, other) in pairs.items()
        ]
        self._add(
            title,
            "![pairs](pairs.png)",
            tables.table(["encoder", "mean cosine, same playlist", "random", "AUC"], rows_of),
        )

    def _seeds(self, variants: Mapping[str, Variant]) -> None:
        chosen = {name: variant for name, variant in variants.items() if name.startswith("J = ")}
        if chosen:
            self._swept("figure 4", "Figure 4: seeds J fused to a playlist in training", chosen, "figure-4.png")

    def _checks(self, full: Variant) -> None:
        config = self.study.config
        for setting, values in CHECKS.items():
            own = getattr(config, setting)
            chosen = {f"{own}": full}
            for value in values:
                if value != own:
                    chosen[f"{value}"] = self.study.changed(f"{setting} = {value}", {setting: value})
            ordered = dict(sorted(chosen.items(), key=lambda item: float(item[0])))
            self._swept(setting, f"Sensitivity to {setting}", ordered, f"{setting}.png")

    def _swept(self, key: str, title: str, variants: Mapping[str, Variant], picture: str) -> None:
        found = self.evaluate({name: mean_of_seeds(variant.joined) for name, variant in variants.items()})
        self._keep(key, found)
        first = next(iter(found.methods[0].figures))
        points = [(method.method, method.figures[first]) for method in found.methods]
        figures.curve(points, key, f"test {first}", self.folder / picture, found.chance[first])
        self._add(f"## {title}", f"![{title}]({picture})", tables.of_evaluation(found, first=key))

    def _keep(self, name: str, found: Evaluation) -> None:
        self.numbers[name] = found.to_json()


def write_report(study: Study, folder: Path, scope: Scope, others: Sequence[Study], progress: Progress) -> Path:
    """Write the report of a data set; returns its README.md. Raises what training and evaluation raise."""
    path = Report(study, folder, scope).write(others)
    progress.say(f"the report is {path}")
    return path


def _scored(name: str) -> str:
    return name if name.startswith("validation") else f"validation {name}"


def _complete(variant: Variant, rows: NDArray[np.int64]) -> int:
    """How many of the tracks have vectors by every tower."""
    missing = [np.isnan(vectors[rows]).any(1) for vectors in variant.vectors.values()]
    return int((~np.any(missing, axis=0)).sum())


def _named(checkpoint: str | None) -> str:
    return "none (from scratch)" if checkpoint is None else checkpoint.rstrip("/").rsplit("/", 1)[-1]


def _pairs(
    vectors: NDArray[np.float32], queries: Sequence[ContinuationQuery], candidates: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines of pairs (a seed, a truth track of the same playlist) and of as many random pairs of test tracks."""
    rng = np.random.default_rng(0)
    first = np.concatenate([rng.choice(query.seeds, len(query.truth)) for query in queries])
    second = np.concatenate([query.truth for query in queries])
    one, other = rng.choice(candidates, (2, max(2000, len(first))))
    cosine: Callable[..., NDArray[np.float64]] = lambda a, b: (vectors[a].astype(np.float64) * vectors[b]).sum(1)  # noqa: E731
    same, random = cosine(first, second), cosine(one, other)[one != other]
    return same[~np.isnan(same)], random[~np.isnan(random)]


def _auc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Probability that a value of `higher` exceeds one of `lower`."""
    ranks = np.searchsorted(np.sort(lower), higher, side="left") + np.searchsorted(np.sort(lower), higher, side="right")
    return float(ranks.mean() / 2 / len(lower))
