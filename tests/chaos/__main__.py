"""python -m tests.chaos: random operations while services are killed; what was acknowledged is there, and there once.

The plan of operations and kills follows from the seed, which is printed; how they fall in time does not. Exit code 1
and the history of the tracks concerned when anything is wrong.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import failures, summary
from tests.chaos.run import Run
from tests.service.service_process import ROOT

RELEASES = ROOT / "var" / "chaos"


def main() -> int:
    """Run what the arguments say; return the exit code."""
    arguments = _arguments()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    release = made_release(arguments.tracks, arguments.towers)
    kinds = ("sqlite", "redis") if arguments.ledger == "both" else (arguments.ledger,)
    wrong = False
    for kind in kinds:
        with (
            tempfile.TemporaryDirectory(dir=RELEASES) as folder,
            Run(Path(folder), release, kind, seed, arguments.operations, arguments.kills, _say) as run,
        ):
            report = run.run()
        print(summary(report), flush=True)
        if report.model.wrong:
            wrong = True
            print(failures(report), flush=True)
    return int(wrong)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the plan; without it one is drawn")
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ledger", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--tracks", type=int, default=100_000, help="tracks of the release underneath")
    parser.add_argument("--towers", choices=("demo", "full"), default="demo", help="size of the release's encoders")
    return parser.parse_args()


def made_release(tracks: int, towers: str) -> Path:
    """A releases folder, made the first time it is asked for."""
    root = RELEASES / f"{tracks}-{towers}"
    if not (root / "current").exists():
        command = [sys.executable, "-m", "benchmarks.release", str(root), str(tracks), towers]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=True, stdout=sys.stderr)
    return root


if __name__ == "__main__":
    sys.exit(main())
