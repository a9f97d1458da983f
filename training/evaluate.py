"""The figures of one training: each task's table, Debut beside its baselines, on cold test tracks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from training.data.dataset import TEST, TRAIN, DataSet
from training.embed import Embeddings
from training.evaluation import baselines, questions
from training.evaluation.audience import AudienceProtocol
from training.evaluation.audience import evaluate_audience as _audience
from training.evaluation.cat import cat_scorer
from training.evaluation.continuation import (
    ContinuationProtocol,
    ContinuationQuery,
    Scorer,
    draw_queries,
    mean_of_seeds,
)
from training.evaluation.continuation import evaluate_continuation as _continuation
from training.evaluation.matching import MatchingProtocol, MatchingTasks, inner_product
from training.evaluation.matching import Scorer as MatchingScorer
from training.evaluation.matching import evaluate_matching as _matching
from training.evaluation.popularity import by_popularity
from training.evaluation.questions import Questions
from training.evaluation.results import Evaluation, EvaluationError
from training.matched import Matched

DEBUT = "Debut (LARP)"
MATCHED, TRAINED = "Debut (BCL and content)", "Debut (BCL alone)"
TFIDF = "TF-IDF of attributes"


@dataclass(frozen=True)
class Protocols:
    """How each task is set; see the classes for the papers' settings."""

    continuation: ContinuationProtocol = field(default_factory=ContinuationProtocol)
    matching: MatchingProtocol = field(default_factory=MatchingProtocol)
    audience: AudienceProtocol = field(default_factory=AudienceProtocol)
    questions: Questions = field(default_factory=Questions)


def evaluate(
    dataset: DataSet,
    embeddings: Embeddings | None,
    matched: Matched,
    protocols: Protocols,
    clauses: Sequence[str],
) -> tuple[list[Evaluation], list[str]]:
    """Run every task the data set has a truth for; return the tables and a sentence for each task left out.

    Without `embeddings` playlists are not continued. `clauses` are those of the caption: the TF-IDF baseline reads what
    the text tower reads.
    """
    tables: list[Evaluation] = []
    left_out: list[str] = []
    tasks: list[Callable[[], list[Evaluation]]] = []
    if embeddings is None:
        left_out.append("playlists, since the tracks have no LARP vectors")
    else:
        tasks.append(lambda: [evaluate_continuation(dataset, embeddings, protocols.continuation, clauses)])
        tasks += _questions(dataset, embeddings, protocols, clauses)
    tasks += [
        lambda: [evaluate_matching(dataset, embeddings, matched, protocols.matching)],
        lambda: [evaluate_audience(dataset, embeddings, matched, protocols.audience)],
    ]
    for task in tasks:
        try:
            tables += task()
        except EvaluationError as error:
            left_out.append(error.detail)
    return tables, left_out


def evaluate_continuation(
    dataset: DataSet,
    embeddings: Embeddings,
    protocol: ContinuationProtocol,
    clauses: Sequence[str],
) -> Evaluation:
    """Continue test playlists with test tracks (LARP's protocol). Raises EvaluationError without test playlists."""
    candidates = np.flatnonzero(dataset.track_split == TEST)
    methods = continuation_methods(dataset, embeddings, clauses)
    return _continuation(methods, test_queries(dataset, protocol), candidates, protocol)


def continuation_methods(dataset: DataSet, embeddings: Embeddings, clauses: Sequence[str]) -> dict[str, Scorer]:
    """Debut and what it must beat, by name."""
    towers = {"audio": embeddings.audio, "text": embeddings.text}
    there = {name: vectors for name, vectors in towers.items() if not np.isnan(vectors).all()}
    methods = {DEBUT: mean_of_seeds(embeddings.continuation)}
    if len(there) > 1:
        methods |= {f"Debut, {name} tower alone": mean_of_seeds(vectors) for name, vectors in there.items()}
    methods["TF-IDF of the caption"] = mean_of_seeds(baselines.tfidf_captions(dataset.tracks, clauses))
    methods["TF-IDF of its letters"] = mean_of_seeds(baselines.tfidf_letters(dataset.tracks, clauses))
    if (dataset.root / questions.ARTISTS).is_file():
        shared = baselines.shared_artist(questions.artist_labels(dataset))
        methods["shared artist"] = mean_of_seeds(shared)
    methods["same artist"] = mean_of_seeds(baselines.same_artist(dataset.tracks))
    return methods | {"random": baselines.random_continuation()}


def _questions(
    dataset: DataSet, embeddings: Embeddings, protocols: Protocols, clauses: Sequence[str]
) -> list[Callable[[], list[Evaluation]]]:
    asked, protocol = protocols.questions, protocols.continuation
    if not (dataset.playlist_split == TEST).any():
        return []
    methods = continuation_methods(dataset, embeddings, clauses)
    tasks: list[Callable[[], list[Evaluation]]] = []
    if asked.other_artists:
        queries = test_queries(dataset, protocol)
        tasks.append(lambda: [questions.of_other_artists(dataset, methods, queries, protocol)])
    if asked.new_artists:
        tasks.append(lambda: [questions.of_new_artists(dataset, methods, protocol)])
    tasks += [lambda count=count: [questions.by_seeds(dataset, methods, count, protocol)] for count in asked.seeds]
    if asked.homogeneity:
        vectors = embeddings.continuation
        tasks.append(
            lambda: questions.by_homogeneity(dataset, methods, vectors, test_queries(dataset, protocol), protocol)
        )
    return tasks


