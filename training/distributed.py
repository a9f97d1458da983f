"""One process or several (torchrun): who this one is, and sums and gathers over all of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from training.hardware import HardwareError

_PATIENCE = timedelta(days=7)  # the others wait while the first decodes all audio, or computes all features


@dataclass(frozen=True)
class World:
    """This process's place among `size` that train one model together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> slice:
        """The part of a batch of `count` that a rank (this one) encodes: all parts differ in size by one at most."""
        rank = self.rank if rank is None else rank
        size, more = divmod(count, self.size)
        start = rank * size + min(rank, more)
        return slice(start, start + size + (rank < more))

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Put the ranks' parts [share(count), ...] of a batch together, [count, ...], without gradients."""
        if self.size == 1:
            return part.detach()
        longest = -(-count // self.size)
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        sizes = [self.share(count, rank) for rank in range(self.size)]
        return torch.cat([found[: part.stop - part.start] for found, part in zip(parts, sizes, strict=True)])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def from_first(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the first rank's values on every rank."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=device)
        dist.broadcast(told, 0)
        return [float(value) for value in told]

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
    """Return this process's place; alone unless `joined` is around it."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the other processes of a `torchrun` while the block runs; alone without one. NCCL on GPUs, gloo on CPUs.

    Raises HardwareError where there are GPUs, but fewer than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise HardwareError(f"process {local} of this machine has no GPU: start {devices} (--nproc-per-node)")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield world()
    finally:
        dist.destroy_process_group()
