"""CAT among any number of listeners (python -m benchmarks.audience --listeners 1000000): the whole question, from a
track's matching vector to the ranked listeners, and the memory of a process that answers it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks import audience_world
from benchmarks.folder import Folder
from benchmarks.timing import milliseconds
from index.audience.cat import Audience, AudienceResult
from index.audience.reach import EVERYBODY
from index.collection import Collection

LISTENERS, TRACKS, DIMS = 100_000, 100_000, 256
QUESTIONS, SLOW, COMPARED = 200, 20, 100
"""Different tracks that are asked for; of those, how many also of everybody, and how many the answers of both are
compared for."""
BAR = 0.3
Row = tuple[str, str]
Ask = Callable[..., AudienceResult]


def run(listeners: int = LISTENERS, diffuse: bool = False) -> list[Row]:
    """Write a world of so many listeners, and serve it in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        world = audience_world.make(listeners, TRACKS, DIMS, diffuse=diffuse)
        audience_world.write(world, Path(directory))
        del world
        wrote = time.perf_counter() - began
        listens = len(np.load(Path(directory) / "audience" / "rows.npy", mmap_mode="r"))
        command = [sys.executable, "-m", "benchmarks.audience", "--serve", directory]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return [
        (f"{listeners} listeners of {TRACKS} tracks, {listens} pairs: written", f"{wrote:.0f} s"),
        *json.loads(told),
    ]


def serve(folder: Path) -> list[Row]:
    """Answer questions from the release in `folder`, and say how quickly and in how much memory."""
    began = time.perf_counter()
    audience, collection = Audience.open(Folder(folder)), Collection.open(Folder(folder))
    rows: list[Row] = [("opened", f"{time.perf_counter() - began:.2f} s, {_memory()}")]
    view = collection.view()

    def ask(row: int, **wishes) -> AudienceResult:
        return audience.target(view.matching.vectors([row])[0], view, row=row, **wishes)

    for row in range(QUESTIONS):
        ask(row)
    rows.append((f"memory after {QUESTIONS} different questions", _memory()))
    quick: dict[str, Ask] = {
        "number of clusters chosen": lambda row: ask(row),
        "5 clusters": lambda row: ask(row, clusters=5),
        "5 clusters, 10,000 listeners": lambda row: ask(row, clusters=5, limit=10_000),
    }
    slow: dict[str, Ask] = {
        f"5 clusters, scores from {BAR} among everybody": lambda row: ask(row, clusters=5, min_score=BAR),
        "5 clusters, everybody scored": lambda row: ask(row, clusters=5, min_score=0.0),
    }
    taken = _taken(quick, range(QUESTIONS, 2 * QUESTIONS)) | _taken(slow, range(QUESTIONS, QUESTIONS + SLOW))
    everybody = np.median(taken["5 clusters, everybody scored"][0])
    for name, (wall, cpu) in taken.items():
        p50, p95 = np.quantile(wall, (0.5, 0.95))
        times = f"p50 {milliseconds(p50)}, p95 {milliseconds(p95)}, CPU {milliseconds(np.median(cpu))}"
        rows.append((name, f"{times}; everybody takes {everybody / p50:.1f} times as long"))
    rows.append(("memory in the end", _memory()))
    if len(audience) > EVERYBODY:
        rows += [(f"Recall@{limit} of the shortcut, {COMPARED} tracks", _recall(ask, limit)) for limit in (100, 1_000)]
    return rows


def _taken(calls: Mapping[str, Ask], questions: range) -> dict[str, tuple[list[float], list[float]]]:
    """Ask all `questions` in all ways, in turns; return wall and processor seconds of each."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for row in questions:
        for name, call in calls.items():
            began, used = time.perf_counter(), time.process_time()
            call(row)
            taken[name][0].append(time.perf_counter() - began)
            taken[name][1].append(time.process_time() - used)
    return taken


def _recall(ask: Ask, limit: int) -> str:
    """Compare the listeners named by the shortcut with those named once all are scored."""
    shares = []
    for row in range(COMPARED):
        answers = (ask(row, clusters=5, limit=limit, min_score=bar).listeners for bar in (None, 0.0))
        short, whole = ({one.listener_id for one in listeners} for listeners in answers)
        shares.append(len(short & whole) / len(whole))
    return f"{np.mean(shares):.4f}, least {min(shares):.2f}"


def _memory() -> str:
    """Return what this process holds (Linux): resident, and how much of it is not mapped from files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    held, own, mapped = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "RssFile"))
    return f"{held:.0f} MiB resident: {own:.0f} its own, {mapped:.0f} mapped from files"


def main() -> int:
    """Run alone, for any number of listeners."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listeners", type=int, default=LISTENERS)
    parser.add_argument("--diffuse", action="store_true", help="tastes without order: the hardest for the shortcut")
    parser.add_argument("--serve", type=Path, help="a world that is written already: answer from it, print JSON")
    wishes = parser.parse_args()
    if wishes.serve is not None:
        print(json.dumps(serve(wishes.serve)))
        return 0
    for what, figure in run(wishes.listeners, wishes.diffuse):
        print(f"  {what:<68}  {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
