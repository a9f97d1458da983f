"""Writes the report of BCL on one data set: what each of its ideas is worth, by popularity, over several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.bcl.config import BclConfig
from training.data.dataset import TRAIN, VALID
from training.evaluation import baselines
from training.evaluation.estimates import paired_difference
from training.evaluation.matching import evaluate_matching, inner_product
from training.evaluation.popularity import deciles
from training.evaluation.results import Evaluation
from training.evaluation.vectors import filled, unit
from training.progress import Progress
from training.report import figures, tables
from training.report.matching_study import FULL, Figures, MatchingStudy, compare, mean_of, measure, variants
from training.report.matching_tables import by_halves, in_tenths, spread
from training.report.page import finish

SWEEPS: dict[str, Sequence[Any]] = {
    "contrastive_weight": (0.0, 0.02, 0.1, 0.3),
    "contrastive_temperature": (0.05, 0.1, 0.2, 0.5),
    "correlation_alpha": (0.0, 0.5, 0.9, 0.99, 1.0),
    "correlation_every": (1, 5, 20, 100),
    "grouping_temperature": (0.0, 0.5, 1.0, 4.0),
}
"""lambda, tau, alpha, k and T_g, each around the settings' own value."""
TFIDF, POPULARITY = "TF-IDF of attributes", "popularity"
DRAWN = (FULL, "no contrast", "BPR only", TFIDF, POPULARITY)

FEW, MANY = ": of so few there is little to group, and of two each view has one whatever their correlation", 4


@dataclass(frozen=True)
class MatchingScope:
    """How much a report covers. seeds: trainings of each variant; sweeps: whether `SWEEPS` are trained too."""

    seeds: int = 3
    sweeps: bool = False


