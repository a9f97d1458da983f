"""TPC's fusion of J of a playlist's tracks into one vector, in the four ways that LARP's open questions ask about."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("residual", "attention", "mean", "transformer")
_LAYERS, HEADS = 2, 4


def make_fusion(kind: str, dims: int, seeds: int, positions: bool = False) -> nn.Module:
    """Return one of KINDS: f32 [B, J, d] and bool [B, J] (which are there) -> unit vectors f32 [B, d].

    A row with no track gives zeros. One fusion serves both towers.
    "attention": the paper's single self-attention layer, mean over tracks (Eq. 6, 23, 24).
    "residual": l2(mean + that), its values zero at first, so that stage 3 begins with the plain mean.
    "mean": l2(mean), nothing to learn (the ablation "TPC without fusion").
    "transformer": a small Transformer encoder over the tracks (`_LAYERS` layers), as a correction of the mean too.
    positions: tell the transformer the tracks' order in the playlist, of at most `seeds` tracks.
    """
    if kind == "transformer":
        return TransformerFusion(dims, seeds if positions else 0)
    if kind == "mean":
        return MeanFusion()
    return AttentionFusion(dims, residual=kind == "residual")


def _mean(vectors: Tensor, present: Tensor) -> Tensor:
    return (vectors * present[..., None]).sum(1) / present.sum(1, keepdim=True).clamp(min=1)


class MeanFusion(nn.Module):
    """l2(mean of the tracks)."""

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Fuse f32 [B, J, d] with bool [B, J] -> f32 [B, d]."""
        return F.normalize(_mean(vectors, present), dim=-1)


class AttentionFusion(nn.Module):
    """One self-attention layer, mean over tracks; padding is left out of keys, queries and means.

    Only the mean is wanted, so the projections meet the tracks once instead of three times: queries and keys as one
    bilinear form, x_j' Wq' Wk x_k, and Wv behind the mean, which it commutes with.
    """

    def __init__(self, dims: int, residual: bool) -> None:
        super().__init__()
        self.query = nn.Linear(dims, dims, bias=False)
        self.key = nn.Linear(dims, dims, bias=False)
        self.value = nn.Linear(dims, dims, bias=False)
        self.residual = residual
        if residual:
            nn.init.zeros_(self.value.weight)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Fuse f32 [B, J, d] with bool [B, J] -> f32 [B, d]."""
        vectors = vectors * present[..., None]
        scores = vectors @ (self.query.weight.T @ self.key.weight) @ vectors.mT / vectors.shape[-1] ** 0.5
        shares = scores.masked_fill(~_keys(present), float("-inf")).softmax(-1)
        attended = self.value((_mean(shares, present)[:, None] @ vectors)[:, 0])
        return F.normalize(attended + _mean(vectors, present) if self.residual else attended, dim=-1)


class TransformerFusion(nn.Module):
    """l2(mean + what a Transformer encoder adds to it), the addition zero at first."""

    def __init__(self, dims: int, positions: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dims, HEADS, 2 * dims, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(dims, dims, bias=False)
        nn.init.zeros_(self.out.weight)
        self.positions = nn.Parameter(torch.randn(positions, dims) * dims**-0.5) if positions else None

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Fuse f32 [B, J, d] with bool [B, J] -> f32 [B, d]."""
        told = vectors if self.positions is None else vectors + self.positions[: vectors.shape[1]]
        # A row with no track attends to everything, and is left out of the mean.
        read = self.encoder(told, src_key_padding_mask=~(present | ~present.any(1, keepdim=True)))
        return F.normalize(_mean(vectors + self.out(read), present), dim=-1)


def _keys(present: Tensor) -> Tensor:
    """Which keys each query may see, bool [B, J, J]; a row with no track sees all of its zeros."""
    return (present | ~present.any(1, keepdim=True))[:, None, :].expand(-1, present.shape[1], -1)
