"""The score that selects LARP's epochs: Recall@10 on validation playlists, by the protocol of the test."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import VALID, DataSet
from training.evaluation.continuation import (
    ContinuationProtocol,
    draw_queries,
    evaluate_continuation,
    mean_of_seeds,
)
from training.evaluation.results import EvaluationError
from training.larp.config import TOWERS, LarpConfig
from training.larp.content import Content, Vectors, encode, together
from training.larp.losses import Relations, Similar, Targets, wtc
from training.larp.model import Larp

CUT = 10
SHARES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)
"""What `audio_share` is chosen from; of equal scores the earliest counts: nearest to Eq. 11."""


class Validation(Protocol):
    """A score of the model, higher is better, and its name."""

    name: str

    def score(self, larp: Larp) -> float:
        """Score the model as it stands (in evaluation mode)."""
        ...


class RecallValidation:
    """Mean Recall@10 over the validation playlists, half of each as seeds, all validation tracks as
    candidates.

    Averaged over `validation_draws` draws of the seeds, because few playlists make a coarse score.
    """

    name = f"R@{CUT}"

    def __init__(self, dataset: DataSet, content: Content, config: LarpConfig, split: int = VALID) -> None:
        self._content, self._config, self._count = content, config, len(dataset.tracks)
        self._protocol = ContinuationProtocol(cuts=(CUT,), repeats=config.validation_draws)
        readable = np.any([content.available(name) for name in config.towers], axis=0)
        chosen = (dataset.track_split == split) & readable
        self._rows = np.flatnonzero(chosen)
        self._queries = draw_queries(
            dataset.playlists,
            dataset.playlist_split == split,
            [track.track_id for track in dataset.tracks],
            chosen,
            self._protocol,
        )

    def score(self, larp: Larp) -> float:
        """Recall@10 of the joined vectors; where the share is to be chosen, of the best, which the model then keeps."""
        fixed = self._config.audio_share
        shares = SHARES if fixed is None and len(larp.names) == 2 else (0.5 if fixed is None else fixed,)
        vectors = self._vectors(larp)
        scores = self._recall({str(share): together(vectors, share) for share in shares})
        best = max(shares, key=lambda share: (scores[str(share)], -shares.index(share)))
        larp.audio_share.fill_(best)
        return scores[str(best)]

    def scores(self, larp: Larp) -> dict[str, float]:
        """Recall@10 of each tower, and of both at the model's share."""
        vectors = self._vectors(larp)
        return self._recall({**vectors, "both": together(vectors, larp.audio_share.item())})

    def _vectors(self, larp: Larp) -> dict[str, Vectors]:
        return {name: encode(larp, name, self._content, self._rows) for name in larp.names}

    def _recall(self, vectors: dict[str, Vectors]) -> dict[str, float]:
        methods = {}
        for name, rows in vectors.items():
            table = np.full((self._count, rows.shape[1]), np.nan, np.float32)
            table[self._rows] = rows
            methods[name] = mean_of_seeds(table)
        found = evaluate_continuation(methods, self._queries, self._rows, self._protocol)
        return {name: found.method(name).figures[self.name].value for name in methods}


class LossValidation:
    """Minus the within-track loss of the validation tracks: what is left to select on without playlists."""

    name = "validation loss (negative)"

    def __init__(self, content: Content, rows: NDArray[np.int64]) -> None:
        self._content, self._rows = content, rows

    def score(self, larp: Larp) -> float:
        """-WTC (Eq. 1) with each validation track's vectors as keys to the others'."""
        vectors = {name: torch.from_numpy(encode(larp, name, self._content, self._rows)) for name in larp.names}
        count = len(self._rows)
        places = torch.arange(count)
        same, related = torch.eye(count).bool(), torch.zeros(count, count).bool()
        relations = Relations(same, related, torch.ones(count).bool(), places, places.new_full((count,), -1), count)
        sides = [("audio", "text"), ("text", "audio")]
        with torch.autocast("cpu", enabled=False):
            found = Similar.of(vectors, vectors, vectors, larp.temperature.detach().cpu(), sides, Targets())
            return -wtc(found, relations, sides, Targets()).mean().item()


def validation_of(dataset: DataSet, content: Content, config: LarpConfig) -> Validation | None:
    """Recall where the validation split has playlists, else the loss, else (one tower, under two tracks) None."""
    try:
        return RecallValidation(dataset, content, config)
    except EvaluationError as error:
        if error.code != "no_test_playlists":
            raise
    if set(config.towers) != set(TOWERS):
        return None
    complete = content.available("audio") & content.available("text")
    rows = np.flatnonzero((dataset.track_split == VALID) & complete)
    return LossValidation(content, rows) if len(rows) >= 2 else None
