"""Seeds -> candidates -> filters -> diversity -> because: the continuation of a playlist."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.catalogue import CatalogueView, Filters
from index.collection import CollectionView
from index.titles import fold
from service.problems import Problem
from service.schemas import ContinueRequest, FilterRequest

NEGATIVE_WEIGHT = 0.5
"""How much the negatives' mean counts against the seeds' (Rocchio's feedback with beta 1, gamma 0.5)."""

POOL = 4
"""Candidates looked at for each track to return when diversity or a cap chooses; more when they run out."""

_NAMES = ("track_id", "title", "artist", "album")

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taste:
    """What is asked for, as rows and vectors of one view."""

    seeds: Rows
    seed_vectors: Vectors
    query: Vectors
    """f32 [d]: the mean of the seeds' unit vectors, less half that of the negatives."""
    hidden: Rows
    """Rows that are not returned: seeds, negatives, excluded ones. Ascending."""
    unknown: list[str]


def continue_playlist(view: CollectionView, request: ContinueRequest, audio_share: float) -> dict[str, Any]:
    """Return the answer (schemas.ContinueResponse, as plain data) to `request`, all of it from one `view`.

    score(candidate) = mean over seeds of seed . candidate, both unit vectors (LARP, equation 12); equal
    scores are ordered by row, so the same request on the same state has the same answer. Raises Problem
    `unknown_seeds`. `audio_share` is the encoder's: `because` weighs audio and text as the vectors do.
    """
    taste = _taste(view, request)
    rows, scores = _ranked(view, request, taste)
    reasons = _because(view, taste, rows, audio_share) if request.explain else [None] * len(rows)
    tracks = [
        _recommended(view, row, score, because)
        for row, score, because in zip(rows.tolist(), scores.tolist(), reasons, strict=True)
    ]
    return {"tracks": tracks, "unknown_seeds": taste.unknown, "release": view.release_id}


def _taste(view: CollectionView, request: ContinueRequest) -> Taste:
    seeds, unknown = _rows(view, request.seeds)
    if not len(seeds):
        raise Problem(
            "unknown_seeds",
            f"None of the {len(unknown)} seeds is a track here (first: {unknown[0][:80]!r}); GET /tracks?q= "
            "finds ids by title and artist.",
        )
    negatives, unknown_negatives = _rows(view, request.negatives)
    excluded = [row for track_id in request.exclude if (row := view.catalogue.row_of(track_id)) is not None]
    vectors = view.continuation.vectors(seeds)
    query = vectors.mean(axis=0, dtype=np.float64)
    if len(negatives):
        query -= NEGATIVE_WEIGHT * view.continuation.vectors(negatives).mean(axis=0, dtype=np.float64)
    hidden = np.unique(np.concatenate((seeds, negatives, np.array(excluded, dtype=np.int64))))
    return Taste(seeds, vectors, query.astype(np.float32), hidden, unknown + unknown_negatives)


def _rows(view: CollectionView, ids: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return the rows of `ids` that can be compared, in order, each once; and the other ids."""
    found = {track_id: view.catalogue.row_of(track_id) for track_id in ids}
    rows = np.array([row for row in found.values() if row is not None], dtype=np.int64)
    comparable = ~np.isnan(view.continuation.vectors(rows)).any(axis=1)
    kept = set(rows[comparable].tolist())
    return rows[comparable], [track_id for track_id, row in found.items() if row not in kept]


def _ranked(view: CollectionView, request: ContinueRequest, taste: Taste) -> tuple[Rows, Vectors]:
    """Return the best rows and their scores; looks at more candidates until enough pass the caps."""
    choosing = request.diversity > 0 or request.max_per_artist or request.max_per_album
    wanted = request.k * POOL if choosing else request.k
    allowed = _allowed(view, request.filters, taste.hidden)
    while True:
        rows, scores = _candidates(view, taste, wanted, allowed)
        chosen = _choose(view, request, rows, scores) if choosing else np.arange(min(request.k, len(rows)))
        if len(chosen) == request.k or len(rows) < wanted:
            return rows[chosen], scores[chosen]
        wanted *= POOL


def _allowed(view: CollectionView, filters: FilterRequest, hidden: Rows) -> NDArray[np.bool_] | None:
    """Return bool [size]: what may be returned; None without a filter (a plain search is quickest)."""
    wanted = Filters(
        explicit=filters.explicit,
        languages=tuple(filters.languages or ()),
        genres=tuple(filters.genres or ()),
        artists=tuple(filters.artists or ()),
        released_from=filters.released_from,
        released_to=filters.released_to,
        only_cold=filters.only_cold,
    )
    if not wanted:
        return None
    mask = view.catalogue.mask(wanted)
    mask[hidden] = False
    return mask


def _candidates(
    view: CollectionView, taste: Taste, wanted: int, allowed: NDArray[np.bool_] | None
) -> tuple[Rows, Vectors]:
    """Return up to `wanted` rows with their scores, best first; fewer only when there are no more."""
    fetched = wanted if allowed is not None else wanted + len(taste.hidden)
    scores, rows = view.continuation.search(taste.query, fetched, allowed)
    keep = (rows[0] >= 0) & ~np.isin(rows[0], taste.hidden)
    return rows[0][keep][:wanted], scores[0][keep][:wanted]


def _choose(view: CollectionView, request: ContinueRequest, rows: Rows, scores: Vectors) -> Rows:
    """Return places in `rows`, in the order to return them: at most k, within the caps.

    Each step takes the candidate with the largest (1 - diversity) score - diversity max(similarity to what
    was taken): maximal marginal relevance (Carbonell and Goldstein, 1998). With diversity 0 that is the order
    of the scores.
    """
    caps = _Caps(view, request, rows)
    if request.diversity == 0:
        return np.array([place for place in range(len(rows)) if caps.take(place)][: request.k], dtype=np.int64)
    vectors = view.continuation.vectors(rows)
    worth = (1 - request.diversity) * scores.astype(np.float64)
    nearest = np.zeros(len(rows))  # nothing is taken yet: the first choice is the best score
    taken: list[int] = []
    while len(taken) < request.k and np.isfinite(worth).any():
        place = int(np.argmax(worth - request.diversity * nearest))
        caps.take(place)
        taken.append(place)
        similarity = vectors @ vectors[place]
        nearest = similarity if len(taken) == 1 else np.maximum(nearest, similarity)
        worth[place] = -np.inf
        worth[caps.filled_by(place)] = -np.inf  # all at once: a turn each would be quadratic in the catalogue
    return np.array(taken, dtype=np.int64)


class _Caps:
    """How many tracks of one artist or album may be taken; those without one are not counted."""

    def __init__(self, view: CollectionView, request: ContinueRequest, rows: Rows) -> None:
        self._taken: Counter[tuple[object, ...]] = Counter()
        artists = view.catalogue.columns.artists[rows].tolist()
        self._groups: list[list[tuple[tuple[object, ...], int]]] = [[] for _ in artists]
        self._members: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, (row, artist) in enumerate(zip(rows.tolist(), artists, strict=True)):
            if request.max_per_artist and artist:
                self._groups[place].append((("artist", artist), request.max_per_artist))
            if request.max_per_album and (album := fold(view.catalogue.track(row).album)):
                self._groups[place].append((("album", artist, album), request.max_per_album))

        for place, groups in enumerate(self._groups):
            for group, _ in groups:
                self._members[group].append(place)

    def filled_by(self, place: int) -> list[int]:
        """Return the places of the groups of `place` that have no room left."""
        full = [group for group, most in self._groups[place] if self._taken[group] >= most]
        return [member for group in full for member in self._members[group]]

    def take(self, place: int) -> bool:
        """Count the candidate at `place` if its artist and album have room; return whether they have."""
        if any(self._taken[group] >= most for group, most in self._groups[place]):
            return False
        self._taken.update(group for group, _ in self._groups[place])
        return True


def _because(view: CollectionView, taste: Taste, rows: Rows, share: float) -> list[dict[str, Any]]:
    """Return for each row the seed nearest to it, and how much of their similarity is audio, text, or
    crosswise.

    With s = (a_s + t_s) / n_s (LARP, equation 11; a and t weighted by the audio's share) and c likewise,
    s . c = (a_s.a_c + t_s.t_c + [a_s.t_c + t_s.a_c]) / (n_s n_c). All seeds weigh the same in the score, so the
    nearest one contributes most.
    """
    closest = np.argmax(view.continuation.vectors(rows) @ taste.seed_vectors.T, axis=1) if len(rows) else rows
    seeds = taste.seeds[closest]
    weights = np.clip((share, 1 - share), 1e-9, 1)  # never 0: a track with one part is that part, whatever its weight
    a_s, t_s, a_c, t_c = (
        weight * np.nan_to_num(part.astype(np.float64))
        for of in (seeds, rows)
        for weight, part in zip(weights, view.parts(of), strict=True)
    )
    scale = np.linalg.norm(a_s + t_s, axis=1) * np.linalg.norm(a_c + t_c, axis=1)
    scale[scale == 0] = 1.0
    audio, text = (a_s * a_c).sum(1) / scale, (t_s * t_c).sum(1) / scale
    cross = ((a_s * t_c).sum(1) + (t_s * a_c).sum(1)) / scale
    names = [view.catalogue.track(row).track_id for row in taste.seeds.tolist()]
    figures = zip(closest.tolist(), audio.tolist(), text.tolist(), cross.tolist(), strict=True)
    return [
        {
            "seed": names[s],
            "similarity": _digits(a + t + x),
            "audio": _digits(a),
            "text": _digits(t),
            "cross": _digits(x),
        }
        for s, a, t, x in figures
    ]


def _recommended(view: CollectionView, row: int, score: float, because: dict[str, Any] | None) -> dict[str, Any]:
    track_id, title, artist, album = _names(view.catalogue, row)
    found = {
        "track_id": track_id,
        "title": title,
        "artist": artist,
        "album": album,
        "score": _digits(score),
        "cold": view.catalogue.is_cold(row),
    }
    return found if because is None else {**found, "because": because}


def _names(catalogue: CatalogueView, row: int) -> tuple[str | None, ...]:
    """Return id, title, artist and album; a whole Track, of which nobody asks the rest, takes twice as long."""
    if row < len(catalogue.sealed):
        return tuple(catalogue.sealed.texts[name][row] for name in _NAMES)
    track = catalogue.track(row)
    return tuple(getattr(track, name) for name in _NAMES)


def _digits(value: float) -> float:
    return round(value, 6)
