"""LARP as a task of the training loop: one stage's losses over the corpus, selected on validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.distributed import world
from training.larp.config import StageConfig
from training.larp.content import on
from training.larp.corpus import Batch, Corpus
from training.larp.pretraining import Inputs, Pretraining, Step
from training.larp.validation import Validation

_DISTILL_EPOCHS = 2  # alpha rises over the first two epochs of a stage, as in LARP's published code


@dataclass(frozen=True)
class Part:
    """Rows of a batch that are encoded together: their places in it, and what the towers read."""

    step: Step
    batch: Batch
    places: Tensor
    inputs: Inputs


class LarpTask:
    """One of LARP's stages (see `training.loop.Task`). Weights, queue and tables carry over in `pretraining`.

    Where there is no validation, each epoch scores better than the one before, so the last one stays.
    """

    def __init__(
        self,
        name: str,
        number: int,
        stage: StageConfig,
        pretraining: Pretraining,
        corpus: Corpus,
        validation: Validation | None,
    ) -> None:
        self.name = name
        self._number = number
        self._stage = stage
        self._pretraining = pretraining
        self._corpus = corpus
        self._validation = validation
        self._world = world()
        self._paired = stage.losses != ("wtc",)
        self._micro = corpus.config.micro_batch
        self._epochs = 0
        self._batches = 0
        self._step: Step | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The towers (or their heads), the temperature, and the fusion where it is used."""
        return self._pretraining.trained("tpc" in self._stage.losses)

    def lr_scales(self) -> dict[nn.Parameter, float]:
        """The encoders' factors of the learning rate; heads, temperature and fusion have 1."""
        larp, config = self._pretraining.online, self._corpus.config
        scales = {"audio": config.audio.lr_scale, "text": config.text.lr_scale}
        return {p: scales[name] for name in larp.names for p in larp.tower(name).encoder.parameters()}

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        """Batches in an epoch."""
        return self._corpus.steps(self._paired)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The corpus in random order, with fresh pairs, clips and captions."""
        self._pretraining.train()
        self._batches = epoch * self.steps(epoch) + start
        return self._corpus.epoch((self._number, epoch), self._paired, start)

    def parts(self, batch: Batch) -> list[Part]:
        """Encode the batch's keys, and divide this rank's share of its rows into what is encoded at once."""
        mine = np.arange(len(batch.tracks))[self._world.share(len(batch.tracks))]
        chunks = np.array_split(mine, -(-len(mine) // (self._micro or len(mine)))) if len(mine) else []
        inputs = [self._inputs(batch, places) for places in chunks]
        pretraining, device = self._pretraining, self._pretraining.online.device
        keys = pretraining.keys(inputs, len(batch.tracks), self._world)
        tracks, partner, seeds = (
            torch.from_numpy(values).to(device) for values in (batch.tracks, batch.partner, batch.seeds)
        )
        columns = torch.cat([tracks, pretraining.queue.ids])
        self._step = Step(tracks, partner, seeds, keys, columns, self._alpha())
        return [
            Part(self._step, batch, torch.from_numpy(places).to(device), read)
            for places, read in zip(chunks, inputs, strict=True)
        ]

    def _inputs(self, batch: Batch, places: np.ndarray) -> Inputs:
        larp, corpus = self._pretraining.online, self._corpus
        rngs, rows = batch.generators(places), corpus.rows[batch.tracks[places]]
        return {name: on(larp.device, corpus.content.inputs(name, rows, larp, rngs)) for name in larp.names}

    def _alpha(self) -> float:
        return self._corpus.config.distill * min(1.0, self._batches / (_DISTILL_EPOCHS * self.steps(0)))

    def loss(self, part: Part) -> tuple[Tensor, dict[str, float]]:
        """The part's share of the stage's losses (Eq. 7-9): their sum, and each of them."""
        columns = part.step.columns.cpu().numpy()
        near = self._corpus.neighbourhood(part.batch, part.places.cpu().numpy(), columns, part.places.device)
        losses = self._pretraining.losses(part.step, part.places, part.inputs, near, self._stage.losses)
        figures = {name: value.item() for name, value in losses.items()}
        return torch.stack([*losses.values()]).sum(), figures

    def halve(self) -> bool:
        """Encode half as many tracks at once from here on; False when it is one already."""
        now = self._micro or self._corpus.config.batch_size
        self._micro = now // 2
        return now > 1

    def after_step(self) -> None:
        """Momentum, queue, tables, temperature."""
        assert self._step is not None
        self._pretraining.after_step(self._step, self._world)
        self._step = None
        self._batches += 1

    def validate(self) -> float:
        """The validation's score."""
        self._epochs += 1
        if self._validation is None:
            return float(self._epochs)
        self._pretraining.eval()
        return self._validation.score(self._pretraining.online)

    def state_dict(self) -> dict[str, Any]:
        """Towers, fusion, momentum copies, queue and tables; of frozen towers the heads alone."""
        state = self._pretraining.state_dict()
        kept = {name: tensor for name, tensor in state.items() if not self._is_frozen(name)}
        return {"model": kept, "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        own: Sequence[str] = [name for name in self._pretraining.state_dict() if self._is_frozen(name)]
        found = self._pretraining.load_state_dict(state["model"], strict=False)
        if found.unexpected_keys or set(found.missing_keys) - set(own):
            raise KeyError(f"state of another model: {found}")
        self._epochs = state["epochs"]

    def _is_frozen(self, key: str) -> bool:
        return self._pretraining.frozen and key.startswith("online.") and ".encoder." in key
