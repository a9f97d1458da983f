"""Seeds -> candidates -> filters -> diversity -> because: the continuation of a playlist."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from index.collection import CollectionView
from index.search.vectors import VectorView
from index.tracks.catalogue import CatalogueView, Filters
from service.http.problems import Problem
from service.http.schemas import CAPS, ContinueRequest, FilterRequest, Recommender
from service.recommend import cursor
from service.recommend.because import Taste, because, digits
from service.recommend.choice import choose

NEGATIVE_WEIGHT = 0.5
"""How much the negatives' mean counts against the seeds' (Rocchio's feedback with beta 1, gamma 0.5)."""

POOL = 4
"""Candidates looked at for each track to return when diversity or a cap chooses; more when they run out."""

_SPACE = {"larp": "continuation", "bcl": "matching"}
"""The collection's name of a recommender's space, where it is another."""

_NAMES = ("track_id", "title", "artist", "album")

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


def continue_playlist(view: CollectionView, request: ContinueRequest, audio_share: float) -> dict[str, Any]:
    """Return the answer (schemas.ContinueResponse, as plain data) to `request`, all of it from one `view`.

    score(candidate) = mean over seeds of seed . candidate, both unit vectors of the recommender's space (LARP,
    equation 12); equal scores are ordered by row, so the same request on the same state has the same answer. Raises
    Problem `unknown_seeds`, and those of `service.recommend.cursor.read`. `audio_share` is the encoder's: `because`
    weighs audio and text as the vectors do.
    """
    shown = cursor.read(request, view)
    taste = _taste(view, request, shown)
    rows, scores, relaxed = _filled(view, request, taste)
    reasons = because(view, request, taste, rows, audio_share) if request.explain else [None] * len(rows)
    tracks = [
        _recommended(view, row, score, reason)
        for row, score, reason in zip(rows.tolist(), scores.tolist(), reasons, strict=True)
    ]
    return {
        "tracks": tracks,
        "unknown_seeds": taste.unknown,
        "relaxed": relaxed,
        "release": view.release_id,
        "cursor": _next(view, request, shown, tracks),
    }


def _next(view: CollectionView, request: ContinueRequest, shown: list[str], tracks: list[dict[str, Any]]) -> str | None:
    """Return the cursor of the next page; None when there is none, for this one is not full."""
    if len(tracks) < request.k:
        return None
    return cursor.write(request, view, [*shown, *(track["track_id"] for track in tracks)])


def _space(view: CollectionView, recommender: str) -> VectorView:
    return view.space(_SPACE.get(recommender, recommender))


def _taste(view: CollectionView, request: ContinueRequest, shown_ids: list[str]) -> Taste:
    space = _space(view, request.recommender)
    seeds, unknown = _rows(view, space, request.seeds)
    if not len(seeds):
        raise _unknown_seeds(view, request)
    negatives, unknown_negatives = _rows(view, space, request.negatives)
    excluded, shown = (_live(view, ids) for ids in (request.exclude, shown_ids))
    vectors = space.vectors(seeds)
    query = vectors.mean(axis=0, dtype=np.float64)
    if len(negatives):
        query -= NEGATIVE_WEIGHT * space.vectors(negatives).mean(axis=0, dtype=np.float64)
    hidden = np.unique(np.concatenate((seeds, negatives, excluded, shown)))
    return Taste(space, seeds, vectors, query.astype(np.float32), shown, hidden, unknown + unknown_negatives)


def _unknown_seeds(view: CollectionView, request: ContinueRequest) -> Problem:
    first = f"None of the {len(set(request.seeds))} seeds"
    others = [name for name in get_args(Recommender) if len(_rows(view, _space(view, name), request.seeds)[0])]
    if others:
        return Problem(
            "unknown_seeds",
            f"{first} has a vector for the recommender {request.recommender!r}; ask {' or '.join(others)}.",
        )
    return Problem(
        "unknown_seeds",
        f"{first} is a track here (first: {request.seeds[0][:80]!r}); GET /tracks?q= finds ids by title and artist.",
    )


def _live(view: CollectionView, ids: Sequence[str]) -> Rows:
    """Return the rows of those `ids` that are here."""
    return np.array([row for track_id in ids if (row := view.catalogue.row_of(track_id)) is not None], dtype=np.int64)


def _rows(view: CollectionView, space: VectorView, ids: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return the rows of `ids` that can be compared in `space`, in order, each once; and the other ids."""
    found = {track_id: view.catalogue.row_of(track_id) for track_id in ids}
    rows = np.array([row for row in found.values() if row is not None], dtype=np.int64)
    comparable = ~np.isnan(space.vectors(rows)).any(axis=1)
    kept = set(rows[comparable].tolist())
    return rows[comparable], [track_id for track_id, row in found.items() if row not in kept]


def _filled(view: CollectionView, request: ContinueRequest, taste: Taste) -> tuple[Rows, Vectors, list[str]]:
    """Return rows, their scores, and the constraints that had to give, one after the other, until there are k rows.

    What keeps all constraints comes first. A constraint that gave without bringing anything gave too: the next one was
    lifted on top of it.
    """
    rows, scores = _ranked(view, request, taste)
    relaxed: list[str] = []
    for name in request.relax:
        if len(rows) >= request.k:
            break
        if not _lift(request, name):
            continue
        relaxed.append(name)
        lifted = request.model_copy(update={"k": request.k - len(rows), **_without(request, relaxed)})
        shown = np.concatenate((taste.shown, rows))
        rest = dataclasses.replace(taste, shown=shown, hidden=np.union1d(taste.hidden, rows))
        more, their = _ranked(view, lifted, rest)
        rows, scores = np.concatenate((rows, more)), np.concatenate((scores, their))
    return rows, scores, relaxed


def _lift(request: ContinueRequest, name: str) -> bool:
    """Whether the request has a constraint of this name, that can be lifted."""
    of = request if name in CAPS else request.filters
    return bool(getattr(of, name))


def _without(request: ContinueRequest, names: Sequence[str]) -> dict[str, Any]:
    """Return the request's fields that are others without the constraints `names`."""
    unset = {name: FilterRequest.model_fields[name].default for name in names if name not in CAPS}
    caps: dict[str, Any] = dict.fromkeys(name for name in names if name in CAPS)
    return {**caps, "filters": request.filters.model_copy(update=unset)}


def _ranked(view: CollectionView, request: ContinueRequest, taste: Taste) -> tuple[Rows, Vectors]:
    """Return the best rows and their scores; looks at more candidates until enough pass the caps."""
    choosing = request.diversity > 0 or request.max_per_artist or request.max_per_album
    wanted = request.k * POOL if choosing else request.k
    allowed = _allowed(view, request.filters, taste.hidden)
    while True:
        rows, scores = _candidates(taste, wanted, allowed)
        chosen = np.arange(min(request.k, len(rows)))
        if choosing:
            chosen = choose(view, taste.space, request, rows, scores, taste.shown)
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


def _candidates(taste: Taste, wanted: int, allowed: NDArray[np.bool_] | None) -> tuple[Rows, Vectors]:
    """Return up to `wanted` rows with their scores, best first; fewer only when there are no more."""
    fetched = wanted if allowed is not None else wanted + len(taste.hidden)
    scores, rows = taste.space.search(taste.query, fetched, allowed)
    keep = (rows[0] >= 0) & ~np.isin(rows[0], taste.hidden)
    return rows[0][keep][:wanted], scores[0][keep][:wanted]


def _recommended(view: CollectionView, row: int, score: float, reason: dict[str, Any] | None) -> dict[str, Any]:
    track_id, title, artist, album = _names(view.catalogue, row)
    found = {
        "track_id": track_id,
        "title": title,
        "artist": artist,
        "album": album,
        "score": digits(score),
        "cold": view.catalogue.is_cold(row),
    }
    return found if reason is None else {**found, "because": reason}


def _names(catalogue: CatalogueView, row: int) -> tuple[str | None, ...]:
    """Return id, title, artist and album; a whole Track, of which nobody asks the rest, takes twice as long."""
    if row < len(catalogue.sealed):
        return tuple(catalogue.sealed.texts[name][row] for name in _NAMES)
    track = catalogue.track(row)
    return tuple(getattr(track, name) for name in _NAMES)
