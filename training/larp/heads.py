"""From an encoder's states to the shared space: pooling by learnt weights, and heads, trained or whitening."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 0.1
MAX_GATE = 6.0  # of a token's log weight: none counts more than e^12 times another


class Head(nn.Linear):
    """An encoder's answer into the shared space: f32 [B, width] -> unit vectors f32 [B, dims].

    whitened: it is not trained but fitted (`spread`, then `refit`). basis f32 [dims, width]: how the space lies on the
    encoder's, which later fits keep.
    """

    basis: Tensor

    def __init__(self, width: int, dims: int, *, whitened: bool = False) -> None:
        super().__init__(width, dims)
        self.whitened = whitened
        if whitened:
            self.requires_grad_(False)
            self.register_buffer("basis", torch.zeros(dims, width))

    def forward(self, pooled: Tensor) -> Tensor:
        """Project and normalise to length 1, in float32 whatever the precision around it."""
        if torch.is_autocast_enabled(pooled.device.type):
            with torch.autocast(pooled.device.type, enabled=False):
                return F.normalize(super().forward(pooled.float()), dim=-1)
        return F.normalize(super().forward(pooled), dim=-1)


@torch.no_grad()
def spread(head: Head, pooled: Tensor) -> None:
    """Let an untrained head whiten its encoder's outputs, of which `pooled` f32 [n, width] is a sample.

    An encoder's vectors share one large mean and a few strong directions (cosines near 1), so they tell tracks apart by
    next to nothing, and contrast starts on a plateau. Here the mean goes, and the strongest principal components, as
    many as fit, get unit variance (those that are hardly there less: RIDGE of the mean variance is added), in a random
    basis of the shared space. Even a random encoder's outputs then place captions with common words near one another.
    """
    mean, gains, directions = _principal(pooled)
    kept = min(head.out_features, len(pooled) - 1, len(gains))
    basis, _ = torch.linalg.qr(torch.randn(head.out_features, kept, dtype=torch.float64).to(pooled.device))
    weight = (basis * gains[-kept:]) @ directions.T[-kept:]
    head.weight.copy_(weight)
    head.bias.copy_(-(weight @ mean))
    if head.whitened:
        head.basis.copy_(basis @ directions.T[-kept:])


@torch.no_grad()
def refit(head: Head, pooled: Tensor) -> None:
    """Whiten the encoder's outputs as they are now, `pooled` f32 [n, width], in the orientation of the first fit.

    W = B U g U^T with directions U, gains g and the basis B of `spread`, for which this is the same: among all
    whitenings U g U^T turns vectors least, so those of before and after a refit can still be compared.
    """
    mean, gains, directions = _principal(pooled)
    weight = head.basis.double() @ (directions * gains) @ directions.T
    head.weight.copy_(weight)
    head.bias.copy_(-(weight @ mean))


def _principal(pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [width], gains [width] and directions [width, width] of the principal components, weakest first; f64."""
    mean = pooled.double().mean(0)
    centred = pooled.double() - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(pooled))
    return mean, (variance.clamp(min=0) + RIDGE * variance.mean()).rsqrt(), directions


class Gate(nn.Module):
    """Attention pooling by one query: token states f32 [B, T, width] -> their weighted mean f32 [B, width].

    A token weighs exp(clamp(u . (h - mean) / std, -6, 6)); u starts at 0, which is the plain mean. mean and std are of
    the states of training captions (`fit`). A bias would cancel out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool what the mask i64 [B, T] leaves, in float32 whatever the precision around it."""
        states = states.float()
        scores = (((states - self.mean) / self.std) * self.query).sum(-1)
        weights = scores.clamp(-MAX_GATE, MAX_GATE).exp() * attention_mask
        return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Take mean and standard deviation from token states f32 [n, width]."""
        self.mean.copy_(tokens.double().mean(0))
        self.std.copy_(tokens.double().std(0, correction=0).clamp(min=1e-6))
