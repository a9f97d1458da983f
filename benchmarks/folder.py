"""A folder that serves as a release, without a manifest."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folder:
    """A release without its manifest."""

    path: Path
    id: str = "benchmark"

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        return self.path / name
