"""What a playlist asks for, as vectors, and why a track answers it: the nearest seed, and what the two share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.collection import PARTS, CollectionView
from index.search.vectors import VectorView
from service.http.schemas import ContinueRequest

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taste:
    """What is asked for, as rows and vectors of one view."""

    space: VectorView
    """The recommender's: all vectors and scores are of it."""
    seeds: Rows
    seed_vectors: Vectors
    query: Vectors
    """f32 [d]: the mean of the seeds' unit vectors, less half that of the negatives."""
    shown: Rows
    """Rows that earlier pages returned."""
    hidden: Rows
    """Rows that are not returned: seeds, negatives, excluded and shown ones. Ascending."""
    unknown: list[str]


def because(
    view: CollectionView, request: ContinueRequest, taste: Taste, rows: Rows, share: float
) -> list[dict[str, Any]]:
    """Return for each row the seed nearest to it, and how much of their similarity is audio, text, or crosswise.

    All seeds weigh the same in the score, so the nearest one contributes most.
    """
    vectors = taste.space.vectors(rows)
    closest = np.argmax(vectors @ taste.seed_vectors.T, axis=1) if len(rows) else rows
    names = [view.catalogue.track(row).track_id for row in taste.seeds.tolist()]
    reasons: list[dict[str, Any]] = [{"seed": names[seed]} for seed in closest.tolist()]
    if request.recommender == "larp":
        audio, text, cross = _shares(view, taste.seeds[closest], rows, share)
        for reason, a, t, x in zip(reasons, audio.tolist(), text.tolist(), cross.tolist(), strict=True):
            reason |= {"similarity": digits(a + t + x), "audio": digits(a), "text": digits(t), "cross": digits(x)}
        return reasons
    alike = (vectors.astype(np.float64) * taste.seed_vectors[closest]).sum(1)
    rest = None if request.recommender == "bcl" else 0.0
    for reason, value in zip(reasons, map(digits, alike.tolist()), strict=True):
        reason |= {"similarity": value, "audio": rest, "text": rest, "cross": rest}
        if request.recommender in PARTS:
            reason[request.recommender] = value
    return reasons


def _shares(view: CollectionView, seeds: Rows, rows: Rows, share: float) -> tuple[NDArray[np.float64], ...]:
    """Return what each two tracks share in sound, in text, and crosswise: f64 [n] each.

    With s = (a_s + t_s) / n_s (LARP, equation 11; a and t weighted by the audio's share) and c likewise,
    s . c = (a_s.a_c + t_s.t_c + [a_s.t_c + t_s.a_c]) / (n_s n_c).
    """
    weights = np.clip((share, 1 - share), 1e-9, 1)  # never 0: a track with one part is that part, whatever its weight
    a_s, t_s, a_c, t_c = (
        weight * np.nan_to_num(part.astype(np.float64))
        for of in (seeds, rows)
        for weight, part in zip(weights, view.parts(of), strict=True)
    )
    scale = np.linalg.norm(a_s + t_s, axis=1) * np.linalg.norm(a_c + t_c, axis=1)
    scale[scale == 0] = 1.0
    audio, text = (a_s * a_c).sum(1) / scale, (t_s * t_c).sum(1) / scale
    return audio, text, ((a_s * t_c).sum(1) + (t_s * a_c).sum(1)) / scale


def digits(value: float) -> float:
    """Round a figure of an answer."""
    return round(value, 6)
