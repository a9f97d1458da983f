"""Where the steps of one training leave their results for the next: a folder, one sub-folder a step."""

from dataclasses import dataclass
from pathlib import Path

from index.errors import DebutError


class WorkspaceError(DebutError):
    """A step was asked for before the one it builds on."""

    code = "step_missing"


@dataclass(frozen=True)
class Workspace:
    """The folders under `root`: clips, larp, encoder, vectors, bcl, matcher; and evaluation.json."""

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
    def matcher(self) -> Path:
        """The exported matcher (`bcl`)."""
        return self.root / "matcher"

    @property
    def matching(self) -> Path:
        """Every track's BCL vector, f32 [N, 128] (`bcl`)."""
        return self.root / "matching.npy"

    @property
    def evaluation(self) -> Path:
        """The figures (`evaluate`)."""
        return self.root / "evaluation.json"

    def needs(self, path: Path, step: str) -> Path:
        """Return `path`; raises WorkspaceError naming the `step` that makes it when it is not there."""
        if not path.exists():
            raise WorkspaceError(f"{path} is missing: run `python -m training {step}` with the same --work first.")
        return path
