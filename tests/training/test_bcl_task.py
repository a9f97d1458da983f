"""One step of BCL: what its two views hold, what its correlations are measured on, what its losses add up to."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from index.models.fields import FieldSet, FieldSpec
from index.tracks.track import Track
from training.bcl.config import BclConfig
from training.bcl.correlation import distance_correlation
from training.bcl.grouping import group_size
from training.bcl.losses import bpr, nt_xent
from training.bcl.model import Bcl
from training.bcl.similarity import listen_matrix
from training.bcl.supervision import item_pairs
from training.bcl.task import Batch, BclTask

TRACKS = 40


def task(**changes) -> BclTask:
    rng = np.random.default_rng(0)
    tracks = [
        Track(str(i), artist=f"a{i % 9}", language=f"l{i % 4}", genres=(f"g{i % 2}", f"h{i % 5}"), duration_s=60.0 + i)
        for i in range(TRACKS)
    ]
    audio = {"audio": rng.standard_normal((TRACKS, 8)).astype(np.float32)}
    fields = FieldSet.fit(
        [
            FieldSpec("artist", "categorical", "artist"),
            FieldSpec("language", "categorical", "language"),
            FieldSpec("genres", "multi", "genres"),
            FieldSpec("duration_s", "numeric", "duration_s"),
            FieldSpec("audio", "dense", "audio", 8),
        ],
        tracks,
        audio,
    )
    heard = rng.random((60, TRACKS)) < 0.3
    pairs = item_pairs(listen_matrix(*np.nonzero(heard), heard.shape), np.arange(TRACKS), top=5)
    config = BclConfig(
        fields=fields.specs, field_dims=8, hidden=(16,), dims=8, projected=4, batch=16, items=20, correlation_sample=30,
        correlation_batch=12, correlation_every=1, negatives=3, contrastive_weight=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    inputs = {name: torch.from_numpy(array) for name, array in fields.transform(tracks, audio).items()}
    return BclTask(Bcl(fields, replace(config, **changes)), inputs, pairs, None, torch.device("cpu"))


def batch_of(made: BclTask) -> Batch:
    return next(made.batches(0))


def as_it_is(view, _names, _generator):
    return view


def test_each_field_of_an_item_is_in_one_view_and_masked_in_the_other(monkeypatch):
    monkeypatch.setattr("training.bcl.task.augment", as_it_is)
    made = task()
    fields = torch.randn(20, 5, 8)
    made.generator.manual_seed(1)
    first, second = (view.view(20, 5, 8) for view in made._views(fields))
    in_first, in_second = ((view == fields).all(2) for view in (first, second))
    assert torch.equal(in_first, ~in_second)
    assert (in_first.sum(1) == group_size(5)).all()
    mask = made.model.mask.expand(20, 5, 8)
    assert torch.equal(first[~in_first], mask[~in_first])
    assert torch.equal(second[~in_second], mask[~in_second])
    assert len({tuple(row.tolist()) for row in in_first}) > 3


def test_both_views_are_disturbed_apart():
    made = task(augmentations=("random_mask",))
    made.generator.manual_seed(1)
    first, second = ((view == 0) for view in made._views(torch.ones(20, 5, 8)))
    assert (first.sum(1) == 8).all()
    assert (second.sum(1) == 8).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("random_groups", "together"), [(False, 1.0), (True, 0.4)])
def test_groups_follow_the_correlations_unless_they_are_random(monkeypatch, random_groups, together):
    """Fields 0-2 and 3-5 in blocks that say nothing of each other stay together; at random two do with 2/5."""
    monkeypatch.setattr("training.bcl.task.augment", as_it_is)
    made = task(random_groups=random_groups)
    made.tracker.matrix = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))
    made.model.mask = torch.nn.Parameter(torch.zeros(6, 8))
    made.generator.manual_seed(1)
    first = made._views(torch.ones(400, 6, 8))[0].view(400, 6, 8).any(2)
    found = (first[:, 0] == first[:, 1]).double().mean().item()
    assert found == pytest.approx(together, abs=5 * np.sqrt(0.4 * 0.6 / 400) if random_groups else 0.01)


def test_correlations_are_of_the_field_embeddings_of_the_batch():
    made = task()
    before, batch = made.tracker.matrix, batch_of(made)
    sample = np.random.default_rng([0, 0]).permutation(np.arange(TRACKS))[:30]
    assert torch.equal(before, distance_correlation(made._embeddings(sample)))
    measured = distance_correlation(made._embeddings(batch.items[:12]))
    made.loss(batch)
    assert torch.allclose(made.tracker.matrix, 0.9 * before + 0.1 * measured)


def test_the_loss_is_the_supervised_and_lambda_times_the_contrastive(monkeypatch):
    monkeypatch.setattr("training.bcl.task.augment", as_it_is)
    made = task(unknown_rate=0.0)
    batch = batch_of(made)
    total, figures = made.loss(batch)
    assert set(figures) == {"bpr", "nt_xent"}
    assert total.item() == pytest.approx(figures["bpr"] + 0.3 * figures["nt_xent"])
    vectors = torch.from_numpy(made.vectors())
    anchor, positive, negative = (
        vectors[torch.from_numpy(part)] for part in (batch.anchor, batch.positive, batch.negative)
    )
    assert figures["bpr"] == pytest.approx(bpr(anchor, positive, negative, 0.1).item(), abs=1e-5)
    made.model.mask = torch.nn.Parameter(torch.zeros_like(made.model.mask))
    # Where the grouping is known, so is the contrastive loss: field 0 has all to itself, the first view its three.
    made.config = replace(made.config, grouping_temperature=0.0)
    made.tracker.matrix, made.tracker.alpha = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)), 1.0
    monkeypatch.setattr(torch, "randint", lambda high, size, generator: torch.zeros(size, dtype=torch.int64))
    fields = made.model.normalised(made._embeddings(batch.items))
    keep = torch.tensor([1.0, 1, 1, 0, 0])[:, None]
    views = [made.model.project(made.model.encode(fields * part)) for part in (keep, 1 - keep)]
    assert made.loss(batch)[1]["nt_xent"] == pytest.approx(nt_xent(*views, 0.1).item(), abs=1e-5)


def test_fields_are_forgotten_in_the_supervised_loss():
    made, same = task(unknown_rate=0.5), task(unknown_rate=0.0)
    batch = batch_of(made)
    with torch.no_grad():
        assert made.loss(batch)[1]["bpr"] != pytest.approx(same.loss(batch)[1]["bpr"], abs=1e-4)


def test_dropout_too_depends_on_the_batch_alone():
    made = task(dropout=0.5, correlation_alpha=1.0)
    batch = batch_of(made)
    with torch.no_grad():
        first = made.loss(batch)[1]
        torch.rand(7)
        assert made.loss(batch)[1] == first
        assert made.loss(replace(batch, seed=batch.seed + 1))[1] != first


def test_a_step_ends_with_the_temperature_in_its_range():
    made = task()
    with torch.no_grad():
        made.model.log_temperature.fill_(5.0)
    made.after_step()
    assert made.model.temperature.item() == pytest.approx(1.0)


def test_a_state_that_is_taken_back_goes_on_with_the_same_step():
    made = task()
    for batch in made.batches(0):
        made.loss(batch)
        break
    state = made.state_dict()
    other = task()
    other.load_state_dict(state)
    assert torch.equal(other.tracker.matrix, made.tracker.matrix)
    assert (other.tracker.steps, other.validated) == (1, 0)
