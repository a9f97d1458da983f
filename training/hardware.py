"""What a run computes on: device, precision, threads, and the same random numbers every time."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from index.errors import DebutError

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


class HardwareError(DebutError):
    """A device that is not there."""

    code = "device_missing"


@contextmanager
def reproducible(seed: int, threads: int = 0) -> Iterator[None]:
    """Fix torch's seed and number of threads while the block runs, so that it can be repeated; then put both back.

    threads 0: the cores this process may use, shared with the others that torchrun started on this machine.
    """
    before = torch.get_num_threads()
    _keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads or max(cores, 1))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Ask glibc not to hand freed blocks back to the kernel, which would only have to clear them for the next step.

    As MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ would from outside. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def pick_device(name: str) -> torch.device:
    """Resolve "auto" to cuda where there is one (each rank its own). Raises HardwareError for one that is not there."""
    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HardwareError(f"device {name!r} cannot be used: {error}") from error
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: "auto" says yes where the processor multiplies bfloat16 itself."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or the CPU (torch has no class for the latter)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("not enough memory", "can't allocate memory", "out of memory")
    )
