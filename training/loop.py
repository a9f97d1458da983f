"""Epochs, mixed precision, schedule, early stopping: a training loop that knows no model by name."""

import ctypes
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from index.errors import DebutError
from training.progress import Progress, Stage

State = dict[str, Any]
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


class TrainingError(DebutError):
    """A training run that cannot go on."""

    code = "training_failed"


class Task(Protocol):
    """What is trained: it owns its loss, its state and what it reports. Batches are opaque to the loop.

    A task may also have `lr_scales() -> Mapping[Parameter, float]`: factors of the learning rate, 1 for the others.
    """

    name: str

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters to optimise."""
        ...

    def steps(self, epoch: int) -> int:
        """Number of batches in `epoch` (counted from 0)."""
        ...

    def batches(self, epoch: int) -> Iterator[Any]:
        """The batches of `epoch`; as many as `steps` says."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss (runs in training mode, under autocast) and figures to show."""
        ...

    def after_step(self) -> None:
        """Called after each optimiser step (momentum copies, queues, clamps)."""
        ...

    def validate(self) -> float:
        """The score to select on, higher is better (runs under autocast, without gradients)."""
        ...

    def state_dict(self) -> State:
        """Everything that must be restored with the best epoch: nested dicts of tensors and plain values."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Inverse of `state_dict`."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How a task is optimised. Raises ValueError for a value outside its range."""

    epochs: int = 10
    """Most epochs to run."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; cosine to zero over all epochs."""
    warmup_steps: int = 0
    """Steps of linear warm-up to `lr`."""
    weight_decay: float = 0.01
    """Decoupled weight decay of parameters with two or more dimensions (biases and norms have none)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moment decays."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 turns it off."""
    patience: int = 5
    """Stop after so many epochs without a better validation score; 0 runs all epochs."""
    precision: str = "auto"
    """"fp32", "bf16" (autocast), or "auto": bf16 where the hardware multiplies it natively."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ... or "auto": cuda where there is one."""
    threads: int = 0
    """CPU threads of torch; 0: the cores this process may use. Another count changes the last bits."""
    seed: int = 0
    """Seed of all random numbers of the run."""

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "lr": self.lr}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "patience", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f'precision must be "auto", "fp32" or "bf16", not {self.precision!r}')


@dataclass
class FitResult:
    """Outcome of `fit`: the best validation score, its epoch (from 0), and one row of figures an epoch."""

    best_score: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@contextmanager
def reproducible(config: LoopConfig) -> Iterator[None]:
    """Fix torch's seed and number of threads while the block runs, so that it can be repeated; then put both back."""
    before = torch.get_num_threads()
    _keep_freed_memory()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
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


def fit(task: Task, config: LoopConfig, progress: Progress) -> FitResult:
    """Train until the epochs or the patience run out, then restore the best epoch's state.

    Equal scores keep the earlier epoch. Raises TrainingError when the loss or the score stops being finite.
    """
    steps = [task.steps(epoch) for epoch in range(config.epochs)]
    run = _Run(task, config, total=sum(steps))
    result = FitResult()
    best: State = {}
    with progress.stage(task.name, sum(steps)) as stage:
        for epoch in range(config.epochs):
            stage.figures["epoch"] = f"{epoch + 1}/{config.epochs}"
            row = run.epoch(epoch, stage)
            row["score"] = score = run.validate()
            result.history.append(row)
            if score > result.best_score:
                result.best_score, result.best_epoch = score, epoch
                best = copy_state(task.state_dict())
            stage.advance(0, score=score, best=result.best_score)
            if config.patience and epoch - result.best_epoch >= config.patience:
                break
    task.load_state_dict(best)
    return result


class _Run:
    """One optimiser and its schedule."""

    def __init__(self, task: Task, config: LoopConfig, total: int) -> None:
        self.task, self.config, self.total = task, config, total
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        groups = _groups(self.parameters, config.weight_decay, getattr(task, "lr_scales", dict)())
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
        self.device = pick_device(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.step = 0

    def epoch(self, epoch: int, stage: Stage) -> dict[str, float]:
        """Run one epoch; the means of its figures."""
        totals: dict[str, float] = {}
        count = 0
        for batch in self.task.batches(epoch):
            figures = self._optimise(batch)
            count += 1
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value
            stage.advance(1, loss=figures["loss"])
        return {"epoch": float(epoch)} | {name: value / count for name, value in totals.items()}

    def validate(self) -> float:
        """The task's validation score."""
        with torch.no_grad(), self._autocast():
            score = self.task.validate()
        if not math.isfinite(score):
            raise TrainingError(f"{self.task.name}: the validation score is {score}; lower the learning rate")
        return score

    def _optimise(self, batch: Any) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(self.step, self.total, self.config)
        with self._autocast():
            loss, figures = self.task.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"{self.task.name}: the loss is {value} at step {self.step}; lower the learning rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimiser.step()
        self.task.after_step()
        self.step += 1
        return {"loss": value, **figures}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def learning_rate(step: int, total: int, config: LoopConfig) -> float:
    """Linear warm-up to `lr`, then half a cosine down to zero at `total` steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def pick_device(name: str) -> torch.device:
    """Resolve "auto" to cuda where there is one. Raises TrainingError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used: {error}", code="device_missing") from error
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: "auto" says yes where the processor multiplies bfloat16 itself."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def copy_state(state: Any) -> Any:
    """Deep copy of nested dicts and lists of tensors and plain values."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copy_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copy_state(value) for value in state)
    return state


def _groups(
    parameters: list[nn.Parameter], weight_decay: float, lr_scales: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay: what has fewer than two dimensions (biases, norms) does not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        key = (lr_scales.get(parameter, 1.0), weight_decay if parameter.ndim >= 2 else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [{"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()]
