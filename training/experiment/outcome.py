"""What came of an experiment: each measure in both arms, its differences, intervals and tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.experiment import statistics
from training.experiment.events import Tally
from training.experiment.plan import TREATMENT, Plan
from training.experiment.statistics import Interval


@dataclass(frozen=True, slots=True)
class Arm:
    """One measure in one arm: count / of."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share or mean; NaN for an empty arm."""
        return self.count / self.of if self.of else float("nan")


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: both arms, treatment - control, treatment / control - 1, and the p of no difference."""

    name: str
    treatment: Arm
    control: Arm
    difference: Interval
    relative: Interval
    p: float
    test: str


@dataclass(frozen=True, slots=True)
class Draws:
    """Of the bootstrap and of the permutation test."""

    draws: int = statistics.DRAWS
    seed: int = statistics.SEED


def measures(plan: Plan, tally: Tally, drawn: Draws, places: Sequence[int] | None = None) -> list[Measure]:
    """Return the measures over the listeners at `places` of the plan (all when None), the paper's first.

    Favourites of effective players compare those who chose to listen, in arms where different people did: it is the
    paper's rate, but no randomised comparison. All others are.
    """
    some = np.arange(len(plan.members)) if places is None else np.asarray(places, np.int64)
    treated = np.array([plan.arms[place] == TREATMENT for place in some], bool)
    effective, favourite = tally.effective[some], tally.favourite[some]
    reached = effective > 0
    return [
        _mean("effective plays per listener", effective, treated, drawn),
        _share("listeners with an effective play, of all", reached, treated),
        _share("favourite rate: effective players who favourited", favourite[reached], treated[reached]),
        _share("listeners who favourited, of all", favourite, treated),
    ]


def _share(name: str, hit: NDArray[np.bool_], treated: NDArray[np.bool_]) -> Measure:
    arms = [Arm(int(hit[part].sum()), int(part.sum())) for part in (treated, ~treated)]
    treatment, control = (statistics.wilson(arm.count, arm.of) for arm in arms)
    p, test = statistics.share_test(*((arm.count, arm.of) for arm in arms))
    difference = statistics.share_difference(treatment, control)
    return Measure(name, *arms, difference, statistics.share_ratio(treatment, control), p, test)


def _mean(name: str, plays: NDArray[np.int64], treated: NDArray[np.bool_], drawn: Draws) -> Measure:
    parts = plays[treated], plays[~treated]
    arms = [Arm(int(part.sum()), len(part)) for part in parts]
    difference, relative = statistics.mean_differences(*parts, draws=drawn.draws, seed=drawn.seed)
    p = statistics.mean_test(*parts, draws=drawn.draws, seed=drawn.seed)
    return Measure(name, *arms, difference, relative, p, "permutation")
