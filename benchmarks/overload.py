"""Ten times more than the service can do, for 20 s: what it still does, whom it refuses, and what it remembers.

The service is a real process with towers of full size (benchmarks.release), every setting as it comes. What it sustains
is measured first: so many clients that it has no pause, each waiting for its answer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.ingest import CATALOGUE, _encode, _free_port
from benchmarks.load import Answers, Request, as_answered, at_rate, request
from benchmarks.timing import milliseconds
from demo.process import Service

SUSTAINED_S, OVERLOAD_S, TIMES, CONNECTIONS = 10.0, 20.0, 10, 400
CLIENTS = {"ingest": 4, "continue": 4, "audience": 2}
Row = tuple[str, str]


def run() -> list[Row]:
    """Build the release, serve it, load it, overload it, and look what is there."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.release", str(root / "releases"), str(CATALOGUE), "full"],
            check=True,
            timeout=600,
        )
        with Service(root / "releases", root / "ledger.sqlite", _free_port()) as service:
            return _measured(service.url, service.pid)


def _measured(url: str, pid: int) -> list[Row]:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    as_answered(address, _kinds("warm"), CLIENTS, 3.0)
    calm = as_answered(address, _kinds("calm"), CLIENTS, SUSTAINED_S)
    rates = {kind: len(answers.accepted) / SUSTAINED_S for kind, answers in calm.items()}
    before, busy, began = resident(pid), processor_seconds(pid), time.perf_counter()
    crowded = at_rate(address, _kinds("crowd"), {k: TIMES * rate for k, rate in rates.items()}, OVERLOAD_S, CONNECTIONS)
    seconds, busy, after = time.perf_counter() - began, processor_seconds(pid) - busy, resident(pid)
    rows: list[Row] = []
    for kind, answers in crowded.items():
        rows += _kind_rows(kind, calm[kind], answers, rates[kind], seconds)
    ids = {f"{name}-{n}" for name, seen in (("calm", calm), ("crowd", crowded)) for n in seen["ingest"].accepted}
    lost = [track_id for track_id in sorted(ids) if not _found(address, track_id)]
    began = time.perf_counter()
    assert _found(address, "t0")
    return [
        *rows,
        ("processor time that the service had", f"{busy:.0f} s of {seconds:.0f} s"),
        ("memory, all processes, before / after", f"{before / 2**20:.0f} MiB / {after / 2**20:.0f} MiB"),
        ("acknowledged, and there afterwards", f"{len(ids)}, {len(ids) - len(lost)}"),
        ("a look-up when all is over", milliseconds(time.perf_counter() - began)),
    ]


def _kind_rows(kind: str, calm: Answers, crowded: Answers, rate: float, seconds: float) -> list[Row]:
    done, refused = len(crowded.accepted) / seconds, crowded.statuses[429] + crowded.statuses[503]
    p50, p99 = (milliseconds(crowded.percentile(of)) for of in (50, 99))
    offered = (sum(crowded.statuses.values()) + crowded.unsent) / OVERLOAD_S
    return [
        (f"{kind}: sustained", f"{rate:.1f}/s, p99 {milliseconds(calm.percentile(99))}"),
        (f"{kind}: {offered:.0f}/s offered", f"{done:.1f}/s done ({done / rate:.0%} of it), p50 {p50}, p99 {p99}"),
        (
            f"{kind}: refused with 429 or 503",
            f"{refused}, {crowded.hurried} without Retry-After; {crowded.unsent} not sent (all connections busy); "
            f"other answers: {crowded.others or 'none'}",
        ),
    ]


def _kinds(name: str) -> dict[str, Request]:
    """Uploads of tracks `name`-0, -1, ..., playlists of 20 seeds, audiences of 100."""
    audio = _encode(15, "ogg", "libopus", 48_000)
    seeds = np.random.default_rng(0).integers(0, CATALOGUE, (1000, 20))

    def ingest(number: int) -> bytes:
        return request("POST", f"/ingest-track?track_id={name}-{number}&title=A+song", audio, "audio/ogg")

    def continued(number: int) -> bytes:
        body = {"seeds": [f"t{row}" for row in seeds[number % 1000]], "k": 100}
        return request("POST", "/continue-playlist", json.dumps(body).encode(), "application/json")

    def audience(number: int) -> bytes:
        return request("GET", f"/audience/t{number % CATALOGUE}?limit=100")

    return {"ingest": ingest, "continue": continued, "audience": audience}


def _found(address: tuple[str, int], track_id: str) -> bool:
    connection = HTTPConnection(*address, timeout=30)
    try:
        connection.request("GET", f"/tracks/{track_id}")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def resident(pid: int) -> int:
    """Return the bytes of memory of a process and its children."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(resident(child) for child in _children(pid))


def processor_seconds(pid: int) -> float:
    """Return how long a process and its children have run: without that, other work on the machine looks like ours."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
