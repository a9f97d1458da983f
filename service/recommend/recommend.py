"""Seeds -> candidates -> filters -> diversity -> because: the continuation of a playlist."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.collection import CollectionView
from index.tracks.catalogue import CatalogueView, Filters
from service.http.problems import Problem
from service.http.schemas import CAPS, ContinueRequest, FilterRequest
from service.recommend import cursor
from service.recommend.choice import choose

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
    shown: Rows
    """Rows that earlier pages returned."""
    hidden: Rows
    """Rows that are not returned: seeds, negatives, excluded and shown ones. Ascending."""
    unknown: list[str]


def continue_playlist(view: CollectionView, request: ContinueRequest, audio_share: float) -> dict[str, Any]:
    """Return the answer (schemas.ContinueResponse, as plain data) to `request`, all of it from one `view`.

    score(candidate) = mean over seeds of seed . candidate, both unit vectors (LARP, equation 12); equal
    scores are ordered by row, so the same request on the same state has the same answer. Raises Problem
    `unknown_seeds`, and those of `service.recommend.cursor.read`. `audio_share` is the encoder's: `because` weighs
    audio and text as the vectors do.
    """
    shown = cursor.read(request, view)
    taste = _taste(view, request, shown)
    rows, scores, relaxed = _filled(view, request, taste)
    reasons = _because(view, taste, rows, audio_share) if request.explain else [None] * len(rows)
    tracks = [
        _recommended(view, row, score, because)
        for row, score, because in zip(rows.tolist(), scores.tolist(), reasons, strict=True)
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


def _taste(view: CollectionView, request: ContinueRequest, shown_ids: list[str]) -> Taste:
    seeds, unknown = _rows(view, request.seeds)
    if not len(seeds):
        raise Problem(
            "unknown_seeds",
            f"None of the {len(unknown)} seeds is a track here (first: {unknown[0][:80]!r}); GET /tracks?q= "
            "finds ids by title and artist.",
        )
    negatives, unknown_negatives = _rows(view, request.negatives)
    excluded, shown = (_live(view, ids) for ids in (request.exclude, shown_ids))
    vectors = view.continuation.vectors(seeds)
    query = vectors.mean(axis=0, dtype=np.float64)
    if len(negatives):
        query -= NEGATIVE_WEIGHT * view.continuation.vectors(negatives).mean(axis=0, dtype=np.float64)
    hidden = np.unique(np.concatenate((seeds, negatives, excluded, shown)))
    return Taste(seeds, vectors, query.astype(np.float32), shown, hidden, unknown + unknown_negatives)


def _live(view: CollectionView, ids: Sequence[str]) -> Rows:
    """Return the rows of those `ids` that are here."""
    return np.array([row for track_id in ids if (row := view.catalogue.row_of(track_id)) is not None], dtype=np.int64)


def _rows(view: CollectionView, ids: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return the rows of `ids` that can be compared, in order, each once; and the other ids."""
    found = {track_id: view.catalogue.row_of(track_id) for track_id in ids}
    rows = np.array([row for row in found.values() if row is not None], dtype=np.int64)
    comparable = ~np.isnan(view.continuation.vectors(rows)).any(axis=1)
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
        rows, scores = _candidates(view, taste, wanted, allowed)
        chosen = choose(view, request, rows, scores, taste.shown) if choosing else np.arange(min(request.k, len(rows)))
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
