"""Tables of a matching evaluation: by the queries' listeners, and the spread over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.evaluation.estimates import paired_difference
from training.evaluation.popularity import deciles, halves, span, tail_minus_head
from training.evaluation.results import Evaluation, Parts
from training.report.matching_study import Figures
from training.report.tables import signed, table


def by_halves(found: Evaluation, listeners: NDArray[np.floating], against: str, figure: str) -> str:
    """A figure in tail and head, its difference to `against` there, and the tail's difference minus the head's."""
    parts, rows = halves(listeners), []
    whole = found.method(against).per_query[figure]
    for method in found.methods:
        gain = method.per_query[figure] - whole
        cells = [f"{method.per_query[figure][its].mean():.4f}" for its in parts.values()]
        if method.method == against:
            cells += [""] * (len(parts) + 1)
        else:
            cells += [signed(paired_difference(gain[its], np.zeros(its.sum()))) for its in parts.values()]
            between = tail_minus_head(gain, listeners)
            cells.append(signed(between) if between else "")
        rows.append([method.method, *cells])
    named = [f"{name}: {int(its.sum())} of {span(listeners[its])} listeners" for name, its in parts.items()]
    minus = [f"{name}: minus {against}" for name in parts]
    return table([f"{figure} in", *named, *minus, "tail's difference minus head's"], rows)


def in_tenths(found: Evaluation, listeners: NDArray[np.floating], figure: str) -> Evaluation:
    """The same evaluation with tenths of the queries as its parts, told by one figure."""
    return replace(found, parts=Parts("listeners", (figure,), deciles(listeners)))


def spread(runs: Mapping[str, Sequence[Figures]], key: str, against: str) -> dict[str, dict[str, float]]:
    """Columns for `tables.compared`: standard deviations over seeds of a figure, and of its difference to `against`
    seed by seed; none for one seed.
    """
    means = {name: np.array([run[key].mean() for run in its]) for name, its in runs.items() if its and key in its[0]}
    several = {name: its for name, its in means.items() if len(its) > 1}
    columns = {"sd over seeds": {name: float(its.std(ddof=1)) for name, its in several.items()}}
    if against in several:
        minus = {name: its - several[against] for name, its in several.items() if len(its) == len(several[against])}
        columns["sd of the difference"] = {
            name: float(its.std(ddof=1)) for name, its in minus.items() if name != against
        }
    return columns
