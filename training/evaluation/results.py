"""What an evaluation found: dataclasses that become JSON for the manifest and a plain table for the eye."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DebutError
from training.evaluation.estimates import Estimate, bootstrap, paired_difference


class EvaluationError(DebutError):
    """There is nothing to measure, or a scorer's answer does not fit the protocol."""

    code = "evaluation_failed"


@dataclass(frozen=True)
class MethodResult:
    """One method's figures, and its value for every query (for paired comparisons)."""

    method: str
    figures: Mapping[str, Estimate]
    per_query: Mapping[str, NDArray[np.float64]] = field(repr=False)


@dataclass(frozen=True)
class Parts:
    """Parts of the queries that some figures, the first foremost, are told of one by one: `masks`, bool [Q] by name,
    which may overlap; `by`: what tells them apart.
    """

    by: str
    figures: tuple[str, ...]
    masks: Mapping[str, NDArray[np.bool_]] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """One protocol applied to several methods. `groups`: what the bootstrap drew, when not single queries. `parts`:
    of the queries, told below the table.
    """

    task: str
    protocol: Mapping[str, Any]
    queries: int
    chance: Mapping[str, float]
    ceiling: Mapping[str, float]
    methods: Sequence[MethodResult]
    groups: Sequence[str] | None = field(default=None, repr=False)
    parts: Parts | None = None

    def method(self, name: str) -> MethodResult:
        """Return one method's result; raises KeyError naming those there are."""
        found = {m.method: m for m in self.methods}
        if name not in found:
            raise KeyError(f"no method {name!r} in {sorted(found)}")
        return found[name]

    def difference(self, first: str, second: str, figure: str) -> Estimate:
        """Return `first` - `second` of a figure by the paired bootstrap over the same queries."""
        one, other = self.method(first).per_query[figure], self.method(second).per_query[figure]
        return paired_difference(one, other, groups=self.groups)

    def in_part(self, name: str) -> "Evaluation":
        """Return the parts' figures on one of them alone (chance and ceiling are of the whole, and left out)."""
        assert self.parts is not None
        chosen = self.parts.masks[name]
        groups = None if self.groups is None else [g for g, its in zip(self.groups, chosen, strict=True) if its]
        methods = [
            summarise(m.method, {figure: m.per_query[figure][chosen] for figure in self.parts.figures}, groups)
            for m in self.methods
        ]
        task = f"{self.task}, {self.parts.by} {name}"
        return Evaluation(task, self.protocol, int(chosen.sum()), {}, {}, methods, groups)

    def to_json(self) -> dict[str, Any]:
        """Return what the release's manifest keeps: everything but the values of single queries."""
        whole = {
            "task": self.task,
            "protocol": dict(self.protocol),
            "queries": self.queries,
            "chance": {name: round(value, 6) for name, value in self.chance.items()},
            "ceiling": {name: round(value, 6) for name, value in self.ceiling.items()},
            "methods": {
                m.method: {name: estimate.to_json() for name, estimate in m.figures.items()} for m in self.methods
            },
        }
        if self.parts is None:
            return whole
        told = {name: self.in_part(name).to_json() for name in self.parts.masks}
        parts = {name: {key: found[key] for key in ("queries", "methods")} for name, found in told.items()}
        return whole | {f"by {self.parts.by}": parts}

    def heading(self) -> str:
        """Return a line for above the table: the task, the number of queries, the protocol's plain numbers."""
        facts = [f"{name} {value}" for name, value in self.protocol.items() if isinstance(value, int | float)]
        return f"{self.task}: {', '.join([f'{self.queries} queries', *facts])}"

    def differences(self, against: str, figure: str) -> str:
        """Return a text table: `against` minus each other method in a figure, query by query, with its interval."""
        rows = [["method", f"{against} minus it, {figure} [95 %]"]]
        for other in (m.method for m in self.methods if m.method != against):
            found = self.difference(against, other, figure)
            rows.append([other, f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"])
        return _aligned(rows)

    def table(self, figures: Sequence[str] = ()) -> str:
        """Return a text table: a method a line, the first figure with interval, chance and ceiling below, and the
        means of `parts` in a second table.
        """
        names = list(figures) or list(self.methods[0].figures)
        head = ["method", f"{names[0]} [95 %]", *names[1:]]
        lines = [[m.method, *_cells(m.figures, names)] for m in self.methods]
        for label, row in (("(chance)", self.chance), ("(ceiling)", self.ceiling)):
            if row:
                lines.append([label, *(f"{row[n]:.4f}" if n in row else "" for n in names)])
        return _aligned([head, *lines]) + ("" if self.parts is None else f"\n\n{_aligned(self.parts_rows())}")

    def parts_rows(self) -> list[list[str]]:
        """Return the rows of a table of `parts`: a method a line, a part a column, the numbers of queries last."""
        assert self.parts is not None
        masks, figure = self.parts.masks, self.parts.figures[0]
        rows = [[f"{figure} by {self.parts.by}", *masks]]
        for method in self.methods:
            values = method.per_query[figure]
            rows.append([method.method, *(f"{values[its].mean():.4f}" for its in masks.values())])
        return [*rows, ["(queries)", *(f"{int(its.sum())}" for its in masks.values())]]


def summarise(
    method: str, per_query: Mapping[str, NDArray[np.float64]], groups: Sequence[str] | None = None
) -> MethodResult:
    """Return one method's figures from its values for every query, intervals by `estimates.bootstrap`."""
    figures = {name: bootstrap(values, groups=groups) for name, values in per_query.items()}
    return MethodResult(method, figures, dict(per_query))


def _cells(figures: Mapping[str, Estimate], names: Sequence[str]) -> list[str]:
    first = figures[names[0]]
    return [
        f"{first.value:.4f} [{first.low:.4f}, {first.high:.4f}]",
        *(f"{figures[n].value:.4f}" for n in names[1:]),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
