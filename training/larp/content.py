"""What the towers read of a track: clips and captions as they are, or what frozen encoders made of them once."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.models.caption import caption, fields
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.augment import spec_augment, thinned
from training.larp.config import LarpConfig
from training.larp.model import Larp

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
BATCH = 64  # tracks encoded at once outside of training


class Content(Protocol):
    """The towers' inputs by data set row. frozen: they are encoders' outputs, for the heads."""

    frozen: bool

    def available(self, name: str) -> NDArray[np.bool_]:
        """Which tracks of the data set have what the tower "audio" or "text" reads, bool [N]."""
        ...

    def inputs(
        self, name: str, rows: Rows, larp: Larp, rngs: Sequence[np.random.Generator] | None = None
    ) -> tuple[Tensor, ...]:
        """A tower's inputs for tracks; with a generator for each of them as training varies them, else as they are.

        On the CPU.
        """
        ...


class LiveContent:
    """Clips cut from the cache, and captions."""

    frozen = False

    def __init__(self, dataset: DataSet, clips: ClipCache | None, config: LarpConfig) -> None:
        self._tracks, self.clips, self._config = dataset.tracks, clips, config
        captioned = [bool(caption(track, config.clauses)) for track in dataset.tracks]
        audible = clips.available if clips else np.zeros(len(dataset.tracks), bool)
        self._available = {"audio": audible, "text": np.array(captioned, bool)}

    def available(self, name: str) -> NDArray[np.bool_]:
        """As `Content`."""
        return self._available[name]

    def inputs(
        self, name: str, rows: Rows, larp: Larp, rngs: Sequence[np.random.Generator] | None = None
    ) -> tuple[Tensor, ...]:
        """As `Content`: log-mel f32 [B, 1, 1001, 64] or what the tower's extractor makes of samples; or word pieces and
        their mask i64 [B, T], or [B, fields, T]. In training clips are cut from anywhere, log-mel has stripes blanked,
        and clauses may be left out.
        """
        if name == "text":
            return larp.tokens(self.captions(rows, rngs))
        assert self.clips is not None
        assert larp.audio is not None
        if self.clips.front_end != larp.audio.front_end:
            raise ValueError(f"the clips are {self.clips.front_end}, the audio tower wants {larp.audio.front_end}")
        clips = self.clips.crops(rows, None if rngs is None else np.array([rng.random() for rng in rngs]))
        if larp.audio.extractor is not None:
            return (larp.audio.extractor(clips),)
        if rngs is not None:
            spec_augment(clips, self._config.augment, rngs)
        return (torch.from_numpy(clips),)

    def captions(self, rows: Rows, rngs: Sequence[np.random.Generator] | None = None) -> list[str]:
        """Captions of tracks; with `rngs`, clauses are left out at random as the config says."""
        drop, clauses = self._config.augment.drop_clause, self._config.clauses
        if rngs is None or not drop:
            return [self._caption(row, clauses) for row in rows]
        kept = [thinned(self._tracks[row], clauses, drop, rng) for row, rng in zip(rows, rngs, strict=True)]
        return [self._caption(row, names) for row, names in zip(rows, kept, strict=True)]

    def _caption(self, row: int, kept: Sequence[str]) -> str:
        if self._config.caption == "fields":
            return fields(self._tracks[row], self._config.clauses, kept)
        return caption(self._tracks[row], kept)


def on(device: torch.device, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs on a device."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in inputs)


@torch.no_grad()
def encode(larp: Larp, name: str, content: Content, rows: Rows) -> Vectors:
    """Vectors of tracks by one tower as it stands, f32 [n, dims]; NaN where a track has nothing for it to read."""
    vectors = np.full((len(rows), larp.dims), np.nan, np.float32)
    module = larp.tower(name).head if content.frozen else larp.tower(name)
    known = np.flatnonzero(content.available(name)[rows])
    for part in (known[k : k + BATCH] for k in range(0, len(known), BATCH)):
        inputs = on(larp.device, content.inputs(name, rows[part], larp))
        vectors[part] = module(*inputs).float().cpu().numpy()
    return vectors


def joined(audio: Vectors, text: Vectors, share: float) -> Vectors:
    """l2(share audio + (1 - share) text), f32 [n, dims] each; where one is missing, the other; zero stays zero."""
    both = np.where(np.isnan(audio), text, np.where(np.isnan(text), audio, share * audio + (1 - share) * text))
    return both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)


def together(vectors: dict[str, Vectors], share: float) -> Vectors:
    """The tracks' vectors (Eq. 11): both towers' joined, or those of the one tower there is."""
    if len(vectors) == 1:
        return next(iter(vectors.values()))
    return joined(vectors["audio"], vectors["text"], share)
