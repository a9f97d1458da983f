"""python docker/requirements.py [EXTRA...]: the packages that pyproject.toml asks for, one a line, for pip -r."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = sys.argv[1:]
# FAISS for GPUs is the same module under another name: one of them has to go.
wanted = [line for line in project["dependencies"] if not ("gpu" in extras and line.startswith("faiss-cpu"))]
for extra in extras:
    wanted += project["optional-dependencies"][extra]
sys.stdout.write("\n".join(wanted) + "\n")
