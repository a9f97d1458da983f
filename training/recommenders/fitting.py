"""Epochs over the training entries, the best of them kept: the loop of the recommenders that are trained."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.loop import TrainingError, copy_state
from training.progress import Progress
from training.recommenders.interactions import Interactions
from training.recommenders.recommender import Validate

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class FitConfig:
    """What the trained recommenders have in common. Raises ValueError for a value outside its range."""

    dims: int = 64
    """Length of the vectors that are compared."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers."""
    lr: float = 1e-3
    """Learning rate, constant."""
    l2: float = 0.1
    """Weight of the L2 regularisation (of what: see the recommender)."""
    epochs: int = 10
    """Most epochs to run; each is a pass over the training entries, or several."""
    least_steps: int = 20
    """Steps an epoch at least: few entries are passed several times."""
    batch: int = 512
    """Training entries a step, which compares all their playlists with all their tracks."""
    patience: int = 3
    """Epochs without a better validation score, where there is one, before the fit ends; 0 runs all."""
    threads: int = 0
    """CPU threads; 0: the cores this process may use. Another count changes the last bits."""
    seed: int = 0
    """Seed of all random numbers of the fit."""

    def __post_init__(self) -> None:
        for name in ("dims", "lr", "epochs", "least_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one width or more, all positive, not {self.hidden}")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2 (a lone entry is told from nothing), not {self.batch}")
        for name in ("l2", "patience", "threads", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


class Fitted(Protocol):
    """What is trained: the model (a recommender as it stands), its optimisers, and the loss of a batch."""

    name: str
    model: Any
    optimisers: Sequence[torch.optim.Optimizer]

    def loss(self, playlist: Rows, track: Rows, rng: np.random.Generator) -> Tensor:
        """Scalar loss of the training entries (playlist i64 [B], track i64 [B])."""
        ...


def optimise(
    task: Fitted, data: Interactions, config: FitConfig, progress: Progress, validate: Validate | None
) -> None:
    """Run the epochs, then restore the one that `validate`, if given, scored best (of equal ones the earliest).

    Raises TrainingError when the loss stops being finite.
    """
    rng = np.random.default_rng(config.seed)
    steps = max(config.least_steps, math.ceil(len(data.track) / config.batch))
    best, best_epoch, kept = -math.inf, 0, None
    with progress.stage(f"fit {task.name}", config.epochs * steps) as stage:
        for epoch in range(config.epochs):
            task.model.train()
            for entries in _batches(len(data.track), steps, config.batch, rng):
                loss = _step(task.optimisers, task.loss(data.playlist[entries], data.track[entries], rng))
                if not math.isfinite(loss):
                    raise TrainingError(f"{task.name}: the loss is {loss} in epoch {epoch + 1}; lower its lr")
                stage.advance(1, epoch=f"{epoch + 1}/{config.epochs}", loss=loss)
            task.model.eval()
            if validate is None:
                continue
            score = validate(task.model)
            if score > best:
                best, best_epoch, kept = score, epoch, copy_state(task.model.state_dict())
            stage.advance(0, score=score, best=best)
            if 0 < config.patience <= epoch - best_epoch:
                break
    if kept is not None:
        task.model.load_state_dict(kept)


def _batches(entries: int, steps: int, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Yield `steps` batches of even sizes up to `size`, from as many new orders of the entries as it takes."""
    passes = max(1, steps * min(size, entries) // entries)
    for share in np.array_split(np.arange(steps), passes):
        yield from np.array_split(rng.permutation(entries), len(share))


def _step(optimisers: Sequence[torch.optim.Optimizer], loss: Tensor) -> float:
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()
    return loss.item()


def apply(module: nn.Module, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The module's answer to rows f32 [n, d], f32 [n, k], without gradients."""
    with torch.inference_mode():
        return module(torch.from_numpy(rows)).numpy()
