"""Epochs, mixed precision, schedule, early stopping, resuming: a training loop that knows no model by name."""

import gc
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from index.errors import DebutError
from training.board import Board
from training.distributed import world
from training.hardware import out_of_memory, pick_device, uses_bf16
from training.progress import Progress, Stage
from training.saves import FitResult, Position, Saves, State

__all__ = ["FitResult", "LoopConfig", "Task", "TrainingError", "copy_state", "fit", "learning_rate"]
_BOARD_EVERY = 10  # steps between points of the loss curve


class TrainingError(DebutError):
    """A training run that cannot go on."""

    code = "training_failed"


class Task(Protocol):
    """What is trained: it owns its loss, its state and what it reports. Batches are opaque to the loop.

    A task may also have:
    lr_scales() -> Mapping[Parameter, float]: factors of the learning rate, 1 for the others.
    parts(batch) -> Sequence[part]: pieces of a batch whose losses, each given to `loss`, add up to the batch's; their
    gradients are accumulated. Over several ranks the parts of all ranks add up. Runs under autocast.
    halve() -> bool: make the parts smaller, because memory ran out; False when they cannot be.
    """

    name: str

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters to optimise."""
        ...

    def steps(self, epoch: int) -> int:
        """Number of batches in `epoch` (counted from 0)."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of `epoch` from number `start` on; as many as `steps` says. They depend on nothing that came
        before.
        """
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
    """Peak learning rate; cosine to zero over all epochs."""
    warmup_steps: int = 0
    """Steps of linear warm-up to `lr`; at most half of all steps."""
    optimiser: str = "adamw"
    """"adamw", or "adam": its weight decay is part of the gradient (Adam with L2)."""
    weight_decay: float = 0.01
    """Weight decay of parameters with two or more dimensions (biases and norms have none)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """The optimiser's moment decays."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 turns it off."""
    patience: int = 5
    """Stop after so many epochs without a better validation score; 0 runs all epochs."""
    keep_start: bool = False
    """Whether the state before the first epoch counts too: a run that betters nothing then changes nothing."""
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
        if self.optimiser not in ("adamw", "adam"):
            raise ValueError(f'optimiser must be "adamw" or "adam", not {self.optimiser!r}')


def fit(
    task: Task, config: LoopConfig, progress: Progress, saves: Saves | None = None, board: Board | None = None
) -> FitResult:
    """Train until the epochs or the patience run out, then restore the best epoch's state.

    Equal scores keep the earlier epoch. With `saves` the run is saved as it goes, and one that was broken off goes on
    where its latest save was, to the same weights as if it had not been. Raises TrainingError when the loss or the
    score stops being finite, or memory runs out whatever the size of the parts.
    """
    if saves and task.name in saves.results and not saves.started(task.name):
        return saves.results[task.name]  # finished, and a later task has begun since
    run = _Run(task, config, progress, saves, board)
    if saves and saves.started(task.name):
        run.resume(saves)
    if not run.position.finished:
        run.fit()
    return run.result


