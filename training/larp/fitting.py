"""What is fitted to the training tracks before training: the heads."""

import numpy as np
import torch

from training.larp.content import BATCH, on
from training.larp.corpus import Corpus
from training.larp.heads import spread
from training.larp.model import Larp

SAMPLE, SAMPLE_WHITENED, SAMPLE_FROZEN = 1024, 4096, 65_536
"""Training tracks whose encodings heads are fitted to: to be trained on, to stay so, and of frozen encoders."""
Rows = np.ndarray


@torch.no_grad()
def spread_heads(larp: Larp, corpus: Corpus) -> None:
    """Fit the untrained heads to what the encoders say of a sample of the training tracks (`heads.spread`)."""
    larp.eval()
    frozen = corpus.content.frozen
    most = SAMPLE_WHITENED if corpus.config.heads == "whitened" else SAMPLE
    rows = corpus.rows[evenly(len(corpus), SAMPLE_FROZEN if frozen else most)]
    for name in larp.names:
        tower, pooled = larp.tower(name), []
        for part in _parts(rows):
            inputs = on(larp.device, corpus.content.inputs(name, part, larp))
            pooled.append(inputs[0] if frozen else tower.pooled(*inputs))
        spread(tower.head, torch.cat(pooled))
    larp.train()


def evenly(count: int, most: int) -> Rows:
    """At most so many of `count` places, evenly spaced, i64."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def _parts(rows: Rows) -> list[Rows]:
    return np.array_split(rows, -(-len(rows) // BATCH))
