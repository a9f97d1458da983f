"""The outcome of an experiment as Markdown for people and as JSON for programs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.experiment.events import Effective, Tally
from training.experiment.outcome import Arm, Draws, Measure, measures
from training.experiment.plan import ARMS, Plan
from training.experiment.statistics import LEVEL, MISMATCH, Interval, mismatch_test

_SET_ASIDE = {
    "other_tracks": "of other tracks",
    "early": "before the plan's start",
    "repeated": "repeated",
    "outside": "by listeners outside the plan",
}


@dataclass(frozen=True)
class Reading:
    """A plan with what its listeners did, compared; `clusters` is empty unless asked for."""

    plan: Plan
    tally: Tally
    rule: Effective
    drawn: Draws
    whole: list[Measure]
    clusters: dict[int | None, list[Measure]]
    mismatch: float

    @classmethod
    def of(cls, plan: Plan, tally: Tally, rule: Effective, drawn: Draws, *, by_cluster: bool) -> "Reading":
        """Compare the arms, and those of each cluster too when `by_cluster`."""
        parts = plan.clusters() if by_cluster else {}
        clusters = {key: measures(plan, tally, drawn, places) for key, places in parts.items()}
        whole = measures(plan, tally, drawn)
        return cls(plan, tally, rule, drawn, whole, clusters, mismatch_test(plan.sizes, plan.share))

    @property
    def warnings(self) -> list[str]:
        """What makes the figures doubtful, worst first."""
        plan, tally = self.plan, self.tally
        found = []
        if self.mismatch < MISMATCH:
            found.append(
                f"SAMPLE RATIO MISMATCH: {plan.sizes[0]} to {plan.sizes[1]} listeners where {plan.share:g} should be "
                f"treated (p = {self.mismatch:.2g}). The arms are not comparable: find out what was lost before "
                "reading on."
            )
        if plan.planned != len(plan.members):
            found.append(f"plan.csv names {len(plan.members)} listeners, it was made with {plan.planned}.")
        if tally.untimed:
            found.append(f"{tally.untimed} events have no time: early and repeated ones among them were counted.")
        if not tally.counted:
            found.append("No event counts: check the track's id, the listeners' ids and the plan's start.")
        return found

    @property
    def _tests(self) -> int:
        return sum(len(found) for found in (self.whole, *self.clusters.values()))

    def markdown(self) -> str:
        """Return the report as Markdown."""
        plan, tally, rule = self.plan, self.tally, self.rule
        aside = ", ".join(f"{getattr(tally, name)} {what}" for name, what in _SET_ASIDE.items())
        parts = [
            f"# Push experiment {plan.salt!r}, track {plan.track_id!r}",
            *(f"> **WARNING** {warning}" for warning in self.warnings),
            f"{plan.sizes[0]} listeners in treatment, {plan.sizes[1]} in control (planned share {plan.share:g}, "
            f"p of the ratio {_figure(self.mismatch)}). {tally.read} events read, {tally.counted} counted since "
            f"{plan.start.isoformat()}; set aside {aside} ({len(tally.strangers)} listeners).",
            _table(self.whole),
            f"An effective play lasts {rule.seconds:g} s or {rule.completed:.0%} of the track (our definition: the "
            f"paper states none). Intervals hold with {LEVEL:.0%}: Newcombe's and Donner and Zou's for shares, the "
            f"bootstrap over listeners for means; permutation and bootstrap with {self.drawn.draws} draws, seed "
            f"{self.drawn.seed}. The p are not corrected for there being {self._tests}: decide by the first. The "
            "favourite rate compares those who chose to listen; only the other rows are randomised comparisons.",
        ]
        for key, found in self.clusters.items():
            parts += [f"## {'No cluster' if key is None else f'Cluster {key}'}", _table(found)]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data; null where nothing can be said, or an end is infinite."""
        plan, tally = self.plan, self.tally
        return {
            "format": 1,
            "salt": plan.salt,
            "track_id": plan.track_id,
            "start": plan.start.isoformat(),
            "listeners": dict(zip(ARMS, plan.sizes, strict=True)),
            "sample_ratio": {"share": plan.share, "p": _plain(self.mismatch), "mismatch": self.mismatch < MISMATCH},
            "warnings": self.warnings,
            "effective": {"seconds": self.rule.seconds, "completed": self.rule.completed},
            "events": {name: getattr(tally, name) for name in ("read", "counted", *_SET_ASIDE, "untimed")},
            "listeners_outside": len(tally.strangers),
            "level": LEVEL,
            "draws": self.drawn.draws,
            "seed": self.drawn.seed,
            "measures": [_measure(one) for one in self.whole],
            "clusters": {
                "none" if key is None else str(key): [_measure(one) for one in found]
                for key, found in self.clusters.items()
            },
        }


def _table(found: Sequence[Measure]) -> str:
    lines = ["| measure | treatment | control | difference | relative | p | test |", "|---|---|---|---|---|---|---|"]
    for one in found:
        arms = (f"{_figure(arm.value)} ({arm.count} / {arm.of})" for arm in (one.treatment, one.control))
        gaps = (_interval(one.difference), _interval(one.relative, percent=True))
        lines.append(f"| {one.name} | {' | '.join((*arms, *gaps))} | {_figure(one.p)} | {one.test} |")
    return "\n".join(lines)


def _interval(found: Interval, *, percent: bool = False) -> str:
    if math.isnan(found.value):
        return "–"
    value, low, high = (_signed(x, percent) for x in (found.value, found.low, found.high))
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def _signed(value: float, percent: bool) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:+.1%}" if percent else f"{value:+.4f}"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _measure(one: Measure) -> dict[str, Any]:
    return {
        "name": one.name,
        "treatment": _arm(one.treatment),
        "control": _arm(one.control),
        "difference": _ends(one.difference),
        "relative": _ends(one.relative),
        "p": _plain(one.p),
        "test": one.test,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {"value": _plain(arm.value), "count": arm.count, "of": arm.of}


def _ends(found: Interval) -> dict[str, float | None]:
    return {name: _plain(getattr(found, name)) for name in ("value", "low", "high")}


def _plain(value: float) -> float | None:
    return float(f"{value:.8g}") if math.isfinite(value) else None  # a p of 1e-12 is not 0
