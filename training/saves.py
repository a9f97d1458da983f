"""Where an unfinished training can go on from: model, optimiser, place in the data, best epoch. Never a pickle."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from index.errors import DebutError
from training.folders import recover_folder, replace_folder

State = dict[str, Any]
NOTE = "progress.json"
_BETWEEN = "/"


class SavesError(DebutError):
    """A save that belongs to another training, or cannot be read."""

    code = "save_unusable"


@dataclass
class FitResult:
    """Outcome of a fit: the best validation score, its epoch (from 0; -1: the start), and a row of figures an epoch."""

    best_score: float = float("-inf")
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Position:
    """How far one task has come: steps in all, the epoch, batches done in it, and sums of its figures."""

    task: str
    step: int = 0
    epoch: int = 0
    place: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    finished: bool = False


class Saves:
    """A folder with the latest save of one run of tasks, replaced whole each time.

    made_from: what the run depends on (settings, data); a save of another run is refused. every_s: seconds between
    saves inside an epoch; there is one at each epoch's end besides.
    """

    def __init__(self, directory: Path, made_from: Mapping[str, str], every_s: float = 600.0) -> None:
        self.directory = directory
        self.every_s = every_s
        self._made_from = dict(made_from)
        self._last = time.monotonic()
        self.results: dict[str, FitResult] = {}
        self.position: Position | None = None
        self.facts: dict[str, Any] = {}
        recover_folder(directory)
        if (directory / NOTE).is_file():
            self._read()

    def _read(self) -> None:
        try:
            note = json.loads((self.directory / NOTE).read_text("utf-8"))
            made_from = note["made_from"]
            self.results = {name: FitResult(**result) for name, result in note["results"].items()}
            self.position = Position(**note["position"])
            self.facts = note["facts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SavesError(
                f"{self.directory} cannot be read ({error!r}); remove it (--fresh) to begin anew"
            ) from error
        if made_from != self._made_from:
            changed = sorted(name for name in self._made_from if made_from.get(name) != self._made_from[name])
            raise SavesError(
                f"{self.directory} holds an unfinished training with other {' and '.join(changed) or 'facts'}: go on "
                "with the same, or give --fresh to begin anew",
                code="save_of_another",
            )

    def started(self, task: str) -> bool:
        """Whether the latest save is of this task, unfinished or finished."""
        return self.position is not None and self.position.task == task

    def due(self) -> bool:
        """Whether the last save is `every_s` ago."""
        return time.monotonic() - self._last >= self.every_s

    def load(self, part: str) -> State:
        """Read "task", "best" or "optimiser" of the latest save. Raises SavesError."""
        try:
            flat: dict[str, Any] = dict(load_file(self.directory / f"{part}.safetensors"))
            flat |= json.loads((self.directory / f"{part}.json").read_text("utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise SavesError(f"{self.directory} cannot be read ({error}); give --fresh to begin anew") from error
        return _nested(flat)

    def write(self, position: Position, result: FitResult, **states: State) -> None:
        """Put a new save in the place of the old one."""
        self.results[position.task] = result
        self.position = position
        note = {
            "made_from": self._made_from,
            "results": {name: asdict(found) for name, found in self.results.items()},
            "position": asdict(position),
            "facts": self.facts,
        }

        def fill(folder: Path) -> None:
            for part, state in states.items():
                tensors, plain = _flat(state)
                save_file(tensors, folder / f"{part}.safetensors")
                (folder / f"{part}.json").write_text(json.dumps(plain), "utf-8")
            (folder / NOTE).write_text(json.dumps(note), "utf-8")

        replace_folder(self.directory, fill)
        self._last = time.monotonic()


def _flat(state: Mapping[Any, Any], before: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Nested dicts as one level: tensors (contiguous, on the CPU) and plain values by "outer/inner"."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in state.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            inner_tensors, inner_plain = _flat(value, name + _BETWEEN)
            tensors |= inner_tensors
            plain |= inner_plain
        elif isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        else:
            plain[name] = value
    return tensors, plain


def _nested(flat: Mapping[str, Any]) -> State:
    state: State = {}
    for name, value in flat.items():
        *outer, key = name.split(_BETWEEN)
        inside = state
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[key] = value
    return state
