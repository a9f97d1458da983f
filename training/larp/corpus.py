"""The tracks that LARP can learn from and their playlists, and which of them meet in each batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.errors import DebutError
from training.data.dataset import TRAIN, DataSet
from training.data.pairs import PlaylistPairs
from training.larp.config import LarpConfig
from training.larp.content import Content
from training.larp.pretraining import Neighbourhood

Rows = NDArray[np.int64]
_ORDER, _DRAW, _VARY = 0, 1, 2  # streams of random numbers


class CorpusError(DebutError):
    """A data set that gives LARP nothing to learn from."""

    code = "nothing_to_train_on"


@dataclass(frozen=True)
class Batch:
    """B tracks and their pairs, by their number in the corpus.

    tracks i64 [B]; partner i64 [B]: place in the batch of a track that shares a playlist, -1 for none; playlist i64
    [B], -1 for none; seeds i64 [B, J]: tracks of that playlist without the track itself, padded with -1. number: what
    tells this batch's random numbers from those of all others.
    """

    tracks: Rows
    partner: Rows
    playlist: Rows
    seeds: Rows
    number: tuple[int, ...]

    def generators(self, places: Rows) -> list[np.random.Generator]:
        """A generator for each place in the batch: the same however the batch is divided."""
        return [np.random.default_rng([_VARY, *self.number, int(place)]) for place in places]


class Corpus:
    """The training tracks that have what all towers read. They are counted from 0: `rows` maps to the data set's rows.

    Batches are a function of seed, stage, epoch and step alone: no generator is carried along.
    """

    def __init__(self, dataset: DataSet, content: Content, config: LarpConfig) -> None:
        usable = dataset.track_split == TRAIN
        for name in config.towers:
            usable = usable & content.available(name)
        self.rows: Rows = np.flatnonzero(usable)
        if len(self.rows) < 2:
            wanted = {"audio": "audio", "text": "a caption"}
            raise CorpusError(
                f"{len(self.rows)} training tracks have {' and '.join(wanted[name] for name in config.towers)}; LARP "
                f"needs two at least. Check the columns audio, {', '.join(config.clauses)} of tracks.parquet, and "
                "splits.parquet"
            )
        self.content = content
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

    def epoch(self, number: Sequence[int], paired: bool, start: int = 0) -> Iterator[Batch]:
        """Batches of all tracks in random order, from the `start`-th on; if `paired`, half of each are partners of the
        others. `number`: stage and epoch.
        """
        seed = self.config.loop.seed
        order = np.random.default_rng([_ORDER, seed, *number]).permutation(len(self))
        for step, chunk in enumerate(np.array_split(order, self.steps(paired))):
            if step >= start:
                yield self.batch(chunk, paired, (seed, *number, step))

    def batch(self, anchors: Rows, paired: bool, number: tuple[int, ...]) -> Batch:
        """Draw a batch around `anchors`."""
        rng = np.random.default_rng([_DRAW, *number])
        tracks, partner, playlist = anchors, np.full(len(anchors), -1), np.full(len(anchors), -1)
        if paired:
            partners, playlist = self.pairs.draw(anchors, rng)
            tracks, partner, playlist = _joined(anchors, partners, playlist)
        seeds = self.pairs.seeds(tracks, playlist, self.config.seeds, rng)
        return Batch(tracks, partner, playlist, seeds, number)

    def neighbourhood(self, batch: Batch, places: Rows, columns: Rows, device: torch.device) -> Neighbourhood:
        """How the batch's tracks at `places` i64 [R] stand to the tracks of the key columns, i64 [B + queue] (-1:
        empty).
        """
        tracks = batch.tracks[places]
        related, holds = self.pairs.relations(tracks, batch.playlist[places], columns)
        masks = (
            tracks[:, None] == columns[None, :],
            related,
            holds,
            self.pairs.relations(batch.tracks, batch.playlist, tracks)[1].T,
        )
        return Neighbourhood(*(torch.from_numpy(np.ascontiguousarray(mask)).to(device) for mask in masks))


def _joined(anchors: Rows, partners: Rows, playlists: Rows) -> tuple[Rows, Rows, Rows]:
    """Put the partners behind their anchors: tracks, the place of each one's partner, each one's playlist."""
    paired = np.flatnonzero(partners >= 0)
    behind = len(anchors) + np.arange(len(paired))
    partner = np.full(len(anchors) + len(paired), -1)
    partner[paired], partner[behind] = behind, paired
    tracks = np.concatenate([anchors, partners[paired]])
    return tracks, partner, np.concatenate([playlists, playlists[paired]])
