"""Momentum copies, the queue, and a step of pre-training, whole or in parts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training.data.pairs import PlaylistPairs
from training.distributed import World
from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.model import Larp
from training.larp.pretraining import Neighbourhood, Pretraining, Step
from training.larp.queue import MomentumQueue, follow, momentum_copy
from training.larp.towers import build_larp

TINY = LarpConfig(
    audio=AudioTowerConfig(patch=16, width=16, depths=(1, 1), heads=(1, 2)),
    text=TextTowerConfig(width=16, layers=1, heads=2, vocabulary=60),
    dims=8,
    queue=10,
    momentum=0.9,
)
CAPTIONS = ["The track Nacht by Clara", "The track Morgen by Robert", "The track Abend by Clara"]


STEADY = replace(TINY, audio=replace(TINY.audio, dropout=0.0), text=replace(TINY.text, dropout=0.0))


def tiny_larp(seed: int = 0, config: LarpConfig = TINY) -> Larp:
    torch.manual_seed(seed)
    return build_larp(config, CAPTIONS)


# ----- momentum and queue -----


def test_momentum_follows_parameters_and_buffers() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    twin = momentum_copy(module)
    assert not any(p.requires_grad for p in twin.parameters())
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    module(torch.randn(16, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    follow(twin, module, 0.9)
    for name, value in twin.state_dict().items():
        theirs = module.state_dict()[name]
        if value.is_floating_point():
            assert torch.allclose(value, 0.9 * before[name] + 0.1 * theirs, atol=1e-6), name
        else:
            assert torch.equal(value, theirs), name


@pytest.mark.parametrize("seed", range(3))
def test_the_queue_is_first_in_first_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue, model = MomentumQueue(("audio", "text"), 7, 2), []
    for step in range(12):
        count = int(rng.integers(1, 10))
        ids = torch.arange(count) + 100 * step
        vectors = torch.stack([ids, -ids], 1).float()
        queue.push({"audio": vectors, "text": 2 * vectors}, ids)
        model = (model + ids.tolist())[-7:]
        assert sorted(queue.ids.tolist()) == sorted(model + [-1] * (7 - len(model))), f"seed {seed}"
        full = queue.ids >= 0
        assert torch.equal(queue.audio[full][:, 0], queue.ids[full].float())
        assert torch.equal(queue.text[full], 2 * queue.audio[full])


def test_a_queue_of_no_columns_takes_nothing() -> None:
    queue = MomentumQueue(("text",), 0, 2)
    queue.push({"text": torch.ones(3, 2)}, torch.arange(3))
    assert queue.ids.shape == (0,)
    assert queue.vectors("text").shape == (0, 2)


# ----- towers -----


def test_vectors_have_length_one_and_padding_changes_nothing() -> None:
    larp = tiny_larp().eval()
    with torch.no_grad():
        text = larp.encode_text(CAPTIONS)
        alone = larp.encode_text(CAPTIONS[:1])
        longer = larp.encode_text([CAPTIONS[0], " ".join(CAPTIONS * 30)])
        audio = larp.encode_audio(torch.randn(2, 1, 1001, 64) * 20 - 30)
    assert text.shape == (3, 8)
    assert audio.shape == (2, 8)
    for vectors in (text, audio):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert torch.allclose(alone[0], text[0], atol=1e-6)
    assert torch.allclose(longer[0], text[0], atol=1e-6)
    assert larp.tokens([" ".join(CAPTIONS * 30)])[0].shape == (1, larp.max_tokens)


def test_a_calibrated_tower_whitens_its_input() -> None:
    larp = tiny_larp().eval()
    clips = torch.randn(4, 1, 1001, 64) * torch.linspace(5, 20, 64) + torch.linspace(-80, 0, 64)
    larp.audio.calibrate(clips.mean((0, 1, 2)), clips.var((0, 1, 2)))
    norm = larp.audio.encoder.audio_encoder.batch_norm
    white = norm(clips.transpose(1, 3)).transpose(1, 3)
    assert white.mean((0, 1, 2)).abs().max() < 1e-3
    assert (white.std((0, 1, 2)) - 1).abs().max() < 1e-3


def test_the_temperature_stays_in_its_range() -> None:
    larp = tiny_larp()
    for start, end in ((-3.0, 0.001), (9.0, 0.5), (0.07, 0.07)):
        with torch.no_grad():
            larp.temperature.fill_(start)
        larp.clamp_temperature()
        assert larp.temperature.item() == pytest.approx(end)


# ----- a step -----

LOSSES = ("wtc", "ttc", "tpc")


class FourTracks:
    """Tracks 0..3 of playlists {0, 1} and {2, 3}, a fifth in none; tracks 4 and 0 again wait in the queue."""

    tracks = torch.tensor([0, 1, 2, 3, 5])
    partner = torch.tensor([1, 0, 3, 2, -1])
    seeds = torch.tensor([[1, -1], [0, -1], [3, -1], [2, -1], [-1, -1]])
    pairs = PlaylistPairs(np.array([0, 2, 4]), np.arange(4), 6)
    playlist = np.array([0, 0, 1, 1, -1])

    def __init__(self, config: LarpConfig = TINY, seed: int = 0) -> None:
        self.larp = tiny_larp(seed, config)
        self.pretraining = Pretraining(self.larp, config, 6).train()
        generator = torch.Generator().manual_seed(seed)
        captions = [*CAPTIONS, "The track Mittag by Hugo", "The track Nacht"]
        every = {"audio": (torch.randn(5, 1, 1001, 64, generator=generator) * 20 - 30,)}
        every["text"] = self.larp.tokens(captions)
        self.inputs = {name: every[name] for name in self.larp.names}
        with torch.no_grad():
            for name in self.larp.names:
                drawn = torch.randn(6, TINY.dims, generator=generator)
                self.pretraining.table(name).copy_(nn.functional.normalize(drawn, dim=-1))
        queued = {name: self.pretraining.table(name)[[4, 0]] for name in self.larp.names}
        self.pretraining.queue.push(queued, torch.tensor([4, 0]))

    def step(self, parts: list[torch.Tensor]) -> tuple[Step, dict[str, torch.Tensor]]:
        """Keys and losses of the five tracks encoded in `parts`, the gradients added up."""
        inputs = [{name: tuple(x[rows] for x in read) for name, read in self.inputs.items()} for rows in parts]
        keys = self.pretraining.keys(inputs, 5, World())
        columns = torch.cat([self.tracks, self.pretraining.queue.ids])
        step = Step(self.tracks, self.partner, self.seeds, keys, columns)
        sums: dict[str, torch.Tensor] = {}
        for rows, read in zip(parts, inputs, strict=True):
            losses = self.pretraining.losses(step, rows, read, self.near(rows, columns), LOSSES)
            torch.stack([*losses.values()]).sum().backward()
            sums = {name: sums.get(name, torch.zeros(())) + value.detach() for name, value in losses.items()}
        return step, sums

    def near(self, rows: torch.Tensor, columns: torch.Tensor) -> Neighbourhood:
        related, holds = self.pairs.relations(self.tracks[rows].numpy(), self.playlist[rows], columns.numpy())
        held = self.pairs.relations(self.tracks.numpy(), self.playlist, self.tracks[rows].numpy())[1].T
        same = self.tracks[rows][:, None] == columns[None, :]
        return Neighbourhood(same, *(torch.from_numpy(np.array(mask)) for mask in (related, holds, held)))

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self.pretraining.named_parameters() if p.grad is not None}


ALL_AT_ONCE = [torch.arange(5)]


def test_a_step_fills_tables_and_queue_and_moves_the_copies() -> None:
    four = FourTracks()
    larp, pretraining = four.larp, four.pretraining
    assert larp.audio.training
    assert not any(module.training for module in pretraining.twins.modules())
    twin_before, table_before = pretraining.twins["audio"].head.weight.clone(), pretraining.table("audio").clone()
    with torch.no_grad():
        expected_keys = pretraining.twins["audio"](*four.inputs["audio"])

    step, losses = four.step(ALL_AT_ONCE)
    assert tuple(losses) == LOSSES
    assert torch.allclose(step.keys["audio"][:5], expected_keys)
    for name, parameter in [*larp.named_parameters(), *pretraining.fusion.named_parameters()]:
        if not name.startswith(("query", "key")):  # these wait for the values, which start at zero
            assert parameter.grad is not None, name
    assert all(p.grad is None for p in pretraining.twins.parameters())
    assert torch.equal(pretraining.table("audio"), table_before)
    assert pretraining.queue.ids.tolist() == [4, 0] + [-1] * 8

    online = dict(step.online[0][1].items())
    with torch.no_grad():
        larp.audio.head.weight.add_(1.0)
    pretraining.after_step(step, World())
    assert pretraining.queue.ids.tolist() == [4, 0, 0, 1, 2, 3, 5] + [-1] * 3
    assert torch.allclose(pretraining.queue.audio[2:7], expected_keys)
    assert torch.equal(pretraining.table("audio")[four.tracks], online["audio"])
    assert torch.equal(pretraining.table("text")[four.tracks], online["text"])
    assert torch.equal(pretraining.table("audio")[4], table_before[4])
    moved = pretraining.twins["audio"].head.weight
    assert torch.allclose(moved, 0.9 * twin_before + 0.1 * larp.audio.head.weight, atol=1e-6)


CHANGES: list[dict[str, Any]] = [
    {},
    {"targets": "diagonal", "sides": "all", "fusion": "attention"},
    {"fusion": "transformer", "fusion_positions": True},
    {"towers": ("text",), "fusion": "mean"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=["default", "diagonal", "transformer", "text"])
def test_parts_add_up_to_the_whole_batch(changes: dict[str, Any]) -> None:
    config = replace(STEADY, **changes)
    whole, parted = FourTracks(config), FourTracks(config)
    one, losses = whole.step(ALL_AT_ONCE)
    other, summed = parted.step([torch.tensor([0, 1, 2]), torch.tensor([3, 4])])
    for name in LOSSES[len(whole.larp.names) == 1 :]:
        assert summed[name].item() == pytest.approx(losses[name].item(), rel=1e-5), name
    expected, found = whole.gradients(), parted.gradients()
    assert expected.keys() == found.keys()
    assert max(gradient.abs().max().item() for gradient in expected.values()) > 0.01
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    whole.pretraining.after_step(one, World())
    parted.pretraining.after_step(other, World())
    after = parted.pretraining.state_dict()
    for name, value in whole.pretraining.state_dict().items():
        assert torch.allclose(after[name].double(), value.double(), atol=1e-5), name


def test_distillation_asks_the_momentum_copies() -> None:
    four = FourTracks()
    step, plain = four.step(ALL_AT_ONCE)
    rows, inputs = ALL_AT_ONCE[0], four.inputs
    step.alpha = 0.5
    with torch.no_grad():
        mixed = four.pretraining.eval().losses(step, rows, inputs, four.near(rows, step.columns), LOSSES)
        step.alpha = 0.0
        hard = four.pretraining.losses(step, rows, inputs, four.near(rows, step.columns), LOSSES)
    assert plain.keys() == mixed.keys()
    assert all(abs(mixed[name].item() - hard[name].item()) > 1e-4 for name in LOSSES)


def test_of_a_track_that_stands_twice_the_table_keeps_the_last() -> None:
    pretraining = FourTracks().pretraining
    vectors = torch.randn(5, TINY.dims)
    pretraining.remember("text", vectors, torch.tensor([3, 1, 3, 0, 1]))
    assert torch.equal(pretraining.table("text")[[3, 0, 1]], vectors[2:])


def test_under_autocast_the_losses_are_computed_in_float32() -> None:
    exact, rounded = (FourTracks(STEADY) for _ in range(2))
    _, expected = exact.step(ALL_AT_ONCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = rounded.step(ALL_AT_ONCE)
    for name in LOSSES:
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05)


def test_settings_survive_json_and_name_their_mistakes() -> None:
    assert LarpConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match="no settings"):
        LarpConfig.from_json({"batchsize": 3})
    wrongs = [{"temperature": 0.6}, {"momentum": 1.0}, {"clauses": ("lyrics",)}, {"batch_size": 1}, {"seeds": 0}]
    wrongs += [{"towers": ()}, {"towers": ("video",)}, {"distill": -0.1}, {"micro_batch": -1}, {"fusion": "sum"}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LarpConfig(**wrong)
