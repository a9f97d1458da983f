"""Co-playlist pairs against loops over sets."""

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
    related = pairs.related(np.arange(TRACKS), keys)
    chosen = np.array([-1, *range(len(playlists))])
    holds = pairs.holds(chosen, keys)
    for k, column in enumerate(columns):
        for track in range(TRACKS):
            together = any({track, column} <= tracks for tracks in playlists)
            assert related[track, k] == (together and track != column)
        for row, playlist in enumerate(chosen):
            assert holds[row, k] == (playlist >= 0 and column in playlists[playlist])


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
    assert not pairs.related(np.arange(3), np.array([0, 1, -1])).any()
    assert not pairs.holds(parents, np.array([0, 1])).any()
