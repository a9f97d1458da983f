"""python -m demo: train the demo release if there is none, serve it, and bring a new song to its audience."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import httpx

from demo.process import Service, ServiceError
from demo.tour import TourError, tour
from index.release.release import Release, ReleaseError

DATA = Path(__file__).parent / "data"


def main() -> int:
    """Run the demo; return the exit code."""
    arguments = _arguments()
    releases = arguments.var / "releases"
    signal.signal(signal.SIGTERM, _stop)  # or the service would be left behind
    service = Service(releases, arguments.var / "ledger.sqlite", arguments.port)
    try:
        service.refuse_busy_port()  # before minutes of training
        release = _release(releases, arguments.var / "work")
        if release is None:
            return 1
        with service:
            tour(service.url, DATA, release)
            if not arguments.once:
                print(f"Serving on {service.url} until Ctrl-C. Try the curl lines above.", flush=True)
                service.wait()
    except (TourError, ServiceError, ReleaseError, httpx.HTTPError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0 if not arguments.once else 130
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return port


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--port", type=_port, default=8000, help="port of the service on loopback (default 8000)")
    parser.add_argument("--once", action="store_true", help="end after the tour: exit code 0 if all of it worked")
    parser.add_argument("--var", type=Path, default=Path("var/demo"), help="where release, work and ledger go")
    return parser.parse_args()


def _release(releases: Path, work: Path) -> Release | None:
    try:
        return Release.open(releases)
    except ReleaseError as error:
        if error.code != "release_missing":
            raise
    print("No demo release yet: training one (one to three minutes on two cores).\n", flush=True)
    command = [sys.executable, "-m", "training", "demo", "--work", str(work), "--releases", str(releases)]
    if subprocess.run(command, check=False).returncode:
        return None  # the trainer has said why
    return Release.open(releases)


if __name__ == "__main__":
    sys.exit(main())
