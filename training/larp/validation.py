"""The score that selects LARP's epochs: Recall@10 on validation playlists, by the protocol of the test."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.caption import caption
from training.data.clips import ClipCache
from training.data.dataset import VALID, DataSet
from training.evaluation.continuation import (
    ContinuationProtocol,
    draw_queries,
    evaluate_continuation,
    mean_of_seeds,
)
from training.evaluation.results import EvaluationError
from training.larp.config import LarpConfig
from training.larp.losses import Keys, Relations, wtc
from training.larp.model import Larp

Vectors = NDArray[np.float32]
CUT = 10
SHARES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)
"""What `audio_share` is chosen from; of equal scores the earliest counts: nearest to Eq. 11."""


class Validation(Protocol):
    """A score of the model, higher is better, and its name."""

    name: str

    def score(self, larp: Larp) -> float:
        """Score the model as it stands (in evaluation mode)."""
        ...


@torch.no_grad()
def embed(larp: Larp, dataset: DataSet, clips: ClipCache, config: LarpConfig, rows: NDArray[np.int64]) -> Vectors:
    """Vectors of tracks, f32 [2, n, dims]: audio (of the middle clip) and text; NaN where a track has none."""
    audio = np.full((len(rows), larp.dims), np.nan, np.float32)
    text = np.full((len(rows), larp.dims), np.nan, np.float32)
    captions = [caption(dataset.tracks[row], config.clauses) for row in rows]
    for part in _parts(np.flatnonzero(clips.available[rows])):
        audio[part] = larp.encode_audio(torch.from_numpy(clips.crops(rows[part], None))).cpu().numpy()
    for part in _parts(np.array([k for k, text in enumerate(captions) if text], np.int64)):
        text[part] = larp.encode_text([captions[k] for k in part]).cpu().numpy()
    return np.stack([audio, text])


def joined(audio: Vectors, text: Vectors, share: float) -> Vectors:
    """l2(share audio + (1 - share) text), f32 [n, dims] each; where one is missing, the other."""
    both = np.where(np.isnan(audio), text, np.where(np.isnan(text), audio, share * audio + (1 - share) * text))
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def _parts(rows: NDArray[np.int64], size: int = 64) -> list[NDArray[np.int64]]:
    return [rows[k : k + size] for k in range(0, len(rows), size)]


class RecallValidation:
    """Mean Recall@10 over the validation playlists, half of each as seeds, all validation tracks as
    candidates.

    Averaged over `draws` draws of the seeds, because few playlists make a coarse score.
    """

    name = f"R@{CUT}"

    def __init__(self, dataset: DataSet, clips: ClipCache, config: LarpConfig, split: int = VALID) -> None:
        self._dataset, self._clips, self._config = dataset, clips, config
        self._protocol = ContinuationProtocol(cuts=(CUT,), repeats=config.validation_draws)
        chosen = dataset.track_split == split
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
        shares = SHARES if fixed is None else (fixed,)
        audio, text = embed(larp, self._dataset, self._clips, self._config, self._rows)
        scores = self._recall({str(share): joined(audio, text, share) for share in shares})
        best = max(shares, key=lambda share: (scores[str(share)], -shares.index(share)))
        larp.audio_share.fill_(best)
        return scores[str(best)]

    def scores(self, larp: Larp) -> dict[str, float]:
        """Recall@10 of audio, text, and both at the model's share."""
        audio, text = embed(larp, self._dataset, self._clips, self._config, self._rows)
        both = joined(audio, text, larp.audio_share.item())
        return self._recall({"audio": audio, "text": text, "both": both})

    def _recall(self, vectors: dict[str, Vectors]) -> dict[str, float]:
        methods = {}
        for name, rows in vectors.items():
            table = np.full((len(self._dataset.tracks), rows.shape[1]), np.nan, np.float32)
            table[self._rows] = rows
            methods[name] = mean_of_seeds(table)
        found = evaluate_continuation(methods, self._queries, self._rows, self._protocol)
        return {name: found.method(name).figures[self.name].value for name in methods}


class LossValidation:
    """Minus the within-track loss of the validation tracks: what is left to select on without playlists."""

    name = "validation loss (negative)"

    def __init__(self, dataset: DataSet, clips: ClipCache, config: LarpConfig, rows: NDArray[np.int64]) -> None:
        self._embed: Callable[[Larp], Vectors] = lambda larp: embed(larp, dataset, clips, config, rows)

    def score(self, larp: Larp) -> float:
        """-WTC (Eq. 1) with each validation track's vectors as keys to the others'."""
        audio, text = (torch.from_numpy(part) for part in self._embed(larp))
        count = len(audio)
        relations = Relations(torch.eye(count).bool(), torch.zeros(count, count).bool(), torch.ones(count).bool())
        with torch.autocast("cpu", enabled=False):
            return -wtc(audio, text, Keys(audio, text), relations, larp.temperature.detach().cpu()).item()


def validation_of(dataset: DataSet, clips: ClipCache, config: LarpConfig) -> Validation | None:
    """Recall where the validation split has playlists, else the loss, else (under two tracks) None."""
    try:
        return RecallValidation(dataset, clips, config)
    except EvaluationError as error:
        if error.code != "no_test_playlists":
            raise
    complete = clips.available & np.array([bool(caption(t, config.clauses)) for t in dataset.tracks], bool)
    rows = np.flatnonzero((dataset.track_split == VALID) & complete)
    return LossValidation(dataset, clips, config, rows) if len(rows) >= 2 else None
