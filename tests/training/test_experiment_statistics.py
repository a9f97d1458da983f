"""Intervals and tests against scipy, the literature and brute force; error rates on simulated experiments."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from training.experiment.statistics import (
    Interval,
    detectable,
    mean_differences,
    mean_test,
    mismatch_test,
    share_difference,
    share_ratio,
    share_test,
    wilson,
)

CELLS = [(0, 1), (0, 30), (3, 17), (15, 30), (29, 30), (30, 30), (412, 5000)]


@pytest.mark.parametrize(("successes", "n"), CELLS)
def test_shares_have_the_score_interval(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert (found.value, found.low, found.high) == pytest.approx(
        (successes / n, expected.low, expected.high), abs=1e-12
    )
    assert found.low <= found.value <= found.high


def test_the_difference_is_that_of_newcombes_examples():
    """Newcombe (1998), table II, method 10: (a), (c) and (e)."""
    for (treated, control), (low, high) in {
        ((56, 70), (48, 80)): (0.0524, 0.3339),
        ((6, 7), (2, 7)): (0.0582, 0.8062),
        ((0, 10), (0, 20)): (-0.1611, 0.2775),
    }.items():
        found = share_difference(wilson(*treated), wilson(*control))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_ratio_is_near_that_of_the_logarithm_where_arms_are_large():
    found = share_ratio(wilson(560, 7000), wilson(480, 8000))
    other = stats.contingency.relative_risk(560, 7000, 480, 8000).confidence_interval(0.95)
    assert (found.low + 1, found.high + 1) == pytest.approx((other.low, other.high), rel=2e-3)
    assert found.value == pytest.approx(560 / 7000 / 0.06 - 1)


@pytest.mark.parametrize(("treated", "control"), list(itertools.product(CELLS, CELLS)))
def test_intervals_hold_their_value_and_the_ratio_agrees_with_the_difference(treated, control):
    """Both are recovered from the same Wilson limits, so they tell the arms apart together."""
    t, c = wilson(*treated), wilson(*control)
    difference, ratio = share_difference(t, c), share_ratio(t, c)
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    if not treated[0] and not control[0]:
        assert math.isnan(ratio.value)
        return
    assert -1 <= ratio.low <= ratio.value <= ratio.high
    assert (ratio.low > 0) == (difference.low > 1e-12)
    assert (ratio.high < 0) == (difference.high < -1e-12)


def test_the_ratio_stays_sound_where_its_denominator_vanishes():
    """2c - u passes zero near two in ten: no jump there."""
    low = [share_ratio(Interval(0.5, 0.4, 0.6), Interval(c, 0.05, 0.4)).low for c in (0.2 - 1e-9, 0.2, 0.2 + 1e-9)]
    assert low == pytest.approx([low[0]] * 3, abs=1e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (0, 10)])
def test_of_nothing_nothing_is_said(successes, n):
    treated, control = wilson(successes, n), wilson(0, 10)
    assert math.isnan(share_ratio(treated, control).value)
    assert math.isnan(share_test((successes, n), (0, 10))[0])
    assert math.isnan(mean_test([], [1, 2]))
    assert math.isnan(mean_differences([], [1, 2])[0].value)
    assert math.isnan(mean_differences([0, 0], [0, 0])[1].value)
    ratio = mean_differences([1, 2], [0, 0])[1]
    assert ratio.value == math.inf
    assert math.isnan(ratio.low)  # no resample of nothing can tell the ends
    assert math.isnan(ratio.high)
    for control in ([0, 0], [1, 1, 1]):
        difference, _ = mean_differences([0, 0], control)
        assert difference.value == -control[0]
        assert math.isnan(difference.low)  # resamples of what never varies would say: for certain
        assert math.isnan(difference.high)
    assert math.isnan(mismatch_test((0, 0), 0.5))
    assert math.isnan(detectable(0.1, 0, 10))


def test_few_are_tested_exactly_and_many_by_chi_square():
    p, name = share_test((1, 20), (6, 20))
    assert (p, name) == (pytest.approx(stats.fisher_exact([[1, 19], [6, 14]]).pvalue), "Fisher exact")
    p, name = share_test((130, 1000), (100, 1000))
    pooled = 230 / 2000
    z = 0.03 / math.sqrt(pooled * (1 - pooled) * 2 / 1000)
    assert (p, name) == (pytest.approx(2 * stats.norm.sf(z)), "chi-square")


def test_the_permutation_test_agrees_with_all_deals():
    treated, control = [0, 3, 1, 5], [0, 0, 1, 0, 2]
    whole = np.array(treated + control)
    gaps = []
    for chosen in itertools.combinations(range(9), 4):
        dealt = np.isin(np.arange(9), chosen)
        gaps.append(whole[dealt].mean() - whole[~dealt].mean())
    observed = np.mean(treated) - np.mean(control)
    exact = np.mean(np.abs(np.array(gaps) - np.mean(gaps)) >= abs(observed - np.mean(gaps)) - 1e-9)
    assert mean_test(treated, control, draws=200_000) == pytest.approx(exact, abs=5 * math.sqrt(exact / 200_000))
    assert mean_test([1] * 50, [0] * 50, draws=999) == pytest.approx(1 / 1000)
    assert mean_test([2, 2], [2, 2]) == 1


def test_the_bootstrap_agrees_with_resampling_listener_by_listener():
    rng = np.random.default_rng(4)
    treated, control = rng.poisson(0.7, 200), rng.poisson(0.5, 150)
    draws = [(rng.choice(treated, 200).mean(), rng.choice(control, 150).mean()) for _ in range(20_000)]
    t, c = np.array(draws).T
    difference, ratio = mean_differences(treated, control)
    assert (difference.low, difference.high) == pytest.approx(np.quantile(t - c, [0.025, 0.975]), abs=0.012)
    assert (ratio.low, ratio.high) == pytest.approx(np.quantile(t / c - 1, [0.025, 0.975]), abs=0.04)
    assert difference.value == treated.mean() - control.mean()
    assert mean_differences(treated, control) == (difference, ratio)
    assert mean_differences(treated, control, seed=1) != (difference, ratio)


def test_arms_filled_otherwise_than_planned_are_noticed():
    assert mismatch_test((5000, 5000), 0.5) == 1
    assert mismatch_test((5100, 4900), 0.5) == pytest.approx(2 * stats.norm.sf(2.0))
    assert mismatch_test((5300, 4700), 0.5) < 0.001
    assert mismatch_test((2000, 8000), 0.2) == 1


def test_the_detectable_rise_is_found_with_the_power_that_was_asked_for():
    rng = np.random.default_rng(21)
    for base, treated, control in ((0.05, 2000, 2000), (0.3, 500, 1500)):
        rise = detectable(base, treated, control)
        hits = rng.binomial(treated, base + rise, 1500), rng.binomial(control, base, 1500)
        found = np.mean(
            [share_test((int(t), treated), (int(c), control))[0] < 0.05 for t, c in zip(*hits, strict=True)]
        )
        print(f"seed 21: power {found:.3f} for a rise of {rise:.4f} from {base}")
        assert 0.75 < found < 0.85
    assert detectable(0.05, 8000, 8000) < detectable(0.05, 2000, 2000)
    assert math.isnan(detectable(0.5, 2, 2))


def test_arms_that_do_not_differ_are_told_apart_in_one_case_of_twenty():
    """A/A: 600 experiments a measure; five standard deviations are 4.4 %. And A/B: a true rise is found."""
    rng = np.random.default_rng(35)
    n, runs = 400, 600
    alike = {"mean": 0, "share": 0, "outside difference": 0, "outside ratio": 0}
    for _ in range(runs):
        # A few listeners play much: no normal distribution.
        plays = rng.negative_binomial(0.3, 0.3, 2 * n)
        treated, control = plays[:n], plays[n:]
        cells = [(int((part > 0).sum()), n) for part in (treated, control)]
        difference, ratio = mean_differences(treated, control, draws=400)
        alike["mean"] += mean_test(treated, control, draws=400) < 0.05
        alike["share"] += share_test(*cells)[0] < 0.05
        alike["outside difference"] += not difference.low <= 0 <= difference.high
        alike["outside ratio"] += not ratio.low <= 0 <= ratio.high
    rates = {name: count / runs for name, count in alike.items()}
    print("seed 35: false positives", rates)
    assert all(0.01 < rate < 0.095 for rate in rates.values())
    found = 0
    for _ in range(100):
        treated, control = rng.negative_binomial(0.3, 0.2, n), rng.negative_binomial(0.3, 0.3, n)
        found += mean_test(treated, control, draws=400) < 0.05
    print(f"seed 35: a rise by 71 % is found in {found} of 100")
    assert found > 70
