"""What is fitted to the training tracks instead of trained: untrained heads, whitened heads, a gate's scale."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from training.larp.content import BATCH, on
from training.larp.corpus import Corpus
from training.larp.heads import spread
from training.larp.model import Larp

SAMPLE, SAMPLE_FROZEN = 1024, 65_536
"""Training tracks whose encodings the untrained heads are fitted to: live ones, and those computed anyway."""
_CHOICE = 3  # stream of random numbers, beside those of `corpus`
Rows = np.ndarray


class HeadSample:
    """The training tracks that whitened heads are fitted to: `refit_tracks` of them, the same all through a run.

    Captions are kept as word pieces, or as states where their encoder is fixed (f32, 1.5 kB a word piece at MiniLM's
    width); clips are read again each time.
    """

    def __init__(self, larp: Larp, corpus: Corpus) -> None:
        self._larp, self._content, config = larp, corpus.content, corpus.config
        rng = np.random.default_rng([_CHOICE, config.loop.seed])
        chosen = rng.choice(len(corpus), min(config.refit_tracks, len(corpus)), replace=False)
        self.rows: Rows = corpus.rows[np.sort(chosen)]
        self._text: list[tuple[Tensor, ...]] = []

    def inputs(self, name: str) -> Iterator[tuple[Tensor, ...]]:
        """What a tower reads of the tracks, some of them at once, on the model's device."""
        if name != "text":
            yield from self._read(name)
            return
        if not self._text:
            self._text = [*self._read(name)]
        yield from self._text

    def _read(self, name: str) -> Iterator[tuple[Tensor, ...]]:
        for rows in _parts(self.rows):
            inputs = on(self._larp.device, self._content.inputs(name, rows, self._larp))
            yield states_of_fixed(self._larp, name, inputs, frozen=self._content.frozen)


def states_of_fixed(larp: Larp, name: str, inputs: tuple[Tensor, ...], *, frozen: bool) -> tuple[Tensor, ...]:
    """The inputs of a text tower whose encoder is fixed: states instead of word pieces; else (or where the inputs are
    `frozen` encoders' outputs) as they are. A momentum copy's encoder would say the same, and need not be asked.
    """
    if name != "text" or frozen or larp.text is None or not larp.text.fixed:
        return inputs
    with torch.no_grad():
        return larp.text.states(*inputs), inputs[1]


@torch.no_grad()
def spread_heads(larp: Larp, corpus: Corpus) -> None:
    """Fit the untrained heads to what the encoders say of a sample of the training tracks (`heads.spread`)."""
    larp.eval()
    frozen = corpus.content.frozen
    rows = corpus.rows[evenly(len(corpus), SAMPLE_FROZEN if frozen else SAMPLE)]
    if corpus.config.heads == "whitened":
        rows = HeadSample(larp, corpus).rows
    for name in larp.names:
        tower, pooled = larp.tower(name), []
        for part in _parts(rows):
            inputs = on(larp.device, corpus.content.inputs(name, part, larp))
            pooled.append(inputs[0] if frozen else tower.pooled(*inputs))
        spread(tower.head, torch.cat(pooled))
    larp.train()


@torch.no_grad()
def fit_gate(larp: Larp, corpus: Corpus) -> None:
    """Give a text tower's gate mean and standard deviation of the states in training captions; without one, nothing."""
    if larp.text is None or larp.text.gate is None:
        return
    larp.eval()
    found = []
    for part in _parts(corpus.rows[evenly(len(corpus), SAMPLE)]):
        ids, mask = on(larp.device, corpus.content.inputs("text", part, larp))
        found.append(larp.text.states(ids, mask)[mask.bool()])
    larp.text.gate.fit(torch.cat(found))
    larp.train()


def evenly(count: int, most: int) -> Rows:
    """At most so many of `count` places, evenly spaced, i64."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def _parts(rows: Rows) -> list[Rows]:
    return np.array_split(rows, -(-len(rows) // BATCH))
