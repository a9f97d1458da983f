"""From an encoder's answer to the shared space: heads, trained or whitening, and one for captions of fields."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 0.1
_ALIKE = 1e-8  # share of the variance in the mean square, under which outputs differ by rounding alone


class Head(nn.Linear):
    """An encoder's answer into the shared space: f32 [B, width] -> unit vectors f32 [B, dims].

    whitened: it is not trained but fitted once (`spread`).
    """

    def __init__(self, width: int, dims: int, *, whitened: bool = False) -> None:
        super().__init__(width, dims)
        self.requires_grad_(not whitened)

    def forward(self, pooled: Tensor) -> Tensor:
        """Project and normalise to length 1, in float32 whatever the precision around it."""
        if torch.is_autocast_enabled(pooled.device.type):
            with torch.autocast(pooled.device.type, enabled=False):
                return F.normalize(super().forward(pooled.float()), dim=-1)
        return F.normalize(super().forward(pooled), dim=-1)


class FieldsHead(nn.Module):
    """The encoder's answers to F fields, one after the other, f32 [B, F * width] -> unit vectors f32 [B, dims].

    Each field has a head into a part of the space of its own, f32 [B, dims / F] of length 1, times a learnt weight
    exp(w), w = 0 at first; the whole is normalised. So a cosine of two tracks is the mean of their fields' cosines,
    each weighted by exp(2 w), since the weight stands in both vectors. A field whose answer is all zero is missing, and
    its part of the space is zero.
    """

    def __init__(self, width: int, dims: int, fields: int, *, whitened: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = fields * width, dims
        self.heads = nn.ModuleList(Head(width, dims // fields, whitened=whitened) for _ in range(fields))
        self.log_weights = nn.Parameter(torch.zeros(fields))

    def forward(self, pooled: Tensor) -> Tensor:
        """Project, weigh and put together, in float32 whatever the precision around it."""
        parts = []
        for field, head, weight in zip(self.fields(pooled), self.heads, self.log_weights.float().exp(), strict=True):
            there = (field != 0).any(-1, keepdim=True)
            parts.append(head(field) * there * weight)
        return F.normalize(torch.cat(parts, -1), dim=-1)

    def fields(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """The answers apart, f32 [B, width] each."""
        return pooled.chunk(len(self.heads), dim=-1)


def spread(head: Head | FieldsHead, pooled: Tensor) -> None:
    """Let an untrained head whiten its encoder's outputs, of which `pooled` is a sample (`_spread`); one of fields,
    those of each of them that at least two tracks of the sample have.
    """
    if isinstance(head, Head):
        _spread(head, pooled)
        return
    for own, field in zip(head.heads, head.fields(pooled), strict=True):
        known = field[(field != 0).any(-1)]
        if len(known) > 1:
            _spread(cast(Head, own), known)


@torch.no_grad()
def _spread(head: Head, pooled: Tensor) -> None:
    """Whiten `pooled` f32 [n, width].

    An encoder's vectors share one large mean and a few strong directions (cosines near 1), so they tell tracks apart by
    next to nothing, and contrast starts on a plateau. Here the mean goes, and the strongest principal components, as
    many as fit, get unit variance (those that are hardly there less: RIDGE of the mean variance is added), in a random
    basis of the shared space. Even a random encoder's outputs then place captions with common words near one another.
    Outputs that are all alike (every track by one artist) have no components: the head stays as it was made.
    """
    if _all_alike(pooled):
        return
    mean, gains, directions = _principal(pooled)
    kept = min(head.out_features, len(pooled) - 1, len(gains))
    basis, _ = torch.linalg.qr(torch.randn(head.out_features, kept, dtype=torch.float64).to(pooled.device))
    weight = (basis * gains[-kept:]) @ directions.T[-kept:]
    head.weight.copy_(weight)
    head.bias.copy_(-(weight @ mean))


def _all_alike(pooled: Tensor) -> bool:
    exact = pooled.double()
    return bool(exact.var(0, correction=0).mean() <= _ALIKE * exact.square().mean())


def _principal(pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [width], gains [width] and directions [width, width] of the principal components, weakest first; f64."""
    mean = pooled.double().mean(0)
    centred = pooled.double() - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(pooled))
    return mean, (variance.clamp(min=0) + RIDGE * variance.mean()).rsqrt(), directions
