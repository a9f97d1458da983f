"""The tracks that LARP can learn from, with clips, captions and playlists, and batches of them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from index.caption import caption
from index.errors import DebutError
from training.data.clips import ClipCache
from training.data.dataset import TRAIN, DataSet
from training.data.pairs import PlaylistPairs
from training.larp.augment import spec_augment, thinned_caption
from training.larp.config import LarpConfig
from training.larp.model import Larp
from training.larp.pretraining import Batch, Neighbourhood

Rows = NDArray[np.int64]


class CorpusError(DebutError):
    """A data set that gives LARP nothing to learn from."""

    code = "nothing_to_train_on"


class Corpus:
    """The training tracks that have both a clip and a caption. Elsewhere they are counted from 0: `rows` maps
    to the
    data set's rows.
    """

    def __init__(self, dataset: DataSet, clips: ClipCache, config: LarpConfig) -> None:
        usable = (dataset.track_split == TRAIN) & clips.available
        usable &= np.array([bool(caption(track, config.clauses)) for track in dataset.tracks], bool)
        self.rows: Rows = np.flatnonzero(usable)
        if len(self.rows) < 2:
            raise CorpusError(
                f"{len(self.rows)} training tracks have both audio and a caption; LARP needs two at least. "
                f"Check the columns audio, {', '.join(config.clauses)} of tracks.parquet, and splits.parquet"
            )
        self.clips = clips
        self.tracks = [dataset.tracks[row] for row in self.rows]
        self.config = config
        self.pairs = self._pairs(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def _pairs(self, dataset: DataSet) -> PlaylistPairs:
        members = dataset.members(TRAIN)
        place = np.full(len(dataset.tracks), -1, np.int64)
        place[self.rows] = np.arange(len(self.rows))
        tracks = place[members.rows]
        owner = np.repeat(np.arange(len(members.ids)), np.diff(members.indptr))[tracks >= 0]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(members.ids)))])
        return PlaylistPairs(indptr, tracks[tracks >= 0], len(self.rows), self.config.parent_weight)

    def steps(self, paired: bool) -> int:
        """Batches in an epoch: every track comes up once, and as a partner as chance has it if `paired`."""
        size = self.config.batch_size // 2 if paired else self.config.batch_size
        return -(-len(self) // size)

    def epoch(self, larp: Larp, paired: bool, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of all tracks in random order; if `paired`, half of each are partners of the others."""
        order = rng.permutation(len(self))
        for chunk in np.array_split(order, self.steps(paired)):
            yield self._batch(larp, chunk, paired, rng)

    def _batch(self, larp: Larp, anchors: Rows, paired: bool, rng: np.random.Generator) -> Batch:
        tracks, partner, playlist = anchors, np.full(len(anchors), -1), np.full(len(anchors), -1)
        if paired:
            partners, playlist = self.pairs.draw(anchors, rng)
            tracks, partner, playlist = _joined(anchors, partners, playlist)
        clips = self.clips.crops(self.rows[tracks], rng)
        spec_augment(clips, self.config.augment, rng)
        captions = self.captions(tracks, rng)
        seeds = self.pairs.seeds(tracks, playlist, self.config.seeds, rng)
        input_ids, attention_mask = larp.tokens(captions)
        device = larp.device
        return Batch(
            torch.from_numpy(clips).to(device),
            input_ids.to(device),
            attention_mask.to(device),
            *(torch.from_numpy(values).to(device) for values in (tracks, partner, playlist, seeds)),
        )

    def captions(self, tracks: Rows, rng: np.random.Generator | None = None) -> list[str]:
        """Captions of tracks; with `rng`, clauses are left out at random as the config says."""
        drop = self.config.augment.drop_clause
        if rng is None or not drop:
            return [caption(self.tracks[track], self.config.clauses) for track in tracks]
        return [thinned_caption(self.tracks[track], self.config.clauses, drop, rng) for track in tracks]

    def neighbourhood(self, batch: Batch, columns: torch.Tensor) -> Neighbourhood:
        """How the batch stands to the tracks of the key columns, i64 [B + queue] (-1: empty)."""
        tracks, playlist = batch.tracks.cpu().numpy(), batch.playlist.cpu().numpy()
        keys = columns.cpu().numpy()
        masks = (
            tracks[:, None] == keys[None, :],
            self.pairs.related(tracks, keys),
            self.pairs.holds(playlist, keys),
            self.pairs.holds(playlist, tracks).T,
        )
        return Neighbourhood(*(torch.from_numpy(np.ascontiguousarray(mask)).to(columns.device) for mask in masks))

    def input_statistics(self, most: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each mel bin over the middle clips of up to `most` tracks, f32 [64] each."""
        chosen = self.rows[np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64)]
        clips = np.concatenate([self.clips.crops(part, None) for part in np.array_split(chosen, -(-len(chosen) // 64))])
        mean, variance = clips.mean((0, 1, 2), np.float64), clips.var((0, 1, 2), np.float64)
        return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(variance.astype(np.float32))


def _joined(anchors: Rows, partners: Rows, playlists: Rows) -> tuple[Rows, Rows, Rows]:
    """Put the partners behind their anchors: tracks, the place of each one's partner, each one's playlist."""
    paired = np.flatnonzero(partners >= 0)
    behind = len(anchors) + np.arange(len(paired))
    partner = np.full(len(anchors) + len(paired), -1)
    partner[paired], partner[behind] = behind, paired
    tracks = np.concatenate([anchors, partners[paired]])
    return tracks, partner, np.concatenate([playlists, playlists[paired]])
