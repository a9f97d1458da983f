"""A world of listening of any size: power-law tracks and listeners, tastes within genres, cold tracks to ask for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.audience.cat import write_audience
from index.collection import PARTS, write_collection
from index.tracks.track import Track

GENRES, TASTES_EACH = 40, 10
SPREAD = 0.8
"""How far tracks lie from their taste and tastes from their genre, a unit vector each."""
WITHIN = 0.8
"""Share of a listener's tastes that lie in the genre of the first."""
COLD = 2_000
"""Tracks without a listener, the first rows: those that are asked for."""
POPULARITY = 0.8
"""Exponent of the power law of tracks within a taste, and of tastes."""
LEAST_HEARD, ACTIVITY, MOST_HEARD = 18, 1.8, 3_000
"""Pareto law of the tracks a listener heard: about 30 on average, half of them at most 23."""


@dataclass(frozen=True)
class World:
    """Tracks of one taste each, and who heard them."""

    matching: NDArray[np.float32]
    """f32 [N, d], unit."""
    listeners: int
    listener: NDArray[np.int64]
    """i64 [n]"""
    row: NDArray[np.int64]
    plays: NDArray[np.float32]


def make(listeners: int, tracks: int, dims: int, *, diffuse: bool = False, seed: int = 0) -> World:
    """Draw a world of `listeners` who heard about 30 of `tracks` each; vectors of width `dims`.

    In a `diffuse` one tracks lie twice as far from their taste, tastes from their genre, and everybody has four
    tastes of any genre: vectors say little of who hears what.
    """
    rng = np.random.default_rng(seed)
    spread = 2 * SPREAD if diffuse else SPREAD
    tastes = _near(rng, np.repeat(_near(rng, np.zeros((GENRES, dims)), 1.0), TASTES_EACH, axis=0), spread)
    taste_of = rng.choice(len(tastes), tracks, p=_power(rng, len(tastes)))
    matching = _near(rng, tastes[taste_of], spread).astype(np.float32)
    heard = np.minimum((LEAST_HEARD * (1 + rng.pareto(ACTIVITY, listeners))).astype(np.int64), MOST_HEARD)
    listener = np.repeat(np.arange(listeners), heard)
    slots = rng.integers(0, 4, len(listener)) if diffuse else _slots(rng, listener, listeners)
    taste = _tastes(rng, listeners, len(tastes), 0.0 if diffuse else WITHIN)[listener, slots]
    warm = np.argsort(taste_of[COLD:], kind="stable") + COLD  # by taste, and in it by popularity
    starts = np.searchsorted(taste_of[warm], np.arange(len(tastes) + 1))
    sizes = np.diff(starts)[taste]
    place = ((sizes ** (1 - POPULARITY) - 1) * rng.random(len(taste)) + 1) ** (1 / (1 - POPULARITY)) - 1
    row = warm[np.minimum(starts[taste] + np.minimum(place.astype(np.int64), sizes - 1), len(warm) - 1)]
    return World(matching, listeners, listener, row, rng.geometric(0.2, len(listener)).astype(np.float32))


def write(world: World, directory: Path) -> None:
    """Write the world as the parts of a release that an audience needs."""
    tracks = [Track(f"t{row}", title=f"Track {row}") for row in range(len(world.matching))]
    interactions = np.minimum(np.bincount(world.row, minlength=len(tracks)), 2**31 - 1).astype(np.int32)
    parts = dict.fromkeys((*PARTS, "continuation"), world.matching)
    write_collection(directory, tracks, interactions, parts, world.matching)
    ids = [f"listener-{number:07}" for number in range(world.listeners)]
    write_audience(directory / "audience", ids, world.listener, world.row, world.plays, world.matching)


def _near(rng: np.random.Generator, centres: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    points = centres + spread * rng.standard_normal(centres.shape) / np.sqrt(centres.shape[1])
    unit: NDArray[np.float64] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def _power(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    odds = rng.permutation(np.arange(1, count + 1)) ** -POPULARITY
    shares: NDArray[np.float64] = odds / odds.sum()
    return shares


def _tastes(rng: np.random.Generator, listeners: int, tastes: int, within: float) -> NDArray[np.int64]:
    """Return four tastes [listeners, 4], the share `within` of them of the genre of the first."""
    found = rng.choice(tastes, (listeners, 4), p=_power(rng, tastes))
    near = found[:, :1] // TASTES_EACH * TASTES_EACH + rng.integers(0, TASTES_EACH, (listeners, 4))
    near[:, 0] = found[:, 0]
    return np.where(rng.random((listeners, 4)) < within, near, found)


def _slots(rng: np.random.Generator, listener: NDArray[np.int64], listeners: int) -> NDArray[np.int64]:
    """Return which of a listener's tastes each listen is of: some are of one taste, some of four."""
    upto = np.cumsum(rng.dirichlet(np.full(4, 0.5), listeners)[:, :3], axis=1).astype(np.float32)
    drawn = rng.random(len(listener), dtype=np.float32)
    return sum((drawn > upto[listener, slot]).astype(np.int64) for slot in range(3))
