"""What every model must beat: chance, the artist, words, popularity, activity, neighbours' audiences."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from index.models.caption import CLAUSES, caption
from index.tracks.track import Track
from training.evaluation import audience, continuation, matching
from training.evaluation.metrics import top_k
from training.evaluation.vectors import Vectors, filled, unit


def same_artist(tracks: Sequence[Track]) -> sparse.csr_array:
    """Return the artist, whole string, as one-hot rows [N, A]; an unknown artist is a zero row."""
    return _one_hot([[track.artist] if track.artist else [] for track in tracks])


def tfidf_captions(tracks: Sequence[Track], clauses: Collection[str] = CLAUSES) -> sparse.csr_array:
    """Return TF-IDF of the captions' words, unit rows [N, words], fitted on all tracks given."""
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    return _fitted(words, [caption(track, clauses) for track in tracks])


def tfidf_letters(tracks: Sequence[Track], clauses: Collection[str] = CLAUSES) -> sparse.csr_array:
    """Return TF-IDF of runs of 3 to 5 letters inside the captions' words, unit rows [N, runs]."""
    captions = [caption(track, clauses) for track in tracks]
    runs = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2 if len(captions) > 100 else 1)
    return _fitted(runs, captions)


def _fitted(counter: TfidfVectorizer, captions: Sequence[str]) -> sparse.csr_array:
    try:
        return sparse.csr_array(counter.fit_transform(captions))
    except ValueError:  # there is no word, or no run that two share: all tie
        return sparse.csr_array((len(captions), 1))


def shared_artist(labels: sparse.csr_array) -> sparse.csr_array:
    """Return the artists [N, A] of `questions.artist_labels` as unit rows: tracks of several artists share in each."""
    return unit(labels)


def tfidf_attributes(tracks: Sequence[Track], names: Sequence[str] = ()) -> sparse.csr_array:
    """Return binary TF-IDF of genres, artist, language and the attributes `names`, unit rows [N, values]."""
    tokens = [_attribute_tokens(track, names) for track in tracks]
    if not any(tokens):  # nothing is known of any track: all tie
        return sparse.csr_array((len(tracks), 1))
    values = TfidfVectorizer(analyzer=lambda tokens: tokens, binary=True)
    return sparse.csr_array(values.fit_transform(tokens))


def tfidf_of(tracks: Sequence[Track]) -> sparse.csr_array:
    """Return `tfidf_attributes` with every further attribute that some track has."""
    return tfidf_attributes(tracks, sorted({name for track in tracks for name in track.attributes}))


def _attribute_tokens(track: Track, names: Sequence[str]) -> list[str]:
    tokens = [f"genre={genre}" for genre in track.genres]
    tokens += [f"{name}={value}" for name in ("artist", "language") if (value := getattr(track, name))]
    for name in names:
        value = track.attributes.get(name)
        if isinstance(value, str):
            tokens.append(f"{name}={value}")
        elif isinstance(value, list):
            tokens += [f"{name}={item}" for item in value]
    return tokens


def _one_hot(labels: Sequence[Sequence[str]]) -> sparse.csr_array:
    column = {label: n for n, label in enumerate(sorted({label for row in labels for label in row}))}
    row = [r for r, found in enumerate(labels) for _ in found]
    entries = (np.ones(len(row)), (row, [column[label] for found in labels for label in found]))
    return unit(sparse.csr_array(entries, shape=(len(labels), max(1, len(column)))))


def random_continuation() -> continuation.Scorer:
    """Return the scorer for which all candidates tie."""
    return lambda seeds, candidates: np.zeros((len(seeds), len(candidates)))


def random_matching() -> matching.Scorer:
    """Return the scorer for which all candidates tie."""
    return lambda queries, candidates: np.zeros((len(queries), len(candidates)))


def popularity(warm: sparse.csr_array) -> matching.Scorer:
    """Return the scorer by number of listeners in `warm` [listeners, tracks]."""
    heard = np.asarray(warm.sum(0)).ravel()
    return lambda queries, candidates: np.tile(heard[candidates], (len(queries), 1))


def times_popularity(scorer: matching.Scorer, warm: sparse.csr_array) -> matching.Scorer:
    """Return `scorer` x ln(1 + listeners of the candidate): the truth needs common listeners."""
    weight = np.log1p(np.asarray(warm.sum(0)).ravel())
    return lambda queries, candidates: scorer(queries, candidates) * weight[candidates]


def plus_popularity(scorer: matching.Scorer, warm: sparse.csr_array, weight: float) -> matching.Scorer:
    """Return `scorer` + weight x ln(1 + listeners of the candidate in `warm`): the prior of `matching.prior_weight`.

    Read as logits this is p(candidate | query) ~ exp(score / weight) x (1 + listeners): the same for scores of
    either sign, where a product would push down what is popular and unlike the query.
    """
    prior = weight * np.log1p(np.asarray(warm.sum(0)).ravel())
    return lambda queries, candidates: scorer(queries, candidates) + prior[candidates]


def random_audience(listeners: int) -> audience.Scorer:
    """Return the scorer for which all listeners tie."""
    return lambda queries: np.zeros((len(queries), listeners))


def activity(plays: sparse.csr_array) -> audience.Scorer:
    """Return the scorer by a listener's sum over `plays` [listeners, tracks]: push to the busiest."""
    total = np.asarray(plays.sum(1)).ravel()
    return lambda queries: np.tile(total, (len(queries), 1))


def union_of_nearest(
    nearest: matching.Scorer,
    warm: sparse.csr_array,
    candidates: NDArray[np.int64],
    *,
    neighbours: int = 50,
    weighted: bool = True,
    seed: int = 45,
) -> audience.Scorer:
    """Return the scorer by how many of the query's nearest warm tracks a listener heard.

    `nearest` ranks `candidates` (rows of warm tracks); each of the best `neighbours` counts its similarity
    (negative ones nothing) when `weighted`, else 1. `warm` 0/1 [listeners, tracks].
    """
    by_track = sparse.csr_array(sparse.csr_array(warm)[:, candidates].T)

    def score(queries: NDArray[np.int64]) -> NDArray[np.floating]:
        near = np.asarray(nearest(queries, candidates), np.float64)
        best = top_k(near, neighbours, np.random.default_rng(seed))
        weight = np.maximum(np.take_along_axis(near, best, 1), 0) if weighted else np.ones(best.shape)
        rows = np.repeat(np.arange(len(queries)), best.shape[1])
        chosen = sparse.csr_array((weight.ravel(), (rows, best.ravel())), shape=near.shape)
        return (chosen @ by_track).toarray()

    return score


def profile_cosine(vectors: Vectors, warm: sparse.csr_array) -> audience.Scorer:
    """Return the scorer cosine(mean of the listener's warm tracks' vectors, the query's vector).

    `vectors` [N, d] unit rows (missing rows count as zero); `warm` [listeners, tracks], 0/1 or weights.
    """
    profiles = unit(sparse.csr_array(warm, dtype=np.float64) @ filled(vectors))

    def score(queries: NDArray[np.int64]) -> NDArray[np.floating]:
        products = filled(vectors[queries]) @ profiles.T
        return products.toarray() if sparse.issparse(products) else np.asarray(products)

    return score
