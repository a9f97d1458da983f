"""The four fusions of a playlist's tracks, against Eq. 23 and 24 in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.larp.fusion import KINDS, AttentionFusion, make_fusion

DIMS, SEEDS = 8, 5


def fusion_of(kind: str, seed: int = 0, *, positions: bool = False, learnt: bool = True) -> nn.Module:
    """A fusion in float64; learnt: what starts at zero is no longer."""
    torch.manual_seed(seed)
    fusion = make_fusion(kind, DIMS, SEEDS, positions).double()
    if learnt:
        for name, parameter in fusion.named_parameters():
            if name in ("value.weight", "out.weight"):
                nn.init.normal_(parameter)
    return fusion.eval()


def drawn(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Unit vectors f64 [B, SEEDS, DIMS], and which are there: the first of each row."""
    torch.manual_seed(seed)
    vectors = F.normalize(torch.randn(len(lengths), SEEDS, DIMS, dtype=torch.float64), dim=-1)
    return vectors, torch.tensor([[j < n for j in range(SEEDS)] for n in lengths])


def numpy_attention(module: AttentionFusion, vectors: np.ndarray, *, residual: bool) -> np.ndarray:
    """Eq. 23 and 24 for J vectors [J, d] without padding: softmax(Q K^T / sqrt d) V, its mean, at length 1."""
    q, k, v = (vectors @ getattr(module, name).weight.detach().numpy().T for name in ("query", "key", "value"))
    weights = np.exp(q @ k.T / np.sqrt(vectors.shape[1]))
    attended = weights / weights.sum(1, keepdims=True) @ v
    fused = (vectors + attended if residual else attended).mean(0)
    return fused / np.linalg.norm(fused)


@pytest.mark.parametrize("kind", ["attention", "residual"])
def test_attention_is_that_of_the_equations_over_what_is_there(kind: str) -> None:
    fusion = fusion_of(kind)
    assert isinstance(fusion, AttentionFusion)
    lengths = [5, 3, 1, 0]
    vectors, present = drawn(lengths)
    fused = fusion(vectors, present).detach().numpy()
    for row, n in enumerate(lengths[:3]):
        expected = numpy_attention(fusion, vectors[row, :n].numpy(), residual=kind == "residual")
        assert np.abs(fused[row] - expected).max() < 1e-12
    assert np.abs(fused[3]).max() == 0


def test_the_mean_is_the_mean() -> None:
    vectors, present = drawn([4, 2])
    fused = fusion_of("mean")(vectors, present)
    for row, n in enumerate([4, 2]):
        assert torch.allclose(fused[row], F.normalize(vectors[row, :n].mean(0), dim=0))
    assert not [*fusion_of("mean").parameters()]


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_masked_as_key_and_as_query(kind: str, positions: bool) -> None:
    fusion = fusion_of(kind, 2, positions=positions)
    vectors, _ = drawn([4])
    present = torch.tensor([[True, True, False, True, False]])
    fused = fusion(vectors, present)
    assert fused.norm().item() == pytest.approx(1)
    changed = vectors.clone()
    changed[0, [2, 4]] = 1e3
    assert torch.allclose(fusion(changed, present), fused, atol=1e-12)
    if not positions:  # a gap is no place: where the order counts, it moves what follows
        without = fusion(vectors[:, [0, 1, 3]], torch.ones(1, 3, dtype=torch.bool))
        assert torch.allclose(without, fused, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_tracks_is_zero_and_harms_nobody(kind: str) -> None:
    fusion = fusion_of(kind)
    vectors, present = drawn([0, 3])
    vectors.requires_grad_()
    fused = fusion(vectors, present)
    assert fused[0].abs().max().item() == 0
    assert torch.allclose(fused[1:], fusion(vectors[1:], present[1:]), atol=1e-12)
    fused[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (vectors, *fusion.parameters()))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("kind", ["residual", "transformer"])
def test_untrained_it_is_the_mean_and_can_learn(kind: str, positions: bool) -> None:
    fusion = fusion_of(kind, learnt=False, positions=positions)
    vectors, present = drawn([5, 2])
    fused = fusion(vectors, present)
    assert torch.allclose(fused, fusion_of("mean")(vectors, present), atol=1e-12)
    fused[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in fusion.named_parameters() if name in ("value.weight", "out.weight")}
    assert len(gradients) == 1
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize(
    ("kind", "positions", "sees"),
    [
        ("attention", False, False),
        ("residual", False, False),
        ("mean", False, False),
        ("transformer", False, False),
        ("transformer", True, True),
    ],
)
def test_only_a_transformer_with_positions_sees_the_order(kind: str, positions: bool, sees: bool) -> None:
    fusion = fusion_of(kind, positions=positions)
    vectors, present = drawn([5])
    moved = (fusion(vectors.flip(1), present) - fusion(vectors, present)).abs().max().item()
    assert moved > 1e-3 if sees else moved < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_give_the_same(kind: str) -> None:
    fusion = fusion_of(kind, positions=True).float()
    vectors, present = drawn([5, 2, 0])
    with torch.no_grad():
        evaluated = fusion(vectors.float(), present)
    assert torch.allclose(fusion.train()(vectors.float(), present), evaluated, atol=1e-5)
