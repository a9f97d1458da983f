"""Head and tail: parts of the queries by how many listeners their tracks have."""

import numpy as np
from numpy.typing import NDArray

from training.evaluation.estimates import DRAWS, Estimate
from training.evaluation.results import Parts

Masks = dict[str, NDArray[np.bool_]]


def halves(listeners: NDArray[np.floating]) -> Masks:
    """Return {"tail": at most the median, "head": more}, bool [Q] each; a half without queries is left out."""
    tail = listeners <= np.median(listeners)
    return {name: its for name, its in (("tail", tail), ("head", ~tail)) if its.any()}


def deciles(listeners: NDArray[np.floating]) -> Masks:
    """Return tenths of the queries, few listeners first, bool [Q] each, named by their range, as "5-7".

    Equal numbers stay together: the tenths may differ in size, and be fewer than ten.
    """
    edges = np.unique(np.quantile(listeners, np.arange(1, 10) / 10))
    tenth = np.searchsorted(edges, listeners, side="left")
    return {span(listeners[tenth == n]): tenth == n for n in np.unique(tenth)}


def span(listeners: NDArray[np.floating]) -> str:
    """Return the range of some numbers of listeners, as "5-7" or "5"."""
    low, high = int(listeners.min()), int(listeners.max())
    return f"{low}" if low == high else f"{low}-{high}"


def by_popularity(listeners: NDArray[np.floating], cut: int) -> Parts:
    """Return tail, head and the tenths as parts of an evaluation whose queries have so many `listeners` [Q], with
    their Recall and NDCG at `cut`.
    """
    named = {f"{name} {span(listeners[its])}": its for name, its in halves(listeners).items()}
    return Parts("listeners", (f"R@{cut}", f"N@{cut}"), named | deciles(listeners))


def tail_minus_head(values: NDArray[np.float64], listeners: NDArray[np.floating]) -> Estimate | None:
    """Return the mean of `values` [Q] in the tail minus that in the head; each half is drawn from by itself.

    None where all queries are of one half.
    """
    parts = halves(listeners)
    if len(parts) < 2:
        return None
    rng, means, drawn = np.random.default_rng(1), [], []
    for its in parts.values():
        half = values[its]
        means.append(half.mean())
        drawn.append(np.array([half[rng.integers(0, len(half), len(half))].mean() for _ in range(DRAWS)]))
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return Estimate(float(means[0] - means[1]), float(low), float(high))