class MatchingReport:
    """A report as it grows: Markdown in `text`, figures in `numbers`, pictures in `folder`."""

    def __init__(self, study: MatchingStudy, folder: Path, scope: MatchingScope) -> None:
        self.study, self.folder, self.scope = study, folder, scope
        self.tasks = study.tasks  # fails early without listens
        self.figure = f"R@{max(study.protocol.cuts)}"
        self.text: list[str] = []
        self.numbers: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> Path:
        """Train what is missing, measure, draw, and write README.md; return it."""
        runs = {name: self._runs(name, config) for name, config in variants(self.study.config).items()}
        found = {name: mean_of(its) for name, its in runs.items()}
        fixed = self._baselines()
        self._opening(int(found[FULL]["fields"][0]))
        self._ablation(fixed | found, runs)
        self._by_popularity(fixed | found)
        if self.scope.sweeps:
            self._sweeps(found[FULL])
        return finish(self.folder, self.text, self.numbers)

    def _runs(self, name: str, config: BclConfig) -> list[Figures]:
        return self.study.runs(name, config, self.scope.seeds)

    def _baselines(self) -> dict[str, Figures]:
        """What needs no training: popularity, words, and the content's own vectors."""
        tracks, tasks = self.study.dataset.tracks, self.tasks
        alone = evaluate_matching({POPULARITY: baselines.popularity(tasks.warm)}, tasks.test).method(POPULARITY)
        found = {POPULARITY: dict(alone.per_query)}
        found[TFIDF] = measure(inner_product(baselines.tfidf_of(tracks)), tasks)
        if self.study.content:
            joined = np.concatenate([filled(rows) for rows in self.study.content.values()], axis=1)
            found[f"content kNN ({', '.join(self.study.content)})"] = measure(inner_product(unit(joined)), tasks)
        return found

    def _opening(self, fields: int) -> None:
        dataset, config, task = self.study.dataset, self.study.config, self.tasks.test
        listens = dataset.listens
        assert listens is not None  # `tasks` has looked
        split = dataset.track_split
        prior = (
            f"The popularity prior adds w ln(1 + training listeners of the candidate); {len(self.tasks.valid.queries)} "
            "validation tracks choose w for each training by itself, as they choose the epoch."
            if self.tasks.valid
            else "No validation track shares listeners with a training track: the last epoch is taken, and there is no "
            "popularity prior."
        )
        seeds = self.scope.seeds
        self.text += [
            "# BCL: report",
            f"{(split == TRAIN).sum()} training and {(split == VALID).sum()} validation tracks; {len(task.queries)} "
            f"cold test tracks are the queries, {len(task.candidates)} training tracks the candidates, the truth is up "
            f"to {task.protocol.truth} with the most similar audience by all of {len(listens.listener_ids)} listeners. "
            f"Supervised loss: {config.supervised}, pairs by {config.pairs}, contrast weighs "
            f"{config.contrastive_weight}. {fields} embedded fields{FEW if fields < MANY else ''}. Read besides "
            f"attributes: {', '.join(self.study.content) or 'nothing'}. "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}; data {dataset.fingerprint[:16]}.",
            f"Only listens of training tracks are learnt from. {prior}",
            "A figure is the mean over seeds for each query. Intervals are 95 % bootstraps over queries; the spread "
            "over seeds is not in them, and stands beside them. Differences are taken query by query.",
        ]

    def _ablation(self, methods: Mapping[str, Figures], runs: Mapping[str, Sequence[Figures]]) -> None:
        for prior in (False, True):
            found = compare(methods, self.tasks, prior)
            if not any(method.method == FULL for method in found.methods):
                continue
            key = f"{'prior ' * prior}{self.figure}"
            beside = spread(runs, key, FULL)
            if prior:
                beside["mean w"] = {name: float(its["weight"][0]) for name, its in methods.items() if "weight" in its}
            self._keep(f"ablation{', prior' * prior}", found, beside)
            title = f"## Ablation{', with the popularity prior' * prior}"
            self.text += [title, tables.compared(found, FULL, beside)]

    def _by_popularity(self, methods: Mapping[str, Figures]) -> None:
        listeners, found = self.tasks.listeners, compare(methods, self.tasks)
        self.text += [
            "## By the query's listeners",
            "Tail: at most the median number of listeners, counted on all listens; head: more. Tenths of the queries: "
            "equal numbers stay together.",
            "![By popularity](popularity.png)",
        ]
        for figure in found.methods[0].figures:
            told = in_tenths(found, listeners, figure)
            self.text += [by_halves(found, listeners, FULL, figure), tables.by_part(told)]
        parts = deciles(listeners)
        values = {
            method.method: [method.per_query[self.figure][its].mean() for its in parts.values()]
            for method in found.methods
            if method.method in DRAWN
        }
        labels = ("listeners of the query", self.figure)
        figures.by_part(values, list(parts), labels, self.folder / "popularity.png")

    def _sweeps(self, full: Figures) -> None:
        points: dict[str, list[tuple[str, Any]]] = {}
        for setting, values in SWEEPS.items():
            own = getattr(self.study.config, setting)
            points[setting] = []
            for value in sorted({*values, own}):
                config = replace(self.study.config, **{setting: value})
                its = mean_of(self._runs(f"{setting} = {value}", config))
                points[setting].append((f"{value:g}", paired_difference(its[self.figure], full[self.figure])))
        label = f"{self.figure} minus {FULL}"
        figures.sweeps(points, label, self.folder / "sweeps.png")
        rows = [
            [setting, value, "" if float(value) == getattr(self.study.config, setting) else tables.signed(found)]
            for setting, its in points.items()
            for value, found in its
        ]
        self.numbers["sweeps"] = {
            setting: {value: found.to_json() for value, found in its} for setting, its in points.items()
        }
        self.text += ["## Sweeps", "![Sweeps](sweeps.png)", tables.table(["setting", "value", label], rows)]

    def _keep(self, name: str, found: Evaluation, beside: Mapping[str, Mapping[str, float]]) -> None:
        others = [method.method for method in found.methods if method.method != FULL]
        keys = list(found.methods[0].figures)
        minus = {other: {key: found.difference(other, FULL, key).to_json() for key in keys} for other in others}
        self.numbers[name] = found.to_json() | {f"minus {FULL}": minus, **beside}


def write_matching_report(study: MatchingStudy, folder: Path, scope: MatchingScope, progress: Progress) -> Path:
    """Write the report of BCL on a data set; returns its README.md. Raises what training and evaluation raise."""
    path = MatchingReport(study, folder, scope).write()
    progress.say(f"the report is {path}")
    return path
