"""What the step bcl leaves: kept whole, and the power of activity that validation listeners ask for."""

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from index.tracks.track import Track
from training.data.splits import TEST, TRAIN, VALID
from training.matched import POWERS, Matched, choose_activity

SEED = 3


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    matched = Matched(unit(rng.standard_normal((9, 6))), 4, 0.5)
    matched.save(tmp_path)
    loaded = Matched.load(tmp_path)
    assert (loaded.trained, loaded.activity, loaded.digest) == (4, 0.5, matched.digest)
    assert np.array_equal(loaded.vectors, matched.vectors)
    assert loaded.z == pytest.approx(unit(matched.vectors[:, :4]))
    assert Matched(matched.vectors, 4, 0.25).digest != matched.digest


def world(busy: bool) -> tuple[list[Track], np.ndarray, np.ndarray, np.ndarray]:
    """Tracks of two kinds, listeners of the one or the other. `busy`: some hear six times as much as others, new tracks
    too; else it is the others who hear the new ones.
    """
    rng = np.random.default_rng(SEED)
    kind, taste = np.arange(160) % 2, np.arange(600) % 2
    vectors = unit(np.eye(8)[kind] + 0.3 * rng.standard_normal((160, 8)))
    split = np.repeat(np.array([TRAIN, VALID, TEST], np.int8), [80, 40, 40])
    eager = np.where(rng.random(600) < 0.3, 0.9, 0.15)
    rate = np.where(split == TRAIN, eager[:, None], eager[:, None] if busy else 0.5 - eager[:, None] / 2)
    heard = rng.random((600, 160)) < rate * np.where(taste[:, None] == kind, 1.0, 0.03)
    return [Track(f"t{i}") for i in range(160)], vectors, heard.astype(float), split


@pytest.mark.parametrize("busy", [True, False])
def test_activity_counts_where_the_active_hear_the_new(busy: bool) -> None:
    print("seed", SEED)
    tracks, vectors, heard, split = world(busy)
    power, recall = choose_activity(tracks, vectors, sparse.csr_array(heard), split)
    assert power == (0.5 if busy else 0.0)
    assert 0 < recall < 1
    hidden = heard.copy()
    hidden[:, split == TEST] = 0
    assert choose_activity(tracks, vectors, sparse.csr_array(hidden), split) == (power, recall)


def test_without_validation_listeners_there_is_a_default() -> None:
    tracks, vectors, heard, split = world(True)
    nothing = heard.copy()
    nothing[:, split == VALID] = 0
    assert choose_activity(tracks, vectors, sparse.csr_array(nothing), split) == (0.25, None)
    assert choose_activity(tracks, vectors, sparse.csr_array(heard * 0), split) == (0.25, None)
    assert 0.25 in POWERS
