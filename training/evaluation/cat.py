"""CAT as a scorer of the audience protocol: the code that the service runs, over a temporary folder.

Every listener gets the score that `index.audience` gives: the largest cosine to a centroid of the listeners of the
cold track's neighbours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from index.audience import Audience, write_audience
from index.collection import Collection, write_collection
from index.tracks import Track
from training.evaluation.audience import Scorer
from training.evaluation.vectors import LAST


@dataclass(frozen=True)
class _Folder:
    """What a collection and an audience need of a release."""

    path: Path
    id: str = "evaluation"

    def file(self, name: str) -> Path:
        return self.path / name


@contextmanager
def cat_scorer(
    tracks: Sequence[Track],
    matching: NDArray[np.float32],
    plays: sparse.csr_array,
    *,
    clusters: int | None = None,
) -> Iterator[Scorer]:
    """Give the scorer while the block runs; its files are in a temporary folder.

    `matching` f32 [N, d] unit rows (NaN where missing); `plays` [listeners, tracks] of WARM tracks only; `clusters` as
    in `Audience.target`. A listener whom CAT does not name (nothing heard) comes last, and for a track without vector
    all tie.
    """
    warm = sparse.coo_array(plays)
    ids = [str(u) for u in range(warm.shape[0])]
    with TemporaryDirectory(prefix="debut-cat-") as name:
        folder = _Folder(Path(name))
        interactions = np.bincount(warm.coords[1], minlength=len(tracks)).astype(np.int32)
        absent = np.full((len(tracks), 1), np.nan, np.float32)
        parts = dict.fromkeys(("audio", "text", "continuation"), absent)
        write_collection(folder.path, tracks, interactions, parts, matching)
        listener, row = (axis.astype(np.int64) for axis in warm.coords)
        write_audience(folder.path / "audience", ids, listener, row, warm.data.astype(np.float32), matching)
        audience, view = Audience.open(folder), Collection.open(folder).view()

        def score(queries: NDArray[np.int64]) -> NDArray[np.floating]:
            out = np.full((len(queries), len(ids)), LAST, np.float32)
            for place, query in enumerate(queries):
                if np.isfinite(matching[query]).all():
                    found = audience.target(
                        matching[query], view, clusters=clusters, limit=len(ids), exclude_known=False
                    )
                    out[place, [int(target.listener_id) for target in found.listeners]] = [
                        target.score for target in found.listeners
                    ]
            return out

        yield score
