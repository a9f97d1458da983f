"""Fusion, momentum copies, the queue, and a step of pre-training."""

import numpy as np
import pytest
import torch
from torch import nn

from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.model import Fusion, Larp
from training.larp.pretraining import Batch, Neighbourhood, Pretraining
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


def tiny_larp(seed: int = 0) -> Larp:
    torch.manual_seed(seed)
    return build_larp(TINY, CAPTIONS)


# ----- fusion -----


def numpy_fusion(module: Fusion, vectors: np.ndarray) -> np.ndarray:
    """Eq. 23 and 24 with the residual, for J vectors [J, d] without padding."""
    q, k, v = (vectors @ getattr(module, name).weight.detach().numpy().T for name in ("query", "key", "value"))
    weights = np.exp(q @ k.T / np.sqrt(vectors.shape[1]))
    attended = weights / weights.sum(1, keepdims=True) @ v
    fused = (vectors + attended).mean(0)
    return fused / np.linalg.norm(fused)


def test_fusion_is_attention_over_what_is_there() -> None:
    torch.manual_seed(1)
    fusion = Fusion(6).double()
    nn.init.normal_(fusion.value.weight)
    vectors = torch.randn(4, 5, 6, dtype=torch.float64)
    lengths = [5, 3, 1, 0]
    present = torch.tensor([[j < n for j in range(5)] for n in lengths])
    fused = fusion(vectors, present).detach().numpy()
    for row, n in enumerate(lengths[:3]):
        expected = numpy_fusion(fusion, vectors[row, :n].numpy())
        assert np.abs(fused[row] - expected).max() < 1e-12
    assert np.abs(fused[3]).max() == 0


def test_padding_is_masked_as_key_and_as_query() -> None:
    torch.manual_seed(2)
    fusion = Fusion(6)
    nn.init.normal_(fusion.value.weight)
    vectors = torch.randn(1, 4, 6)
    present = torch.tensor([[True, False, True, False]])
    fused = fusion(vectors, present)
    vectors[0, [1, 3]] = 1e4
    assert torch.equal(fusion(vectors, present), fused)
    assert torch.allclose(fusion(vectors[:, [0, 2]], torch.ones(1, 2, dtype=torch.bool)), fused, atol=1e-6)


def test_an_untrained_fusion_is_the_mean_and_can_learn() -> None:
    fusion = Fusion(6)
    vectors = torch.randn(3, 4, 6)
    fused = fusion(vectors, torch.ones(3, 4, dtype=torch.bool))
    assert torch.allclose(fused, nn.functional.normalize(vectors.mean(1), dim=-1), atol=1e-6)
    fused[:, 0].sum().backward()
    assert fusion.value.weight.grad is not None
    assert fusion.value.weight.grad.abs().sum() > 0


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
    queue, model = MomentumQueue(7, 2), []
    for step in range(12):
        count = int(rng.integers(1, 10))
        ids = torch.arange(count) + 100 * step
        vectors = torch.stack([ids, -ids], 1).float()
        queue.push(vectors, 2 * vectors, ids)
        model = (model + ids.tolist())[-7:]
        assert sorted(queue.ids.tolist()) == sorted(model + [-1] * (7 - len(model))), f"seed {seed}"
        full = queue.ids >= 0
        assert torch.equal(queue.audio[full][:, 0], queue.ids[full].float())
        assert torch.equal(queue.text[full], 2 * queue.audio[full])


def test_a_queue_of_no_columns_takes_nothing() -> None:
    queue = MomentumQueue(0, 2)
    queue.push(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))
    assert queue.ids.shape == (0,)
    assert queue.audio.shape == (0, 2)


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


def two_pairs(larp: Larp) -> tuple[Batch, Neighbourhood]:
    """Tracks 0..3 of playlists {0, 1} and {2, 3}, the queue still empty."""
    ids, mask = larp.tokens([*CAPTIONS, "The track Mittag by Hugo"])
    tracks = torch.arange(4)
    batch = Batch(
        torch.randn(4, 1, 1001, 64) * 20 - 30,
        ids,
        mask,
        tracks,
        torch.tensor([1, 0, 3, 2]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([[1, -1], [0, -1], [3, -1], [2, -1]]),
    )
    columns = torch.cat([tracks, torch.full((10,), -1)])
    same = tracks[:, None] == columns[None, :]
    paired = (tracks[:, None] // 2 == columns[None, :] // 2) & (columns >= 0)[None, :]
    return batch, Neighbourhood(same, paired & ~same, paired, paired[:, :4])


def test_a_step_fills_tables_and_queue_and_moves_the_copies() -> None:
    larp = tiny_larp()
    pretraining = Pretraining(larp, TINY, 6).train()
    assert larp.audio.training
    assert not any(module.training for module in pretraining.twins.modules())
    batch, neighbourhood = two_pairs(larp)
    twin_before = pretraining.twins["audio"].head.weight.clone()
    with torch.no_grad():
        expected_keys = pretraining.twins["audio"](batch.log_mel)

    losses = pretraining.losses(batch, neighbourhood, ("wtc", "ttc", "tpc"))
    assert list(losses) == ["wtc", "ttc", "tpc"]
    sum(losses.values()).backward()
    for name, parameter in [*larp.named_parameters(), *pretraining.fusion.named_parameters()]:
        if not name.startswith(("query", "key")):  # these wait for the values, which start at zero
            assert parameter.grad is not None, name
    assert all(p.grad is None for p in pretraining.twins.parameters())
    assert pretraining.audio_table[:4].norm(dim=1).tolist() == pytest.approx([1] * 4)
    assert pretraining.audio_table[4:].abs().sum() == 0
    assert (pretraining.queue.ids >= 0).sum() == 0

    with torch.no_grad():
        larp.audio.head.weight.add_(1.0)
    pretraining.after_step()
    assert pretraining.queue.ids.tolist() == [0, 1, 2, 3] + [-1] * 6
    assert torch.allclose(pretraining.queue.audio[:4], expected_keys)
    moved = pretraining.twins["audio"].head.weight
    assert torch.allclose(moved, 0.9 * twin_before + 0.1 * larp.audio.head.weight, atol=1e-6)


def test_under_autocast_the_losses_are_computed_in_float32() -> None:
    larp = tiny_larp()
    pretraining = Pretraining(larp, TINY, 6).eval()
    batch, neighbourhood = two_pairs(larp)
    names = ("wtc", "ttc", "tpc")
    with torch.no_grad():
        exact = pretraining.losses(batch, neighbourhood, names)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = pretraining.losses(batch, neighbourhood, names)
    for name in names:
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_settings_survive_json_and_name_their_mistakes() -> None:
    assert LarpConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match="no settings"):
        LarpConfig.from_json({"batchsize": 3})
    for wrong in ({"temperature": 0.6}, {"momentum": 1.0}, {"clauses": ("lyrics",)}, {"batch_size": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LarpConfig(**wrong)
