"""Momentum copies of modules, and the queues of vectors they made: the negatives of earlier batches."""

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn


def momentum_copy(module: nn.Module) -> nn.Module:
    """Return an untrained twin, for good in evaluation mode (no dropout, no statistics of its own)."""
    twin = copy.deepcopy(module)
    twin.requires_grad_(False)
    return twin.eval()


@torch.no_grad()
def follow(twin: nn.Module, module: nn.Module, momentum: float) -> None:
    """theta_m <- m theta_m + (1 - m) theta, for parameters and floating buffers; other buffers are copied."""
    pairs = [*zip(twin.parameters(), module.parameters(), strict=True)]
    for mine, theirs in zip(twin.buffers(), module.buffers(), strict=True):
        if mine.is_floating_point():
            pairs.append((cast(nn.Parameter, mine), cast(nn.Parameter, theirs)))
        else:
            mine.copy_(theirs)
    if pairs:
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], 1 - momentum)


class MomentumQueue(nn.Module):
    """The latest vectors of the momentum towers, first in, first out; column k belongs to track ids[k] (-1: empty).

    Buffers: one by the name of each tower, f32 [size, dims]; ids i64 [size]; place i64 (the column that is overwritten
    next).
    """

    ids: Tensor
    place: Tensor

    def __init__(self, names: Sequence[str], size: int, dims: int) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in names:
            self.register_buffer(name, torch.zeros(size, dims))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def vectors(self, name: str) -> Tensor:
        """The vectors of one tower, f32 [size, dims]; zeros where a column is empty."""
        return cast(Tensor, getattr(self, name))

    @torch.no_grad()
    def push(self, vectors: Mapping[str, Tensor], ids: Tensor) -> None:
        """Put in each tower's vectors f32 [B, dims] of tracks i64 [B]; of a batch longer than the queue the end
        stays.
        """
        size = len(self.ids)
        if size == 0:
            return
        ids = ids[-size:]
        columns = (self.place + torch.arange(len(ids), device=self.ids.device)) % size
        for name in self.names:
            self.vectors(name)[columns] = vectors[name][-size:].to(self.vectors(name).dtype)
        self.ids[columns] = ids
        self.place.copy_((self.place + len(ids)) % size)
