"""CAT and what it is made of as scorers of the audience protocol: the code that the service runs, over a temporary
folder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from index.audience.cat import Audience, AudienceResult, write_audience
from index.audience.listening import Listening
from index.audience.listening_file import ACTIVITY
from index.collection import PARTS, Collection, CollectionView, write_collection
from index.tracks.track import Track
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
    activity: float = ACTIVITY,
) -> Iterator[Scorer]:
    """Give the scorer while the block runs: every listener's score as `index.audience.cat` gives it.

    `matching` f32 [N, d] unit rows (NaN where missing); `plays` [listeners, tracks] of WARM tracks only; `clusters` as
    in `Audience.target`, `activity` as in `write_audience`. A listener whom CAT does not name (nothing heard) comes
    last, and for a track without vector all tie.
    """
    with _opened(tracks, matching, plays, activity) as (audience, view):
        listeners = plays.shape[0]

        def score(found: AudienceResult) -> NDArray[np.floating]:
            out = np.full(listeners, LAST, np.float32)
            out[[int(target.listener_id) for target in found.listeners]] = [t.score for t in found.listeners]
            return out

        yield _scorer(audience, view, matching, listeners, clusters, score)


@contextmanager
def centroid_scorer(
    tracks: Sequence[Track],
    matching: NDArray[np.float32],
    plays: sparse.csr_array,
    *,
    clusters: int | None = None,
) -> Iterator[Scorer]:
    """Give the ablation that ranks by the cosine to the nearest centroid (`clusters=1`: to the one centroid).

    Arguments as in `cat_scorer`.
    """
    with _opened(tracks, matching, plays) as (audience, view), TemporaryDirectory(prefix="debut-cat-") as name:
        listener, row = (axis.astype(np.int64) for axis in sparse.coo_array(plays).coords)
        ids = [str(u) for u in range(plays.shape[0])]
        write_audience(Path(name), ids, listener, row, sparse.coo_array(plays).data.astype(np.float32), matching)
        listening = Listening.open(Path(name))
        assert listening is not None
        placed = slice(0, listening.placed)
        vectors, places = listening.points(placed), [int(u) for u in listening.ids.to_list()[placed] if u is not None]

        def score(found: AudienceResult) -> NDArray[np.floating]:
            out = np.full(len(listening), LAST, np.float32)
            out[places] = (vectors @ np.stack([one.centroid for one in found.clusters]).T).max(axis=1)
            return out

        yield _scorer(audience, view, matching, plays.shape[0], clusters, score)


@contextmanager
def _opened(
    tracks: Sequence[Track],
    matching: NDArray[np.float32],
    plays: sparse.csr_array,
    activity: float = ACTIVITY,
) -> Iterator[tuple[Audience, CollectionView]]:
    """Write collection and audience into a temporary folder and open them."""
    warm = sparse.coo_array(plays)
    with TemporaryDirectory(prefix="debut-cat-") as name:
        folder = _Folder(Path(name))
        interactions = np.bincount(warm.coords[1], minlength=len(tracks)).astype(np.int32)
        absent = np.full((len(tracks), 1), np.nan, np.float32)
        parts = dict.fromkeys((*PARTS, "continuation"), absent)
        write_collection(folder.path, tracks, interactions, parts, matching)
        listener, row = (axis.astype(np.int64) for axis in warm.coords)
        ids = [str(u) for u in range(warm.shape[0])]
        heard = (listener, row, warm.data.astype(np.float32))
        write_audience(folder.path / "audience", ids, *heard, matching, activity=activity)
        yield Audience.open(folder), Collection.open(folder).view()


def _scorer(
    audience: Audience,
    view: CollectionView,
    matching: NDArray[np.float32],
    listeners: int,
    clusters: int | None,
    score: Callable[[AudienceResult], NDArray[np.floating]],
) -> Scorer:
    """Ask for each query's whole audience and turn it into scores of all `listeners`."""

    def scored(queries: NDArray[np.int64]) -> NDArray[np.floating]:
        out = np.full((len(queries), listeners), LAST, np.float32)
        for place, query in enumerate(queries):
            if np.isfinite(matching[query]).all():
                out[place] = score(
                    audience.target(
                        matching[query],
                        view,
                        clusters=clusters,
                        limit=listeners,
                        exclude_known=False,
                        min_score=0.0,
                    )
                )
        return out

    return scored