def test_queries(dataset: DataSet, protocol: ContinuationProtocol) -> list[ContinuationQuery]:
    """Return the seeds and truths that the protocol draws from the test playlists."""
    chosen = dataset.playlist_split == TEST
    ids = [track.track_id for track in dataset.tracks]
    return draw_queries(dataset.playlists, chosen, ids, dataset.track_split == TEST, protocol)


def evaluate_matching(
    dataset: DataSet,
    embeddings: Embeddings | None,
    matched: Matched,
    protocol: MatchingProtocol,
) -> Evaluation:
    """Find the warm tracks that share a cold track's audience. Raises EvaluationError without listens.

    With rows for the release's vectors and for their trained half alone, and for these and TF-IDF plus the popularity
    prior, whose weight validation tracks choose (`protocol` of the answer has it), and the largest cut's Recall by the
    queries' listeners.
    """
    tasks = MatchingTasks.of(dataset, protocol)
    spaces = {MATCHED: matched.vectors, TRAINED: matched.z, TFIDF: baselines.tfidf_of(dataset.tracks)}
    methods: dict[str, MatchingScorer] = {}
    weights: dict[str, float] = {}
    for name, vectors in spaces.items():
        methods[name] = scorer = inner_product(vectors)
        weight = tasks.prior_weight(scorer)
        if weight is not None:
            weights[f"prior of {name}"] = weight
            methods[f"{name}, popularity prior"] = baselines.plus_popularity(scorer, tasks.warm, weight)
    if embeddings is not None:
        methods["content kNN (LARP vectors, raw)"] = inner_product(embeddings.continuation)
    methods["popularity"] = baselines.popularity(tasks.warm)
    methods["random"] = baselines.random_matching()
    found = _matching(methods, tasks.test)
    parts = by_popularity(tasks.listeners, max(protocol.cuts))
    return replace(found, protocol={**found.protocol, **weights}, parts=parts)


def evaluate_audience(
    dataset: DataSet,
    embeddings: Embeddings | None,
    matched: Matched,
    protocol: AudienceProtocol,
) -> Evaluation:
    """Rank all listeners for cold tracks whose listens are hidden. Raises EvaluationError without listens."""
    heard, warm = _listens(dataset)
    cold, candidates = _cold_and_warm(dataset)
    plays = _plays(dataset)
    if not plays.data.any():
        raise EvaluationError("no training track was played: there is nothing to find audiences by", code="no_listens")
    vectors, words = matched.vectors, baselines.tfidf_of(dataset.tracks)
    methods = {
        "the same vectors, cosine to the listener": baselines.profile_cosine(vectors, warm),
        "the same vectors, union of the nearest": baselines.union_of_nearest(inner_product(vectors), warm, candidates),
        "TF-IDF, cosine to the listener": baselines.profile_cosine(words, warm),
        "TF-IDF, union of the nearest": baselines.union_of_nearest(inner_product(words), warm, candidates),
        "activity": baselines.activity(warm),
        "random": baselines.random_audience(warm.shape[0]),
    }
    if embeddings is not None:
        methods["LARP vectors, cosine to the listener"] = baselines.profile_cosine(embeddings.continuation, warm)
    with cat_scorer(dataset.tracks, vectors, plays, activity=matched.activity) as cat:
        return _audience({"Debut (CAT)": cat, **methods}, heard, cold, protocol)


def _cold_and_warm(dataset: DataSet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.flatnonzero(dataset.track_split == TEST), np.flatnonzero(dataset.track_split == TRAIN)


def _listens(dataset: DataSet) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Who heard what, 0/1 [listeners, tracks]: everything, and the training tracks' part alone."""
    listens = dataset.listens
    if listens is None:
        raise EvaluationError("the data set has no listens.parquet: audiences are not measured", code="no_listens")
    shape = (len(listens.listener_ids), len(dataset.tracks))
    ones = np.ones(len(listens.row), dtype=np.float64)
    known = dataset.track_split[listens.row] == TRAIN
    heard = sparse.csr_array((ones, (listens.listener, listens.row)), shape=shape)
    return heard, sparse.csr_array((ones[known], (listens.listener[known], listens.row[known])), shape=shape)


def _plays(dataset: DataSet) -> sparse.csr_array:
    """Plays of training tracks [listeners, tracks]."""
    listens = dataset.listens
    assert listens is not None
    known = dataset.track_split[listens.row] == TRAIN
    entries = (listens.plays[known], (listens.listener[known], listens.row[known]))
    return sparse.csr_array(entries, shape=(len(listens.listener_ids), len(dataset.tracks)))
