"""How much content counts in a matching vector: chosen on the listeners of validation tracks, which are hidden."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.bcl.config import CONTENT_SHARE
from training.bcl.similarity import Listens
from training.data.splits import TRAIN, VALID
from training.evaluation.audience import AudienceProtocol, evaluate_audience
from training.evaluation.baselines import profile_cosine
from training.evaluation.results import EvaluationError

SHARES = (0.0, 0.25, 0.5, 0.75)
TRACKS, LISTENERS = 500, 20_000
"""Validation tracks and listeners that are looked at: a choice among four needs no more."""


def joined(trained: NDArray[np.float32], content: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Return l2([sqrt(1 - share) z, sqrt(share) c]) f32 [N, dims + content_dims] of z and c, as `Bcl.matching` does."""
    both = np.concatenate([np.sqrt(1 - share) * trained, np.sqrt(share) * content], axis=1)
    return np.asarray(both / np.linalg.norm(both, axis=1, keepdims=True), np.float32)


def choose_share(
    trained: NDArray[np.float32],
    content: NDArray[np.float32],
    listens: Listens | None,
    track_split: NDArray[np.int8],
    seed: int = 0,
) -> tuple[float, float | None]:
    """Return the share of `SHARES` by whose vectors a listener's train tracks tell best which valid tracks they heard.

    `trained` f32 [N, dims] and `content` f32 [N, content_dims] are z and c of all tracks; the second value is the mean
    AUC over validation tracks of the cosine of listener and track, None (and CONTENT_SHARE) where there is nothing to
    choose by. Ties go to the smaller share.
    """
    if listens is None or not content.any():
        return (CONTENT_SHARE if content.any() else 0.0), None
    heard, cold = _sample(listens, np.asarray(track_split), seed)
    warm = heard.copy()
    warm.data = warm.data * (track_split[warm.indices] == TRAIN)
    warm.eliminate_zeros()
    methods = {f"{share}": profile_cosine(joined(trained, content, share), warm) for share in SHARES}
    try:
        found = evaluate_audience(methods, heard, cold, AudienceProtocol(cuts=(1,), reaches=()))
    except EvaluationError:
        return CONTENT_SHARE, None
    areas = {share: found.method(f"{share}").figures["AUC"].value for share in SHARES}
    best = max(SHARES, key=lambda share: areas[share])
    return best, areas[best]


def _sample(listens: Listens, split: NDArray[np.int8], seed: int) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """Who heard what of train and valid tracks, 0/1, by some of the listeners; and some of the valid tracks."""
    rng = np.random.default_rng([seed, 2])
    people = np.arange(len(listens.listener_ids))
    people = np.sort(rng.permutation(people)[:LISTENERS])
    cold = np.sort(rng.permutation(np.flatnonzero(split == VALID))[:TRACKS])
    known = np.isin(split[listens.row], (TRAIN, VALID)) & np.isin(listens.listener, people)
    place = np.searchsorted(people, listens.listener[known])
    heard = sparse.csr_array(
        (np.ones(len(place)), (place, listens.row[known])), shape=(len(people), len(split)), dtype=np.float64
    )
    heard.data[:] = 1.0
    return heard, cold
