"""The two files that a report is: README.md and figures.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.folders import replace_file


def finish(folder: Path, text: Sequence[str], numbers: Mapping[str, Any]) -> Path:
    """Write figures.json and, last, README.md of the blocks `text`, each whole or not at all; return the latter."""
    replace_file(folder / "figures.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    return replace_file(folder / "README.md", ("\n\n".join(text) + "\n").encode())
