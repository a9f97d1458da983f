"""What the step bcl leaves: every track's matching vector, and what an audience's score is to know of activity."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from index.audience.listening_file import ACTIVITY
from index.tracks.track import Track
from training.data.splits import TRAIN, VALID
from training.evaluation.audience import AudienceProtocol, evaluate_audience
from training.evaluation.cat import cat_scorer
from training.evaluation.results import EvaluationError

POWERS = (0.0, 0.25, 0.5)
"""Of a listener's number of tracks, to choose from: 0 does not ask how much somebody listens."""
QUERIES = 100
"""Validation tracks that are asked for: a choice among three needs no more."""
_VECTORS, _FACTS = "vectors.npy", "matched.json"


@dataclass(frozen=True)
class Matched:
    """`vectors` f32 [N, d] of all tracks, unit (NaN rows without one); their first `trained` components are z, times a
    constant. `activity`: the power of `index.audience.listening_file.write_audience`.
    """

    vectors: NDArray[np.float32]
    trained: int
    activity: float = ACTIVITY

    @property
    def z(self) -> NDArray[np.float32]:
        """The trained half, unit vectors f32 [N, trained]."""
        part = self.vectors[:, : self.trained]
        return np.asarray(part / np.linalg.norm(part, axis=1, keepdims=True), np.float32)

    @property
    def digest(self) -> str:
        """What tells these from those of another training."""
        facts = json.dumps([self.trained, self.activity]).encode()
        return hashlib.sha256(facts + np.ascontiguousarray(self.vectors).tobytes()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write into the existing `folder`."""
        np.save(folder / _VECTORS, self.vectors)
        facts = {"trained": self.trained, "activity": self.activity}
        (folder / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Matched":
        """Read what `save` wrote."""
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        return cls(np.load(folder / _VECTORS, allow_pickle=False), int(facts["trained"]), float(facts["activity"]))


def choose_activity(
    tracks: Sequence[Track],
    vectors: NDArray[np.float32],
    plays: sparse.csr_array,
    track_split: NDArray[np.int8],
    seed: int = 0,
) -> tuple[float, float | None]:
    """Return the power of `POWERS` by which CAT finds most listeners of validation tracks, and its Recall@100.

    `plays` [listeners, tracks] holds all listens; those of test tracks are not looked at, those of valid tracks are the
    hidden truth. Without a truth: the default, and None. Ties go to the smaller power.
    """
    split = np.asarray(track_split)
    cold = np.flatnonzero(split == VALID)
    cold = np.sort(np.random.default_rng([seed, 3]).permutation(cold)[:QUERIES])
    heard, warm = (_of(plays, np.isin(split, parts)) for parts in ((TRAIN, VALID), (TRAIN,)))
    if not warm.nnz:
        return ACTIVITY, None
    found = {}
    for power in POWERS:
        with cat_scorer(tracks, vectors, warm, clusters=1, activity=power) as cat:
            try:
                table = evaluate_audience({"cat": cat}, (heard > 0) * 1.0, cold, AudienceProtocol(reaches=()))
            except EvaluationError:
                return ACTIVITY, None
        found[power] = table.method("cat").figures["R@100"].value
    best = max(POWERS, key=lambda power: found[power])
    return best, found[best]


def _of(plays: sparse.csr_array, tracks: NDArray[np.bool_]) -> sparse.csr_array:
    kept = sparse.coo_array(plays)
    there = tracks[kept.coords[1]] & (kept.data > 0)
    entries = (kept.data[there], (kept.coords[0][there], kept.coords[1][there]))
    return sparse.csr_array(entries, shape=plays.shape)
