"""Distance correlation, grouping, augmentation and the two losses against their equations in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from training.bcl.augment import OPERATORS, augment
from training.bcl.correlation import CorrelationTracker, distance_correlation
from training.bcl.grouping import EPSILON, group_size, sample_groups
from training.bcl.losses import bpr, nt_xent


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_correlation(x, y):
    """Szekely and Rizzo's bias-corrected distance correlation of two samples [n, d], entry by entry."""
    n = len(x)
    centred = []
    for sample in (x, y):
        d = [[math.dist(a, b) for b in sample] for a in sample]
        total = sum(map(sum, d))
        centred.append(
            [
                [
                    0.0 if m == k else d[m][k] - sum(d[m]) / (n - 2) - sum(d[k]) / (n - 2) + total / ((n - 1) * (n - 2))
                    for k in range(n)
                ]
                for m in range(n)
            ]
        )
    products = [
        sum(a * b for r, s in zip(p, q, strict=True) for a, b in zip(r, s, strict=True))
        for p, q in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))
    ]
    return products[0] / math.sqrt(products[1] * products[2])


@pytest.mark.parametrize("seed", range(3))
def test_correlation_agrees_with_the_loop(seed):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((20, 3))
    fields = np.stack(
        [base, base @ rng.standard_normal((3, 3)) + 0.5 * rng.standard_normal((20, 3)), rng.random((20, 3))],
        1,
    )
    found = distance_correlation(torch.tensor(fields)).numpy()
    for a, b in itertools.product(range(3), repeat=2):
        expected = 1.0 if a == b else max(0.0, reference_correlation(fields[:, a], fields[:, b]))
        assert found[a, b] == pytest.approx(expected, abs=1e-6), f"seed {seed}"


def test_independent_fields_do_not_correlate_and_dependent_ones_do():
    rng = np.random.default_rng(4)
    base = rng.standard_normal((256, 16))
    fields = np.stack([base, rng.standard_normal((256, 16)), -2 * base], 1)
    found = distance_correlation(torch.tensor(fields))
    assert found[0, 1] < 0.03
    assert found[0, 2] == pytest.approx(1.0, abs=1e-5)
    bent = distance_correlation(torch.tensor(np.stack([base[:, :1], base[:, :1] ** 2], 1)))
    assert bent[0, 1] > 0.15  # not linear, still dependent


def test_a_field_that_says_nothing_correlates_with_nothing():
    fields = torch.randn(50, 3, 4, generator=generator())
    fields[:, 1] = 0.25
    found = distance_correlation(fields)
    assert found[1].tolist() == [0.0, 1.0, 0.0]
    assert torch.isfinite(found).all()
    with pytest.raises(ValueError, match="4 items"):
        distance_correlation(fields[:3])


def test_rounding_correlates_with_nothing():
    """U is 0 where one item differs from all others, and where all are equally far from one another."""
    items, noise = 256, generator(3)
    fields = torch.randn(1, 6, 32, generator=noise).repeat(items, 1, 1)
    fields[5, 0], fields[5, 1], fields[9, 2] = torch.randn(3, 32, generator=noise)
    fields[:, 3] = torch.randn(items, 32, generator=noise)
    assert torch.equal(distance_correlation(fields), torch.eye(6))
    corners = torch.eye(32).unsqueeze(1).repeat(1, 2, 1)
    corners[:, 1] = corners[torch.randperm(32, generator=noise), 1]
    assert torch.equal(distance_correlation(corners), torch.eye(2))


def test_the_tracker_moves_every_few_steps_by_the_moving_average():
    samples = [torch.randn(40, 3, 4, generator=generator(n)) for n in range(3)]
    tracker = CorrelationTracker(samples[0], alpha=0.9, every=2)
    first = distance_correlation(samples[0])
    assert not tracker.due()
    assert tracker.due()
    tracker.update(samples[1])
    assert torch.allclose(tracker.matrix, 0.9 * first + 0.1 * distance_correlation(samples[1]))
    static = CorrelationTracker(samples[0], alpha=1.0, every=1)
    assert not any(static.due() for _ in range(5))


def exact_inclusion(weights, seed, size):
    """Probability of each field to be in the group: every order of drawing without replacement, enumerated."""
    others = [f for f in range(len(weights)) if f != seed]
    included = np.zeros(len(weights))
    included[seed] = 1.0
    for order in itertools.permutations(others, size - 1):
        left, probability = sum(weights[f] for f in others), 1.0
        for f in order:
            probability *= weights[f] / left
            left -= weights[f]
        for f in order:
            included[f] += probability
    return included


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("fields", [5, 6])
def test_inclusion_frequencies_are_the_exact_probabilities(temperature, fields):
    rng = np.random.default_rng(fields)
    correlation = rng.random((fields, fields))
    correlation = (correlation + correlation.T) / 2
    np.fill_diagonal(correlation, 1.0)
    draws = 40_000
    for seed in range(fields):
        groups = sample_groups(torch.tensor(correlation), torch.full((draws,), seed), temperature, generator(seed))
        expected = exact_inclusion((correlation[seed] + EPSILON) ** (1 / temperature), seed, group_size(fields))
        found = groups.double().mean(0).numpy()
        tolerance = 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9
        assert (np.abs(found - expected) < tolerance).all()


def test_groups_have_half_the_fields_and_always_the_seed():
    seeds = torch.arange(7).repeat(30)
    groups = sample_groups(torch.rand(7, 7, generator=generator()), seeds, 1.0, generator(1))
    assert (groups.sum(1) == 4).all()
    assert groups[torch.arange(len(seeds)), seeds].all()


