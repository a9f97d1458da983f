"""What an import read and what it left out: rows by kind, the first broken ones by name; printed and kept as JSON."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.errors import DebutError
from training.progress import Progress

NAME = "import-report.json"
MADE_BY = "debut import"
FORMAT = 1
MOST_BROKEN = 0.01  # share of the rows of one kind
NAMED = 20
_LONGEST_VALUE = 80  # characters of a broken value that are shown


class AdapterError(DebutError):
    """A download that cannot be made a data set, options that contradict it, or a target that is something else."""

    code = "import"


def contradiction(sentence: str) -> AdapterError:
    """Return the error for options that cannot be met."""
    return AdapterError(sentence, code="import_options")


@dataclass
class _Kind:
    rows: int = 0
    broken: int = 0
    first: str = ""


@dataclass
class ImportReport:
    """Counts as an import goes along. `importer` says which ("mpd", "lfm"), `settings` with what options."""

    importer: str
    settings: Mapping[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    """What was written: counts by name, filled in by the importer."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the data set should know, in sentences."""
    named: list[str] = field(default_factory=list)
    """The first broken rows: place, problem and value."""
    problems: Counter[str] = field(default_factory=Counter)
    """How many rows have each problem."""
    kinds: dict[str, _Kind] = field(default_factory=dict)

    def read(self, kind: str, rows: int = 1) -> None:
        """Count rows of a kind ("playlists", "entries", a file's name) that were met, broken or not."""
        self.kinds.setdefault(kind, _Kind()).rows += rows

    def broken(self, kind: str, place: str, problem: str, value: object = None, rows: int = 1) -> None:
        """Count rows of a kind as left out; `place` is file and line, or slice, playlist and track."""
        entry = self.kinds.setdefault(kind, _Kind())
        entry.broken += rows
        self.problems[problem] += rows
        line = f"{place}: {problem}" + (f" (got {_shown(value)})" if value is not None else "")
        entry.first = entry.first or line
        if len(self.named) < NAMED:
            self.named.append(line)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the reader."""
        self.notes.append(sentence)

    @property
    def left_out(self) -> int:
        """All broken rows."""
        return sum(kind.broken for kind in self.kinds.values())

    def say(self, progress: Progress) -> None:
        """Print the broken rows that have names, how many more there are, and the notes."""
        for line in self.named:
            progress.say(f"broken: {line}")
        if self.left_out > len(self.named):
            counts = ", ".join(f"{count} x {problem}" for problem, count in self.problems.most_common())
            progress.say(f"broken rows: {self.left_out} in all, left out: {counts}")
        for sentence in self.notes:
            progress.say(sentence)

    def judge(self) -> None:
        """Raise AdapterError when over 1 % of the rows of a kind are broken."""
        for name, kind in self.kinds.items():
            if kind.broken > MOST_BROKEN * kind.rows:
                raise AdapterError(
                    f"{kind.broken} of {kind.rows} {_rows_of(name)} are broken (over 1 %), the first: {kind.first}. "
                    "Nothing was written: fetch the file again or mend it",
                    code="import_broken",
                )

    def write(self, directory: Path) -> None:
        """Write import-report.json; it also marks the folder as one that an import made. No times: it is
        reproducible.
        """
        content = {
            "made_by": MADE_BY,
            "format": FORMAT,
            "importer": self.importer,
            "settings": dict(self.settings),
            "rows": {name: {"read": kind.rows, "broken": kind.broken} for name, kind in self.kinds.items()},
            "broken": {"first": self.named, "by_problem": dict(self.problems)},
            "figures": self.figures,
            "notes": self.notes,
        }
        (directory / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_import(directory: Path) -> bool:
    """Whether an import made this folder."""
    try:
        content = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _rows_of(kind: str) -> str:
    return f"rows of {kind}" if ".tsv" in kind else kind
