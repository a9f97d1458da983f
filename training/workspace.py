"""Where the steps of one training leave their results for the next: a folder, one sub-folder a step."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from index.errors import DebutError
from training.folders import replace_folder

NOTE = "made_from.json"


class WorkspaceError(DebutError):
    """A step was asked for before the one it builds on (step_missing), or after that was done anew (step_outdated)."""

    code = "step_missing"


@dataclass(frozen=True)
class Workspace:
    """The folders under `root`: clips, larp, encoder, vectors, bcl, matcher, matching, evaluation."""

    root: Path

    @property
    def clips(self) -> Path:
        """Log-mel excerpts of every track, decoded once (`prepare`)."""
        return self.root / "clips"

    @property
    def larp(self) -> Path:
        """LARP's checkpoint (`larp`)."""
        return self.root / "larp"

    @property
    def saves(self) -> Path:
        """Where a LARP training that was broken off goes on from (`larp`)."""
        return self.root / "larp.saves"

    @property
    def features(self) -> Path:
        """Outputs of frozen encoders (`larp --freeze`)."""
        return self.root / "larp.features"

    @property
    def board(self) -> Path:
        """TensorBoard's curves (`larp`, `bcl`)."""
        return self.root / "board"

    @property
    def encoder(self) -> Path:
        """The exported towers (`larp`)."""
        return self.root / "encoder"

    @property
    def vectors(self) -> Path:
        """Every track's LARP vectors (`larp`)."""
        return self.root / "vectors"

    @property
    def bcl(self) -> Path:
        """BCL's checkpoint (`bcl`)."""
        return self.root / "bcl"

    @property
    def bcl_saves(self) -> Path:
        """Where a BCL training that was broken off goes on from (`bcl`)."""
        return self.root / "bcl.saves"

    @property
    def matcher(self) -> Path:
        """The exported matcher (`bcl`)."""
        return self.root / "matcher"

    @property
    def matching(self) -> Path:
        """Every track's matching vector, vectors.npy f32 [N, d] (`bcl`)."""
        return self.root / "matching"

    @property
    def evaluation(self) -> Path:
        """The figures, figures.json (`evaluate`)."""
        return self.root / "evaluation"

    def leave(self, path: Path, fill: Callable[[Path], None], made_from: Mapping[str, str]) -> None:
        """Put the folder `path` that `fill` fills in place whole, with a note of what it was made from."""

        def noted(folder: Path) -> None:
            fill(folder)
            (folder / NOTE).write_text(json.dumps(dict(made_from)) + "\n", encoding="utf-8")

        replace_folder(path, noted)

    def has(self, path: Path, step: str) -> Path:
        """Return `path`, made by `step`. Raises WorkspaceError naming the step when it is not there."""
        if not path.exists():
            raise WorkspaceError(f"{path} is missing: run `python -m training {step}` with the same --work first.")
        return path

    def needs(self, path: Path, step: str, made_from: Mapping[str, str]) -> Path:
        """Return `path`, made by `step` from what is at hand now.

        Raises WorkspaceError naming the step when the folder is not there, or was made from another data set or other
        towers: its rows would belong to other tracks.
        """
        self.has(path, step)
        try:
            note = json.loads((path / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            note = None
        if note != dict(made_from):
            raise WorkspaceError(
                f"{path} was made from another data set or other towers: run `python -m training {step}` again.",
                code="step_outdated",
            )
        return path
