"""Correlation grouping (BCL, 3.1.2): split an item's fields into two views by what belongs together."""

import torch
from torch import Tensor

EPSILON = 1e-6


def group_size(fields: int) -> int:
    """Return how many of F fields the first view keeps: ceil(F/2)."""
    return (fields + 1) // 2


def sample_groups(correlation: Tensor, seeds: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Return the first view's fields of each item, bool [B, F]; the second view keeps the others.

    Gumbel-top-k: the seed field s of each item (`seeds` int64 [B]) and the ceil(F/2) - 1 fields of highest
    log(C[s, .] + 1e-6) / T + Gumbel noise, that is, drawn one after the other without replacement with
    probability ~ (C[s, .] + 1e-6)^(1/T). T = 0 takes the most correlated; a constant C gives random groups.
    """
    logits = torch.log(correlation.to(torch.float64)[seeds] + EPSILON)
    if temperature > 0:
        uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        logits = logits / temperature - torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    logits.scatter_(1, seeds[:, None], torch.inf)
    chosen = logits.topk(group_size(logits.shape[1]), dim=1).indices
    return torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, chosen, True)
