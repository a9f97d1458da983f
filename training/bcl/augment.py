"""Three ways to disturb a view (BCL, 3.1.2): random mask, span mask, uniform noise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operator = Callable[[Tensor, torch.Generator], Tensor]
MASKED = 0.2  # share of the dimensions
NOISE = 0.1  # of each dimension's standard deviation


def random_mask(view: Tensor, generator: torch.Generator) -> Tensor:
    """Return `view` [B, D] with round(0.2 D) dimensions of each row set to 0, drawn without replacement."""
    noise = torch.rand(view.shape, generator=generator)
    masked = noise.topk(round(MASKED * view.shape[1]), dim=1).indices.to(view.device)
    return view.scatter(1, masked, 0.0)


def span_mask(view: Tensor, generator: torch.Generator) -> Tensor:
    """Return `view` [B, D] with one cyclic span of round(0.2 D) dimensions of each row set to 0."""
    rows, dims = view.shape
    start = torch.randint(dims, (rows, 1), generator=generator)
    place = (torch.arange(dims)[None, :] - start) % dims
    return view.masked_fill((place < round(MASKED * dims)).to(view.device), 0.0)


def uniform_noise(view: Tensor, generator: torch.Generator) -> Tensor:
    """Return `view` [B, D] plus U(-0.1, 0.1) x the dimension's standard deviation over the batch."""
    noise = 2 * torch.rand(view.shape, generator=generator) - 1
    return view + NOISE * noise.to(view) * view.detach().std(0, unbiased=False)


OPERATORS: dict[str, Operator] = {
    "random_mask": random_mask,
    "span_mask": span_mask,
    "uniform_noise": uniform_noise,
}


def augment(view: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Return `view` [B, D] with each row disturbed by one operator, drawn uniformly from `names`."""
    which = torch.randint(len(names), (len(view), 1), generator=generator).to(view.device)
    disturbed = [OPERATORS[name](view, generator) for name in names]
    out = disturbed[0]
    for number, other in enumerate(disturbed[1:], start=1):
        out = torch.where(which == number, other, out)
    return out
