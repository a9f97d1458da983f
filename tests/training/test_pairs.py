"""Co-playlist pairs against loops over sets."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.pairs import PlaylistPairs

TRACKS = 12
worlds = st.lists(st.sets(st.integers(0, TRACKS - 1), min_size=1, max_size=6), min_size=1, max_size=8)


def pairs_of(playlists: list[set[int]], weight: str = "uniform") -> PlaylistPairs:
    indptr = np.cumsum([0, *map(len, playlists)])
    rows = np.array([track for tracks in playlists for track in sorted(tracks)], np.int64)
    return PlaylistPairs(indptr, rows, TRACKS, weight)


@settings(max_examples=60, deadline=None)
@given(worlds, st.integers(0, 2**32), st.sampled_from(["uniform", "log"]))
def test_a_pair_shares_the_drawn_playlist(playlists: list[set[int]], seed: int, weight: str) -> None:
    tracks = np.repeat(np.arange(TRACKS), 5)
    partners, parents = pairs_of(playlists, weight).draw(tracks, np.random.default_rng(seed))
    for track, partner, parent in zip(tracks, partners, parents, strict=True):
        if any(track in tracks and len(tracks) > 1 for tracks in playlists):
            assert partner != track
            assert {track, partner} <= playlists[parent]
        else:
            assert (partner, parent) == (-1, -1)


@settings(max_examples=60, deadline=None)
@given(worlds, st.lists(st.integers(-1, TRACKS - 1), min_size=1, max_size=9))
def test_relations_are_those_of_the_sets(playlists: list[set[int]], columns: list[int]) -> None:
    pairs, keys = pairs_of(playlists), np.array(columns)
    tracks = np.repeat(np.arange(TRACKS), 2)
    chosen = np.resize(np.array([-1, *range(len(playlists))]), len(tracks))
    related, holds = pairs.relations(tracks, chosen, keys)
    assert related.shape == holds.shape == (len(tracks), len(columns))
    for k, column in enumerate(columns):
        for row, (track, playlist) in enumerate(zip(tracks, chosen, strict=True)):
            together = any({track, column} <= members for members in playlists)
            assert related[row, k] == (together and track != column)
            assert holds[row, k] == (playlist >= 0 and column in playlists[playlist])


def test_relations_need_no_table_of_the_whole_catalogue() -> None:
    """A million tracks, 100 of them in the batch against 1,000 columns: no array of 100 x 1,000,000."""
    rng = np.random.default_rng(0)
    tracks, size = 1_000_000, 20
    rows = np.concatenate([np.unique(rng.integers(0, tracks, size)) for _ in range(20_000)])
    lengths = np.full(len(rows) // 10, 10)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    pairs = PlaylistPairs(indptr, rows[: indptr[-1]], tracks)
    batch = pairs.rows[:100]
    playlists = np.repeat(np.arange(10), 10)
    columns = pairs.rows[:1000]
    tracemalloc.start()
    try:
        related, holds = pairs.relations(batch, playlists, columns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert related[:, :100].sum() >= 900
    assert holds[:, :100].sum() >= 1000


@settings(max_examples=60, deadline=None)
@given(worlds, st.integers(0, 2**32), st.integers(1, 7))
def test_seeds_are_other_tracks_of_the_playlist(playlists: list[set[int]], seed: int, count: int) -> None:
    pairs = pairs_of(playlists)
    rng = np.random.default_rng(seed)
    tracks = np.arange(TRACKS)
    _, parents = pairs.draw(tracks, rng)
    for track, parent, row in zip(tracks, parents, pairs.seeds(tracks, parents, count, rng), strict=True):
        chosen = row[row >= 0].tolist()
        others = playlists[parent] - {track} if parent >= 0 else set()
        assert len(chosen) == len(set(chosen)) == min(count, len(others))
        assert set(chosen) <= others
        assert row[len(chosen) :].tolist() == [-1] * (count - len(chosen))


def shares(weight: str) -> np.ndarray:
    """How often each (playlist, partner) is drawn for track 0 of {0,1}, {0,2,3,4,5}: [2, 6]."""
    pairs = pairs_of([{0, 1}, {0, 2, 3, 4, 5}], weight)
    partners, parents = pairs.draw(np.zeros(40_000, np.int64), np.random.default_rng(7))
    counts = np.zeros((2, 6))
    np.add.at(counts, (parents, partners), 1)
    return counts / len(partners)


def test_uniform_parents_and_partners() -> None:
    expected = np.zeros((2, 6))
    expected[0, 1], expected[1, 2:] = 1 / 2, 1 / 8
    assert np.abs(shares("uniform") - expected).max() < 0.012  # over 4 standard deviations


def test_log_weighted_parents() -> None:
    short, long = 1 / np.log1p(2), 1 / np.log1p(5)
    assert shares("log").sum(1) == pytest.approx([short / (short + long), long / (short + long)], abs=0.012)


def test_the_same_generator_draws_the_same_pairs() -> None:
    pairs = pairs_of([{0, 1, 2, 3}, {3, 4, 5}])
    first, second = (pairs.draw(np.arange(TRACKS), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)


def test_no_playlists_at_all() -> None:
    pairs = PlaylistPairs(np.zeros(1, np.int64), np.empty(0, np.int64), 3)
    partners, parents = pairs.draw(np.arange(3), np.random.default_rng(0))
    assert partners.tolist() == parents.tolist() == [-1, -1, -1]
    for columns in ([0, 1, -1], [-1], []):
        related, holds = pairs.relations(np.arange(3), parents, np.array(columns, np.int64))
        assert related.shape == holds.shape == (3, len(columns))
        assert not related.any()
        assert not holds.any()
    assert pairs.empty
    assert pairs.seeds(np.arange(3), parents, 2, np.random.default_rng(0)).tolist() == [[-1, -1]] * 3
