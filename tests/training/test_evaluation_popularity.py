"""Head and tail: the parts cover every query once, and their figures are those of their queries."""

import json

import numpy as np
import pytest

from training.evaluation.estimates import bootstrap
from training.evaluation.popularity import by_popularity, deciles, halves, span, tail_minus_head
from training.evaluation.results import Evaluation, summarise


@pytest.mark.parametrize("seed", range(4))
def test_every_query_is_in_one_tenth_and_one_half_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    listeners = rng.integers(2, 2 + 3 ** (seed + 1), rng.integers(1, 200)).astype(float)
    for parts in (halves(listeners), deciles(listeners)):
        print(seed, {name: int(its.sum()) for name, its in parts.items()})
        assert (np.sum(list(parts.values()), axis=0) == 1).all()
        lows, highs = zip(*((listeners[its].min(), listeners[its].max()) for its in parts.values()), strict=True)
        assert all(high < low for high, low in zip(highs, lows[1:], strict=False))  # equal numbers stay together
    assert len(deciles(listeners)) <= 10
    assert halves(listeners)["tail"].sum() >= len(listeners) / 2


def test_tenths_of_different_numbers_are_tenths() -> None:
    parts = deciles(np.random.default_rng(0).permutation(100).astype(float))
    assert [int(its.sum()) for its in parts.values()] == [10] * 10
    assert next(iter(parts)) == "0-9"
    assert span(np.array([3.0, 3.0])) == "3"


def test_tail_minus_head_is_the_difference_of_means() -> None:
    rng = np.random.default_rng(5)
    listeners = rng.permutation(400).astype(float)
    values = rng.normal(np.where(listeners < 200, 1.0, 0.4), 0.5)
    found = tail_minus_head(values, listeners)
    assert found is not None
    assert found.value == pytest.approx(values[listeners < 200].mean() - values[listeners >= 200].mean())
    # Two independent means: the variances add.
    expected = 1.96 * np.sqrt(sum(values[half].var() / half.sum() for half in halves(listeners).values()))
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)
    assert tail_minus_head(values, np.ones(400)) is None


def test_parts_of_an_evaluation_are_told_below_its_table_and_kept() -> None:
    rng = np.random.default_rng(6)
    listeners, values = rng.integers(1, 30, 60).astype(float), rng.random((2, 60))
    methods = [summarise(name, {"R@5": its, "N@5": its / 2}) for name, its in zip("ab", values, strict=True)]
    found = Evaluation("matching", {}, 60, {"R@5": 0.1}, {}, methods, parts=by_popularity(listeners, 5))
    tail = listeners <= np.median(listeners)
    name = f"tail {span(listeners[tail])}"
    assert found.in_part(name).method("a").figures["N@5"] == bootstrap(values[0][tail] / 2)
    kept = json.loads(json.dumps(found.to_json()))["by listeners"]
    assert kept[name]["queries"] == tail.sum()
    assert kept[name]["methods"]["b"]["R@5"]["value"] == pytest.approx(values[1][tail].mean(), abs=1e-6)
    assert sum(part["queries"] for part in kept.values()) == 120  # once by halves, once by tenths
    lines = found.table().splitlines()
    row = next(line for line in lines[6:] if line.startswith("a "))
    assert float(row.split()[1]) == pytest.approx(values[0][tail].mean(), abs=1e-4)
    assert "R@5 by listeners" in found.table()
    assert "by listeners" not in Evaluation("matching", {}, 60, {}, {}, methods).table()