class _Run:
    """One optimiser, its schedule, and how far it has come."""

    def __init__(
        self, task: Task, config: LoopConfig, progress: Progress, saves: Saves | None, board: Board | None
    ) -> None:
        self.task, self.config, self.progress, self.saves, self.board = task, config, progress, saves, board
        self.steps = [task.steps(epoch) for epoch in range(config.epochs)]
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        groups = _groups(self.parameters, config.weight_decay, getattr(task, "lr_scales", dict)())
        kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
        self.optimiser = kind(groups, lr=config.lr, betas=config.betas)
        self.device = pick_device(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.world = world()
        if self.world.size > 1 and not hasattr(task, "parts"):
            raise TrainingError(f"{task.name} trains in one process: start it without torchrun", code="one_process")
        self.position = Position(task.name)
        self.result = FitResult()
        self.best: State = {}

    def resume(self, saves: Saves) -> None:
        """Go back to the latest save."""
        assert saves.position is not None
        self.position, self.result = saves.position, saves.results[self.task.name]
        self.task.load_state_dict(saves.load("task"))
        if self.position.finished:
            return
        self.best = saves.load("best")
        moments = saves.load("optimiser")
        self.optimiser.load_state_dict(
            self.optimiser.state_dict() | {"state": {int(key): value for key, value in moments.items()}}
        )
        done = f"step {self.position.step} of {sum(self.steps)}"
        self.progress.say(f"{self.task.name}: goes on after {done}, epoch {self.position.epoch + 1}")

    def fit(self) -> None:
        """All epochs, or as many as patience lasts; the best state stays."""
        with self.progress.stage(self.task.name, sum(self.steps)) as stage:
            stage.done = self.position.step
            if self.config.keep_start and not self.best:
                self.result.best_score, self.best = self._validate(), copy_state(self.task.state_dict())
            while self.position.epoch < self.config.epochs and not self._impatient():
                self._epoch(stage)
        self.task.load_state_dict(self.best)
        self.position.finished = True
        self._save(task=self.task.state_dict())

    def _impatient(self) -> bool:
        waited = self.position.epoch - 1 - self.result.best_epoch
        return 0 < self.config.patience <= waited and self.position.epoch > 0

    def _epoch(self, stage: Stage) -> None:
        at = self.position
        stage.figures["epoch"] = f"{at.epoch + 1}/{self.config.epochs}"
        for batch in self.task.batches(at.epoch, at.place):
            figures = self._optimise(batch)
            for name, value in figures.items():
                at.totals[name] = at.totals.get(name, 0.0) + value
            stage.advance(1, loss=figures["loss"])
            if self.saves and self.saves.due() and at.place < self.steps[at.epoch]:
                self._save_all()
        row = {"epoch": float(at.epoch)} | {name: value / at.place for name, value in at.totals.items()}
        row["score"] = score = self._validate()
        self.result.history.append(row)
        if score > self.result.best_score:
            self.result.best_score, self.result.best_epoch = score, at.epoch
            self.best = copy_state(self.task.state_dict())
        stage.advance(0, score=score, best=self.result.best_score)
        self._show({"score": score}, always=True)
        at.epoch, at.place, at.totals = at.epoch + 1, 0, {}
        self._save_all()

    def _save_all(self) -> None:
        self._save(
            task=self.task.state_dict(), best=self.best, optimiser=dict(self.optimiser.state_dict()["state"].items())
        )

    def _save(self, **states: State) -> None:
        if self.saves and self.world.first:
            self.saves.write(self.position, self.result, **states)

    def _validate(self) -> float:
        score = 0.0
        if self.world.first:
            with torch.no_grad(), self._autocast():
                score = self.task.validate()
        score = self.world.from_first([score], self.device)[0]
        if not math.isfinite(score):
            raise TrainingError(f"{self.task.name}: the validation score is {score}; lower the learning rate")
        return score

    def _optimise(self, batch: Any) -> dict[str, float]:
        at = self.position
        for group in self.optimiser.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(at.step, sum(self.steps), self.config)
        figures = self._gradients(batch)
        if not math.isfinite(figures["loss"]):
            raise TrainingError(
                f"{self.task.name}: the loss is {figures['loss']} at step {at.step}; lower the learning rate"
            )
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimiser.step()
        self.task.after_step()
        at.step, at.place = at.step + 1, at.place + 1
        self._show(figures)
        return figures

    def _gradients(self, batch: Any) -> dict[str, float]:
        """Accumulate the gradients of a batch's parts; if memory runs out, of smaller ones, which add up to the same.

        A step's random numbers depend on the seed and its number alone, so that a resumed run draws the same.
        """
        while True:
            torch.manual_seed(step_seed(self.config.seed, self.task.name, self.position.step, self.world.rank))
            try:
                figures = self._accumulate(batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                told = str(error).splitlines()[0] if str(error) else "out of memory"
            # Outside of the except: the traceback would keep the tensors alive.
            if self.world.size > 1 or not getattr(self.task, "halve", bool)():
                raise TrainingError(
                    f"{self.task.name}: memory ran out at step {self.position.step} ({told}). Lower the batch size, or "
                    "how many tracks are encoded at once (--micro-batch)",
                    code="out_of_memory",
                )
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.progress.say(f"{self.task.name}: memory ran out; from here on batches are encoded in smaller parts")
        self._sum_gradients()
        return figures

    def _sum_gradients(self) -> None:
        """Sum what any rank has a gradient of; what none has keeps None, so that its weights do not even decay."""
        if self.world.size == 1:
            return
        ranks = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.device)
        self.world.sum_([ranks])
        gradients = []
        for parameter, count in zip(self.parameters, ranks.tolist(), strict=True):
            if count:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        self.world.sum_(gradients)

    def _accumulate(self, batch: Any) -> dict[str, float]:
        for parameter in self.parameters:
            parameter.grad = None
        split = getattr(self.task, "parts", None)
        with self._autocast():
            parts: Sequence[Any] = split(batch) if split else [batch]
        sums: dict[str, float] = {"loss": 0.0}
        for part in parts:
            with self._autocast():
                loss, figures = self.task.loss(part)
            loss.backward()
            for name, value in {"loss": loss.item(), **figures}.items():
                sums[name] = sums.get(name, 0.0) + value
        if self.world.size > 1:
            told = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
            self.world.sum_([told])
            sums = dict(zip(sums, told.tolist(), strict=True))
        return sums

    def _show(self, figures: Mapping[str, float], always: bool = False) -> None:
        if self.board and self.world.first and (always or self.position.step % _BOARD_EVERY == 0):
            rate = {"lr": max(group["lr"] for group in self.optimiser.param_groups)}
            named = {f"{self.task.name}/{name}": value for name, value in {**figures, **rate}.items()}
            self.board.scalars(named, self.position.step)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def step_seed(seed: int, task: str, step: int, rank: int = 0) -> int:
    """The seed of torch's generator in one step of one task on one rank."""
    return zlib.crc32(f"{seed} {task} {step} {rank}".encode())


def learning_rate(step: int, total: int, config: LoopConfig) -> float:
    """Linear warm-up to `lr`, then half a cosine down to zero at `total` steps."""
    warmup = min(config.warmup_steps, total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


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
