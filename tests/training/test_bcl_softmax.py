"""The sampled softmax of BCL: its equation, its candidates counted by hand and by drawing, and a training with it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from index.models.fields import FieldSet, FieldSpec
from index.tracks.track import Track
from training.bcl.candidates import CandidatePool
from training.bcl.config import BclConfig
from training.bcl.losses import sampled_softmax
from training.bcl.model import Bcl
from training.bcl.similarity import listen_matrix
from training.bcl.supervision import ItemPairs, item_pairs
from training.bcl.task import BclTask

TRACKS, TRAIN = 40, np.arange(30)


def pairs(seed: int = 0) -> ItemPairs:
    """Two audiences over 40 tracks, of which the last ten are cold."""
    rng = np.random.default_rng(seed)
    half = np.arange(TRACKS) % 2
    heard = rng.random((60, TRACKS)) < np.where(rng.integers(0, 2, 60)[:, None] == half, 0.3, 0.03)
    listener, row = np.nonzero(heard)
    listens = listen_matrix(listener, row, heard.shape, np.isin(np.arange(TRACKS), TRAIN))
    return item_pairs(listens, TRAIN, top=5, min_common=2)


def unit(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(anchor, candidates, target, left_out, log_share, tau):
    """-mean log( exp(l_it) / sum_c exp(l_ic) ), one pair at a time."""
    total = 0.0
    for i, z in enumerate(anchor):
        kept = [c for c in range(len(candidates)) if c == target[i] or not left_out[i, c]]
        logits = {c: z @ candidates[c] / tau - log_share[c] for c in kept}
        total -= logits[target[i]] - math.log(sum(math.exp(x) for x in logits.values()))
    return total / len(anchor)


def test_the_loss_is_its_equation_forward_and_backward():
    anchor, candidates, tau = unit(1, 4, 5), unit(2, 7, 5), 0.2
    target, log_share = np.array([0, 3, 3, 6]), np.log(np.linspace(0.1, 0.9, 7))
    left_out = np.random.default_rng(3).random((4, 7)) < 0.4
    tensors = [torch.tensor(x, requires_grad=True) for x in (anchor, candidates)]
    rest = [torch.from_numpy(x) for x in (target, left_out, log_share)]
    loss = sampled_softmax(*tensors, *rest, tau)
    loss.backward()
    assert loss.item() == pytest.approx(reference(anchor, candidates, target, left_out, log_share, tau), abs=1e-12)
    for place in np.ndindex(*anchor.shape):
        moved = [anchor.copy(), anchor.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (reference(x, candidates, target, left_out, log_share, tau) for x in moved)
        assert tensors[0].grad[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-7)


def test_no_neighbour_and_no_anchor_is_a_negative():
    made = pairs()
    rng = np.random.default_rng(1)
    anchor, positive, _ = made.draw(25, 0, rng)
    drawn = made.negatives[rng.integers(0, len(made.negatives), 20)]
    found = CandidatePool(made, 25, 20).of(anchor, positive, drawn)
    assert found.rows.tolist() == sorted({*positive.tolist(), *drawn.tolist()})
    assert found.rows[found.target].tolist() == positive.tolist()
    for i, track in enumerate(anchor):
        near = made.neighbours.of(int(np.flatnonzero(made.anchors == track)[0]))
        assert found.left_out[i].tolist() == [row in near or row == track for row in found.rows]


def test_log_share_is_how_often_a_track_is_a_candidate():
    made, batch, pool, draws = pairs(), 8, 6, 4000
    seen, rng = np.zeros(TRACKS), np.random.default_rng(2)
    for _ in range(draws):
        _, positive, _ = made.draw(batch, 0, rng)
        seen[np.union1d(positive, made.negatives[rng.integers(0, len(made.negatives), pool)])] += 1
    share = np.exp(CandidatePool(made, batch, pool).log_share)
    # The formula takes the number of times a track is drawn for a Poisson number: a little low where it is likely.
    assert share[TRAIN] == pytest.approx(seen[TRAIN] / draws, abs=0.04)


def test_log_share_is_its_formula_where_the_train_tracks_are_not_the_first():
    """q_c = 1 - exp(-(B p(c) + P / T)), p(c) the chance that a pair's positive is c; T train tracks."""
    heard = np.random.default_rng(5).random((50, TRACKS)) < 0.3
    train = np.arange(12, TRACKS, 2)
    listens = listen_matrix(*np.nonzero(heard), heard.shape, np.isin(np.arange(TRACKS), train))
    made, batch, pool = item_pairs(listens, train, top=4, min_common=2, power=0.75), 16, 9
    positive = dict.fromkeys(train.tolist(), 0.0)
    for number, share in enumerate(made.share):
        near = made.neighbours.of(number).tolist()
        for row in near:
            positive[row] += share / len(near)
    expected = [math.log(1 - math.exp(-(batch * positive[row] + pool / len(train)))) for row in train.tolist()]
    assert CandidatePool(made, batch, pool).log_share[train] == pytest.approx(np.array(expected), abs=1e-6)


def test_a_softmax_task_learns_and_every_step_can_be_repeated():
    made = pairs()
    fields = FieldSet.fit(
        [FieldSpec("genres", "multi", "genres", slots=3), FieldSpec("language", "categorical", "language")],
        tracks := [
            Track(str(i), genres=(f"g{i % 2}", f"h{i % 3}", f"k{i % 5}"), language=str(i % 4)) for i in range(TRACKS)
        ],
        {},
    )
    config = BclConfig(
        fields=fields.specs, field_dims=8, hidden=(16,), dims=8, projected=4, supervised="softmax", batch=16, pool=8,
        items=16, correlation_sample=16, correlation_batch=8, steps=30,
    )  # fmt: skip
    torch.manual_seed(0)
    inputs = {name: torch.from_numpy(array) for name, array in fields.transform(tracks, {}).items()}
    task = BclTask(Bcl(fields, config), inputs, made, None, torch.device("cpu"))
    optimiser, losses = torch.optim.Adam(task.parameters(), 1e-2), []
    for batch, again in zip(task.batches(0), task.batches(0), strict=True):
        loss, figures = task.loss(batch)
        with torch.no_grad():
            # The contrastive part counts steps; the supervised part depends on batch and weights alone.
            assert task.loss(again)[1]["softmax"] == figures["softmax"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        task.after_step()
        losses.append(figures["softmax"])
    assert batch.negative.shape == (8,)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_the_temperature_comes_back_from_outside_its_range():
    fields = FieldSet.fit([FieldSpec("genres", "multi", "genres")], [Track("a", genres=("x",))], {})
    for start, end in ((0.001, 0.01), (50.0, 1.0)):
        model = Bcl(fields, replace(BclConfig(fields=fields.specs), bpr_temperature=start))
        model.keep_temperature()
        assert model.temperature.item() == pytest.approx(end)
        model.temperature.backward()
        assert model.log_temperature.grad.item() == pytest.approx(end)  # no dead end: the gradient is there


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="supervised"):
        BclConfig(supervised="hinge")
