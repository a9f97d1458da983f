"""Pairs of tracks that share a playlist, drawn afresh from the sparse playlist-track matrix, O(1) a pair."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Rows = NDArray[np.int64]


class PlaylistPairs:
    """The relations O (track-track) and R (playlist-track) of LARP's section 2, over `tracks` tracks.

    indptr i64 [P + 1] and rows i64: the playlists in CSR form, each track once in a playlist. Playlists with
    one track are no use as parents and are never drawn. `weight` says how a track's parent is drawn:
    "uniform", or "log" for 1 / log(1 + length), which favours short playlists.
    """

    def __init__(self, indptr: Rows, rows: Rows, tracks: int, weight: str = "uniform") -> None:
        self.indptr = np.asarray(indptr, np.int64)
        self.rows = np.asarray(rows, np.int64)
        self.lengths = np.diff(self.indptr)
        count = len(self.lengths)
        self._build_parents(count, tracks, weight)

    def _build_parents(self, count: int, tracks: int, weight: str) -> None:
        owner = np.repeat(np.arange(count), self.lengths)
        place = np.arange(len(self.rows)) - self.indptr[owner]
        self._parents = sparse.csr_array((np.ones(len(owner), np.int32), (self.rows, owner)), shape=(tracks, count))
        useful = self.lengths[owner] >= 2
        order = np.flatnonzero(useful)[np.argsort(self.rows[useful], kind="stable")]
        self._parent, self._place = owner[order], place[order]
        degrees = np.bincount(self.rows[order], minlength=tracks)
        self._first = np.concatenate([[0], np.cumsum(degrees)])
        self._cumulative: NDArray[np.float64] | None = None
        if weight == "log":
            weights = 1 / np.log1p(self.lengths[self._parent])
            self._cumulative = np.concatenate([[0.0], np.cumsum(weights)])

    @property
    def empty(self) -> bool:
        """Whether no playlist has two tracks."""
        return len(self._parent) == 0

    def draw(self, tracks: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """For each track a playlist that holds it and another track of that playlist; -1, -1 where there is
        none.

        i64 [B] -> partners i64 [B], playlists i64 [B]. A partner is never the track itself.
        """
        first, last = self._first[tracks], self._first[tracks + 1]
        paired = last > first
        entry = np.where(paired, self._entry(first, last, rng.random(len(tracks))), 0)
        if not paired.any():
            return np.full(len(tracks), -1), np.full(len(tracks), -1)
        playlist, own = self._parent[entry], self._place[entry]
        other = np.floor(rng.random(len(tracks)) * (self.lengths[playlist] - 1)).astype(np.int64)
        other += other >= own
        partner = self.rows[self.indptr[playlist] + other]
        return np.where(paired, partner, -1), np.where(paired, playlist, -1)

    def _entry(self, first: Rows, last: Rows, u: NDArray[np.float64]) -> Rows:
        if self._cumulative is None:
            return first + np.floor(u * (last - first)).astype(np.int64)
        low, high = self._cumulative[first], self._cumulative[last]
        entry = np.searchsorted(self._cumulative, low + u * (high - low), side="right") - 1
        return np.clip(entry, first, np.maximum(last - 1, first)).astype(np.int64)

    def seeds(self, tracks: Rows, playlists: Rows, count: int, rng: np.random.Generator) -> Rows:
        """Up to `count` tracks of each playlist besides the track itself, in its order, i64 [B, count], padded with
        -1.
        """
        seeds = np.full((len(tracks), count), -1, np.int64)
        for k, (track, playlist) in enumerate(zip(tracks, playlists, strict=True)):
            if playlist < 0:
                continue
            members = self.rows[self.indptr[playlist] : self.indptr[playlist + 1]]
            own = np.flatnonzero(members == track)[:1]
            others = len(members) - len(own)
            places = np.sort(rng.choice(others, min(count, others), replace=False, shuffle=False))
            if len(own):
                places += places >= own[0]
            seeds[k, : len(places)] = members[places]
        return seeds

    def relations(self, tracks: Rows, playlists: Rows, columns: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which columns' tracks share a playlist with each track, and which are in each playlist.

        tracks i64 [B], playlists i64 [B] (-1: none), columns i64 [K] (-1: an empty column) -> bool [B, K], [B, K]. A
        track does not share a playlist with itself. Costs as much as the playlists of these tracks hold, however large
        the catalogue.
        """
        related = np.zeros((len(tracks), len(columns)), bool)
        holds = np.zeros((len(tracks), len(columns)), bool)
        filled = np.flatnonzero(columns >= 0)
        if not len(self.lengths) or not len(filled):
            return related, holds
        known = columns[filled]
        by_playlist = self._parents[known].T.tocsr()  # [playlists, columns]
        together = (self._parents[tracks] @ by_playlist).tocoo()
        related[together.row, filled[together.col]] = True
        related &= tracks[:, None] != columns[None, :]
        chosen = np.flatnonzero(playlists >= 0)
        inside = by_playlist[playlists[chosen]].tocoo()
        holds[chosen[inside.row], filled[inside.col]] = True
        return related, holds
