"""The statistics of a two-arm experiment: intervals, tests, sample-ratio mismatch, detectable effect.

Counts a listener are few different whole numbers, so arms are kept as how many listeners have which count:
resampling listeners is then a multinomial draw, and dealing them out anew a hypergeometric one, both exact.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
MISMATCH = 0.001
"""A sample ratio less likely than this says that the arms were not filled as planned."""
DRAWS = 10_000
SEED = 20230430
_Z = float(stats.norm.ppf(0.5 + LEVEL / 2))


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the ends of its 95 % interval; NaN (or an infinite end) where nothing can be said."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Return the share successes / n with Wilson's score interval (1927); all NaN for n = 0."""
    if not n:
        return Interval(math.nan, math.nan, math.nan)
    share, z2 = successes / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not push an end past the share itself.
    return Interval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def share_difference(treated: Interval, control: Interval) -> Interval:
    """Return treated - control with Newcombe's interval (1998, method 10) from the shares' own (Wilson)."""
    t, c = treated, control
    low = math.hypot(t.value - t.low, c.high - c.value)
    high = math.hypot(t.high - t.value, c.value - c.low)
    difference = t.value - c.value
    return Interval(difference, difference - low, difference + high)


def share_ratio(treated: Interval, control: Interval) -> Interval:
    """Return treated / control - 1 with Donner and Zou's interval (2012) from the shares' own (Wilson).

    Without a success in the control arm the ratio is infinite, its lower end is not; NaN without successes at all.
    """
    t, c = treated, control
    if math.isnan(t.value) or math.isnan(c.value) or not (t.value or c.value):
        return Interval(math.nan, math.nan, math.nan)
    product = t.value * c.value
    inner_low = max(0.0, product**2 - t.low * c.high * (2 * t.value - t.low) * (2 * c.value - c.high))
    inner_high = max(0.0, product**2 - t.high * c.low * (2 * t.value - t.high) * (2 * c.value - c.low))
    # 2c - u can be negative for a rare success; its product with the root's difference stays sound.
    below, above = c.high * (2 * c.value - c.high), c.low * (2 * c.value - c.low)
    if abs(below) > 1e-12:
        low = (product - math.sqrt(inner_low)) / below
    else:
        low = t.low * (2 * t.value - t.low) / (2 * product) if product else 0.0
    high = (product + math.sqrt(inner_high)) / above if above > 0 else math.inf
    value = t.value / c.value if c.value else math.inf
    return Interval(value - 1, max(0.0, low) - 1, high - 1)


def share_test(treated: tuple[int, int], control: tuple[int, int]) -> tuple[float, str]:
    """Return the two-sided p of equal shares and the test's name, from (successes, n) of each arm.

    Pearson's chi-square; Fisher's exact test where a cell expects fewer than 5. NaN where nothing varies.
    """
    table = np.array([[k, n - k] for k, n in (treated, control)])
    if (table.sum(0) == 0).any() or (table.sum(1) == 0).any():
        return math.nan, "none"
    if stats.contingency.expected_freq(table).min() < 5:
        return float(stats.fisher_exact(table).pvalue), "Fisher exact"
    return float(stats.chi2_contingency(table, correction=False).pvalue), "chi-square"


def mean_differences(
    treated: ArrayLike, control: ArrayLike, *, draws: int = DRAWS, seed: int = SEED
) -> tuple[Interval, Interval]:
    """Return the difference of the means of two arms, and treated / control - 1, by bootstrap over listeners.

    `treated` and `control` [n] hold one whole number a listener. Percentile intervals of `draws` resamples; a resample
    whose control has nothing has an infinite ratio; where the control itself has nothing the ratio has no ends (NaN),
    because no resample could tell them, nor has either figure where all listeners of each arm count the same. All NaN
    for an empty arm.
    """
    values, arms = _tallied(treated, control)
    sizes = arms.sum(1)
    if not sizes.all():
        return Interval(math.nan, math.nan, math.nan), Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    t, c = (rng.multinomial(n, arm / n, draws) @ values / n for arm, n in zip(arms, sizes, strict=True))
    means = arms @ values / sizes
    ratios = np.divide(t, c, out=np.full(draws, np.inf), where=c > 0) - 1
    unknown = (math.nan, math.nan)
    varies = bool(((arms > 0).sum(1) > 1).any())
    difference = Interval(float(means[0] - means[1]), *(_ends(t - c) if varies else unknown))
    if not means[1]:
        return difference, Interval(math.inf if means[0] else math.nan, *unknown)
    return difference, Interval(float(means[0] / means[1]) - 1, *(_ends(ratios) if varies else unknown))


def mean_test(treated: ArrayLike, control: ArrayLike, *, draws: int = DRAWS, seed: int = SEED) -> float:
    """Return the two-sided p of equal means by dealing the listeners out anew `draws` times.

    p = (1 + deals at least as far apart) / (1 + draws), which never is 0 (Phipson and Smyth 2010). NaN for an
    empty arm.
    """
    values, arms = _tallied(treated, control)
    whole, size = arms.sum(0), int(arms[0].sum())
    if not size or size == whole.sum():
        return math.nan
    dealt = _deals(whole, size, draws, np.random.default_rng(seed)) @ values
    expected = size * float(whole @ values) / float(whole.sum())
    far = np.abs(dealt - expected) >= abs(float(arms[0] @ values) - expected) - 1e-9
    return float((1 + far.sum()) / (1 + draws))


def mismatch_test(sizes: tuple[int, int], share: float) -> float:
    """Return the chi-square p of arms of these `sizes` (treated, control) when `share` should be treated."""
    n = sum(sizes)
    if not n:
        return math.nan
    return float(stats.chisquare(sizes, [n * share, n * (1 - share)]).pvalue)


def detectable(base: float, treated: int, control: int, *, power: float = POWER) -> float:
    """Return the smallest rise of a share from `base` that a two-sided test at 5 % finds with `power`.

    Normal approximation with the pooled variance under equality (Fleiss, Levin and Paik 2003, 4.2). NaN when
    even a rise to 1 would be missed.
    """
    if not treated or not control:
        return math.nan

    def margin(rise: float) -> float:
        share = base + rise
        pooled = (treated * share + control * base) / (treated + control)
        equal = math.sqrt(pooled * (1 - pooled) * (1 / treated + 1 / control))
        apart = math.sqrt(share * (1 - share) / treated + base * (1 - base) / control)
        return rise - _Z * equal - float(stats.norm.ppf(power)) * apart

    highest = 1 - base
    return float(optimize.brentq(margin, 0.0, highest)) if margin(highest) > 0 else math.nan


def _tallied(treated: ArrayLike, control: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values [k] that occur, and how often in each arm [2, k]."""
    arms = [np.asarray(arm, np.int64) for arm in (treated, control)]
    values, place = np.unique(np.concatenate(arms), return_inverse=True)
    cut = len(arms[0])
    counts = [np.bincount(part, minlength=len(values)) for part in (place[:cut], place[cut:])]
    return values, np.array(counts)


def _deals(whole: NDArray[np.int64], size: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.multivariate_hypergeometric(whole, size, draws, method="marginals")


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    # Values that occurred: between a finite and an infinite one there is nothing to interpolate.
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)
