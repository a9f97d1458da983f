"""The README's calls are run as they stand; the answers it shows have the shape of the real ones."""

import json
import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_run import SmallRun

from demo.process import Service

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CALLS = re.findall(r"```bash\n(.*?)```\s+```json\n(.*?)```", README, re.DOTALL)
UPLOADED = "lc5098725"


def shape(value: Any) -> Any:
    """Keys, of lists those of the first entry; plain values are not compared."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


def test_the_three_calls(small_run: SmallRun, tmp_path: Path) -> None:
    assert len(CALLS) == 3
    row = small_run.pipeline.dataset.row_of[UPLOADED]
    small_run.pipeline.publish(tmp_path / "releases", [row])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Service(tmp_path / "releases", tmp_path / "ledger.sqlite", port):
        for command, shown in CALLS:
            words = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("\\\n", " "))
            done = subprocess.run(
                [words[0], "--silent", "--show-error", "--fail-with-body", *words[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert shape(json.loads(done.stdout)) == shape(json.loads(shown))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_make_verbs_exist() -> None:
    verbs = set(re.findall(r"make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    verbs -= {"and"}
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "serve", "lint", "bench"} <= verbs
    assert verbs <= known
