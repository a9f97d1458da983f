"""The report's tables in Markdown."""

from collections.abc import Mapping, Sequence

from training.evaluation.estimates import Estimate
from training.evaluation.results import Evaluation


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_evaluation(found: Evaluation, against: str | None = None, first: str = "method") -> str:
    """All figures of all methods, the first with its interval, and chance and ceiling.

    `against`: a last column with the first figure's difference to that method's, query by query, with its interval.
    """
    names = list(found.methods[0].figures)
    head = [first, f"{names[0]} [95 %]", *names[1:]]
    rows = []
    for method in found.methods:
        cells = [with_interval(method.figures[names[0]]), *(f"{method.figures[n].value:.4f}" for n in names[1:])]
        if against is not None:
            cells.append("" if method.method == against else signed(found.difference(method.method, against, names[0])))
        rows.append([method.method, *cells])
    for label, values in (("*chance*", found.chance), ("*ceiling*", found.ceiling)):
        row = [label, *(f"{values[name]:.4f}" if name in values else "" for name in names)]
        rows.append(row + [""] * (against is not None))
    return table(head + ([f"{names[0]} minus {against}"] if against is not None else []), rows)


def compared(found: Evaluation, against: str, beside: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Every figure of all methods with its interval, and each one's difference to `against`, query by query.

    `beside`: further columns, by name and method.
    """
    names, beside = list(found.methods[0].figures), dict(beside or {})
    rows = []
    for method in found.methods:
        cells = [with_interval(method.figures[name]) for name in names]
        own = method.method == against
        cells += ["" if own else signed(found.difference(method.method, against, name)) for name in names]
        cells += [f"{its[method.method]:.4f}" if method.method in its else "" for its in beside.values()]
        rows.append([method.method, *cells])
    for label, values in (("*chance*", found.chance), ("*ceiling*", found.ceiling)):
        rows.append([label, *(f"{values[name]:.4f}" for name in names), *[""] * (len(names) + len(beside))])
    head = ["method", *(f"{name} [95 %]" for name in names), *(f"{name} minus {against}" for name in names), *beside]
    return table(head, rows)


def by_part(found: Evaluation) -> str:
    """The means of an evaluation's parts: a method a line, a part a column."""
    head, *rows = found.parts_rows()
    return table(head, rows)


def by_recommender(found: Mapping[str, Evaluation]) -> str:
    """Table 2: recommender by encoder by figure."""
    any_one = next(iter(found.values()))
    names = list(any_one.methods[0].figures)
    rows = []
    for recommender, evaluation in found.items():
        for method in evaluation.methods:
            figures = method.figures
            first = with_interval(figures[names[0]])
            rows.append([recommender, method.method, first, *(f"{figures[name].value:.4f}" for name in names[1:])])
    return table(["recommender", "encoder", f"{names[0]} [95 %]", *names[1:]], rows)


def with_interval(estimate: Estimate) -> str:
    """An estimate as "value [low, high]"."""
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def signed(estimate: Estimate) -> str:
    """A difference as "+value [low, high]"."""
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
