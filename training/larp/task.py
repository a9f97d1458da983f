"""LARP as a task of the training loop: one stage's losses over the corpus, selected on validation."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.larp.config import StageConfig
from training.larp.corpus import Corpus
from training.larp.pretraining import Batch, Pretraining
from training.larp.validation import Validation


class LarpTask:
    """One of LARP's stages (see `training.loop.Task`). Weights, queue and tables carry over in `pretraining`.

    Where there is no validation, each epoch scores better than the one before, so the last one stays.
    """

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        pretraining: Pretraining,
        corpus: Corpus,
        validation: Validation | None,
        rng: np.random.Generator,
    ) -> None:
        self.name = name
        self._stage = stage
        self._pretraining = pretraining
        self._corpus = corpus
        self._validation = validation
        self._rng = rng
        self._paired = stage.losses != ("wtc",)
        self._epochs = 0

    def parameters(self) -> Iterable[nn.Parameter]:
        """The towers, the temperature, and the fusion where it is used."""
        yield from self._pretraining.online.parameters()
        if "tpc" in self._stage.losses:
            yield from self._pretraining.fusion.parameters()

    def lr_scales(self) -> dict[nn.Parameter, float]:
        """The encoders' factors of the learning rate; heads, temperature and fusion have 1."""
        larp, config = self._pretraining.online, self._corpus.config
        return dict.fromkeys(larp.audio.encoder.parameters(), config.audio.lr_scale) | dict.fromkeys(
            larp.text.encoder.parameters(), config.text.lr_scale
        )

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        """Batches in an epoch."""
        return self._corpus.steps(self._paired)

    def batches(self, epoch: int) -> Iterator[Batch]:  # noqa: ARG002
        """The corpus in random order, with fresh pairs, clips and captions."""
        self._pretraining.train()
        return self._corpus.epoch(self._pretraining.online, self._paired, self._rng)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The sum of the stage's losses (Eq. 7-9), and each of them."""
        columns = self._pretraining.columns(batch.tracks)
        neighbourhood = self._corpus.neighbourhood(batch, columns)
        losses = self._pretraining.losses(batch, neighbourhood, self._stage.losses)
        figures = {name: value.item() for name, value in losses.items()}
        return torch.stack([*losses.values()]).sum(), figures

    def after_step(self) -> None:
        """Momentum, queue, temperature."""
        self._pretraining.after_step()

    def validate(self) -> float:
        """The validation's score."""
        self._epochs += 1
        if self._validation is None:
            return float(self._epochs)
        self._pretraining.eval()
        return self._validation.score(self._pretraining.online)

    def state_dict(self) -> dict[str, Any]:
        """Towers, fusion, momentum copies, queue and tables."""
        return dict(self._pretraining.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._pretraining.load_state_dict(state)