def test_no_temperature_takes_the_most_correlated_and_a_constant_matrix_is_random():
    correlation = torch.tensor([[1.0, 0.9, 0.1, 0.5], [0.9, 1.0, 0.2, 0.3], [0.1, 0.2, 1.0, 0.8], [0.5, 0.3, 0.8, 1.0]])
    sharp = sample_groups(correlation, torch.tensor([0, 2]), 0.0, generator())
    assert sharp.tolist() == [[True, True, False, False], [False, False, True, True]]
    even = sample_groups(torch.ones(4, 4), torch.zeros(30_000, dtype=torch.int64), 1.0, generator())
    assert even.double().mean(0)[1:].tolist() == pytest.approx([1 / 3] * 3, abs=0.015)


def test_masks_hide_a_fifth_and_a_span_is_cyclic():
    view = torch.ones(200, 40)
    random, span = (OPERATORS[name](view, generator()) for name in ("random_mask", "span_mask"))
    assert ((random == 0).sum(1) == 8).all()
    assert ((span == 0).sum(1) == 8).all()
    edges = (span != span.roll(1, 1)).sum(1)
    assert (edges == 2).all()  # one span around the circle
    assert ((span[:, 0] == 0) & (span[:, -1] == 0)).any()  # some wrap
    assert (random != random.roll(1, 1)).sum(1).float().mean() > 8


def test_noise_follows_the_spread_of_each_dimension():
    view = torch.randn(500, 4, generator=generator()) * torch.tensor([1.0, 10.0, 0.0, 3.0])
    noise = OPERATORS["uniform_noise"](view, generator(1)) - view
    bound = 0.1 * view.std(0, unbiased=False)
    assert (noise.abs() <= bound + 1e-6).all()
    assert noise[:, 2].abs().max() == 0
    assert noise.std(0)[[0, 1, 3]].tolist() == pytest.approx((bound / math.sqrt(3))[[0, 1, 3]].tolist(), rel=0.1)


def test_each_row_gets_one_operator():
    view = torch.full((900, 40), 2.0)
    view[::2] = 3.0  # so that the noise has a spread
    out = augment(view, tuple(OPERATORS), generator())
    hidden = (out == 0).sum(1)
    noisy = (out != view).all(1)
    assert set(hidden.tolist()) == {0, 8}
    assert 0.25 < noisy.double().mean() < 0.42
    assert ((hidden == 8) != noisy).all()
    assert torch.equal(
        augment(view, ("random_mask",), generator(3)), OPERATORS["random_mask"](view, _after_choice(900, 3))
    )


def _after_choice(rows: int, seed: int) -> torch.Generator:
    state = generator(seed)
    torch.randint(1, (rows, 1), generator=state)
    return state


def unit(seed, *shape):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_bpr(a, p, n, tau):
    terms = [
        math.log(1 / (1 + math.exp(-(a[i] @ p[i] - a[i] @ n[i, m]) / tau)))
        for i in range(len(a))
        for m in range(n.shape[1])
    ]
    return -sum(terms) / len(terms)


def reference_nt_xent(u, v, tau):
    views = np.concatenate([u, v])
    total = 0.0
    for i in range(len(views)):
        other = (i + len(u)) % len(views)
        below = sum(math.exp(views[i] @ views[k] / tau) for k in range(len(views)) if k != i)
        total -= math.log(math.exp(views[i] @ views[other] / tau) / below)
    return total / len(views)


def numeric_gradient(function, x, step=1e-6):
    grad = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        grad[index] = (function(up) - function(down)) / (2 * step)
    return grad


def test_bpr_agrees_with_its_equation_forward_and_backward():
    a, p, n, tau = unit(1, 4, 5), unit(2, 4, 5), unit(3, 4, 3, 5), np.array(0.13)
    tensors = [torch.tensor(x, requires_grad=True) for x in (a, p, n, tau)]
    loss = bpr(*tensors)
    loss.backward()
    assert loss.item() == pytest.approx(reference_bpr(a, p, n, tau), abs=1e-12)
    arrays = [a, p, n, tau]
    for place, tensor in enumerate(tensors):

        def of(x, place=place):
            return reference_bpr(*[x if q == place else y for q, y in enumerate(arrays)])

        assert tensor.grad.numpy() == pytest.approx(numeric_gradient(of, arrays[place]), abs=1e-7)


def test_nt_xent_agrees_with_its_equation_forward_and_backward():
    u, v = unit(4, 5, 6), unit(5, 5, 6)
    tensors = [torch.tensor(x, requires_grad=True) for x in (u, v)]
    loss = nt_xent(*tensors, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(reference_nt_xent(u, v, 0.1), abs=1e-10)
    assert tensors[0].grad.numpy() == pytest.approx(
        numeric_gradient(lambda x: reference_nt_xent(x, v, 0.1), u), abs=1e-6
    )
    assert tensors[1].grad.numpy() == pytest.approx(
        numeric_gradient(lambda x: reference_nt_xent(u, x, 0.1), v), abs=1e-6
    )


def test_losses_are_least_where_they_should_be():
    same = torch.tensor(unit(6, 8, 16))
    assert nt_xent(same, same, 0.1) < nt_xent(same, same.roll(1, 0), 0.1)
    assert bpr(same, same, -same[:, None], 0.1) < 1e-6
    assert bpr(same, same, same[:, None], 0.1).item() == pytest.approx(math.log(2))
