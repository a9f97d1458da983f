"""BCL as a task of the training loop: its batches, its loss L = L_s + lambda L_c, its validation."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.bcl.augment import augment
from training.bcl.candidates import CandidatePool
from training.bcl.correlation import CorrelationTracker
from training.bcl.grouping import sample_groups
from training.bcl.losses import bpr, nt_xent, sampled_softmax
from training.bcl.model import Bcl, Inputs, forget
from training.bcl.similarity import Neighbours
from training.bcl.supervision import ItemPairs
from training.evaluation.metrics import blocks, ranking

MOST_QUERIES = 10_000
"""Validation tracks asked after an epoch: enough for a Recall to half a per cent, however large the catalogue."""


@dataclass(frozen=True)
class Batch:
    """Track rows of one step: anchor [B], positive [B], negative [B, M] (or [P], shared by all, for the softmax);
    items [C] of the contrastive loss.

    `seed` starts the step's random numbers, so that a step's outcome depends on nothing but the weights.
    """

    anchor: NDArray[np.int64]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    items: NDArray[np.int64]
    seed: int


@dataclass(frozen=True)
class Validation:
    """Cold queries [Q], warm candidates [C] (track rows, sorted), and each query's truth among them."""

    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    truth: Neighbours

    @classmethod
    def of(
        cls, queries: NDArray[np.int64], candidates: NDArray[np.int64], found: Neighbours, most: int = MOST_QUERIES
    ) -> "Validation":
        """Keep the queries that have a neighbour in `found` (one entry a query): at most `most`, evenly spread."""
        some = np.flatnonzero(np.diff(found.indptr))
        asked = min(len(some), most)
        some = some[np.arange(asked) * len(some) // max(asked, 1)]
        return cls(queries[some], candidates, found.some(some))

    def recall(self, vectors: NDArray[np.float32], cut: int) -> float:
        """Return Recall@`cut` of the inner product of `vectors` [N, d], a block of queries at a time."""
        found, near = [], vectors[self.candidates].T
        for block in blocks(len(self.queries), len(self.candidates)):
            scores = vectors[self.queries[block]] @ near
            truth = np.zeros(scores.shape, bool)
            for row, query in enumerate(range(block.start, block.stop)):
                truth[row, np.searchsorted(self.candidates, self.truth.of(query))] = True
            found.append(ranking(scores, truth, (cut,), np.random.default_rng(0))[f"R@{cut}"])
        return float(np.concatenate(found).mean())


class BclTask:
    """What the loop trains.

    `inputs` are the transformed fields of the whole catalogue; `pairs` may be None (no co-listening:
    contrastive loss only) and `validation` too (the last epoch is then the best). `items` are the rows that the
    contrastive loss and the correlations are drawn from, all when None.
    """

    name = "bcl"

    def __init__(
        self,
        model: Bcl,
        inputs: Inputs,
        pairs: ItemPairs | None,
        validation: Validation | None,
        device: torch.device,
        items: NDArray[np.int64] | None = None,
    ) -> None:
        self.model, self.config, self.device = model.to(device), model.config, device
        self.inputs = {name: array.to(device) for name, array in inputs.items()}
        self.pairs, self.validation = pairs, validation
        self.tracks = len(next(iter(inputs.values())))
        self.items = np.arange(self.tracks) if items is None else items
        self.generator = torch.Generator()
        self.validated = 0
        softmax = pairs is not None and self.config.supervised == "softmax"
        self.pool = CandidatePool(pairs, self.config.batch, self.config.pool) if pairs and softmax else None
        sample = np.random.default_rng([self.config.loop.seed, 0]).permutation(self.items)
        self.tracker = CorrelationTracker(
            self._embeddings(sample[: self.config.correlation_sample]),
            alpha=self.config.correlation_alpha,
            every=self.config.correlation_every,
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the model's parameters."""
        return self.model.parameters()

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        """Return the steps of any epoch."""
        if self.config.steps:
            return self.config.steps
        if self.pairs:
            return -(-len(self.pairs.neighbours.rows) // self.config.batch)
        return -(-len(self.items) // self.config.items)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the rows of each step; the same for the same seed and epoch, whatever came before."""
        rng = np.random.default_rng([self.config.loop.seed, 1, epoch])
        return islice(self._batches(epoch, rng), start, None)

    def _batches(self, epoch: int, rng: np.random.Generator) -> Iterator[Batch]:
        none = np.empty(0, np.int64)
        for _ in range(self.steps(epoch)):
            drawn = self._draw(self.pairs, rng) if self.pairs else (none,) * 3
            items = rng.choice(self.items, min(self.config.items, len(self.items)), replace=False)
            yield Batch(*drawn, items, int(rng.integers(2**62)))

    def _draw(
        self, pairs: ItemPairs, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        if not self.pool:
            return pairs.draw(self.config.batch, self.config.negatives, rng)
        anchor, positive, _ = pairs.draw(self.config.batch, 0, rng)
        return anchor, positive, pairs.negatives[rng.integers(0, len(pairs.negatives), self.config.pool)]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return L = L_s + lambda L_c and its parts."""
        self.model.train()
        torch.manual_seed(batch.seed)  # dropout draws from the global generator
        self.generator.manual_seed(batch.seed)
        total, figures = torch.zeros((), device=self.device), {}
        if self.pairs:
            total = self._supervised(batch)
            figures[self.config.supervised] = total.item()
        # Without pairs the contrastive loss is all there is, whatever its weight.
        weight = self.config.contrastive_weight if self.pairs else 1.0
        if weight:
            contrastive = self._contrastive(batch)
            figures["nt_xent"] = contrastive.item()
            total = total + weight * contrastive
        return total, figures

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        self.model.keep_temperature()

    def validate(self) -> float:
        """Return Recall@K of cold validation tracks against warm ones; without truth, the epoch's number."""
        self.validated += 1
        if self.validation is None:
            return float(self.validated)
        return self.validation.recall(self.vectors(), self.config.validation_cut)

    def vectors(self, encode: Callable[[Inputs], Tensor] | None = None) -> NDArray[np.float32]:
        """Return the vectors of the whole catalogue as the model stands: z f32 [N, dims], or what `encode` makes."""
        self.model.eval()
        with torch.no_grad():
            parts = [
                (encode or self.model)(self._inputs(rows))
                for rows in np.array_split(np.arange(self.tracks), 1 + self.tracks // 8192)
            ]
        return torch.cat(parts).float().cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return weights, correlation matrix and counters."""
        tracker = {"matrix": self.tracker.matrix, "steps": self.tracker.steps}
        return {"model": self.model.state_dict(), "tracker": tracker, "validated": self.validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.tracker.matrix, self.tracker.steps = state["tracker"]["matrix"], state["tracker"]["steps"]
        self.validated = state["validated"]

    def _inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        index = torch.from_numpy(rows).to(self.device)
        return {name: array[index] for name, array in self.inputs.items()}

    def _embeddings(self, rows: NDArray[np.int64]) -> Tensor:
        with torch.no_grad():
            return self.model.embedding(self._inputs(rows)).cpu()

    def _encoded(self, drawn: NDArray[np.int64]) -> Tensor:
        """Vectors of `drawn`, some of their fields forgotten, each track encoded once however often it is drawn."""
        rows, place = np.unique(drawn, return_inverse=True)
        vectors = self.model(forget(self._inputs(rows), self.model.fields, self.config.unknown_rate, self.generator))
        return torch.as_tensor(vectors[torch.from_numpy(place).to(self.device)])

    def _softmax(self, batch: Batch, pool: CandidatePool) -> Tensor:
        found = pool.of(batch.anchor, batch.positive, batch.negative)
        drawn = self._encoded(np.concatenate([batch.anchor, found.rows]))
        target, left_out, log_share = (
            torch.from_numpy(part).to(self.device) for part in (found.target, found.left_out, found.log_share)
        )
        size = len(batch.anchor)
        return sampled_softmax(drawn[:size], drawn[size:], target, left_out, log_share, self.model.temperature)

    def _supervised(self, batch: Batch) -> Tensor:
        if self.pool:
            return self._softmax(batch, self.pool)
        drawn = self._encoded(np.concatenate([batch.anchor, batch.positive, batch.negative.ravel()]))
        size = len(batch.anchor)
        negative = drawn[2 * size :].view(*batch.negative.shape, -1)
        return bpr(drawn[:size], drawn[size : 2 * size], negative, self.model.temperature)

    def _contrastive(self, batch: Batch) -> Tensor:
        embeddings = self.model.embedding(self._inputs(batch.items))
        if self.tracker.due():
            self.tracker.update(embeddings[: self.config.correlation_batch].detach().cpu())
        first, second = self._views(self.model.normalised(embeddings))
        views = self.model.project(self.model.encode(torch.cat([first, second])))
        return nt_xent(*views.chunk(2), self.config.contrastive_temperature)

    def _views(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Split the fields [B, F, d] of each item into two disturbed views, flat [B, F d]."""
        items, count, _ = fields.shape
        correlation = torch.ones(count, count) if self.config.random_groups else self.tracker.matrix
        seeds = torch.randint(count, (items,), generator=self.generator)
        groups = sample_groups(correlation, seeds, self.config.grouping_temperature, self.generator)
        kept = groups.to(self.device).unsqueeze(2)
        first = torch.where(kept, fields, self.model.mask).flatten(1)
        second = torch.where(kept, self.model.mask, fields).flatten(1)
        names = self.config.augmentations
        return augment(first, names, self.generator), augment(second, names, self.generator)
