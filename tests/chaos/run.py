"""One run: a release, a ledger and its services; clients, kills, and an audit after every start."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from index.release.release import CURRENT, Release, activate
from service.ledger.ledger import TrackAdded
from service.ledger.opening import open_ledger
from service.settings import Settings
from tests.chaos.audit import Audit
from tests.chaos.clients import Clients
from tests.chaos.model import Model
from tests.chaos.plan import Kill, Plan, plan
from tests.chaos.processes import Broken, Fold, Server, Start, ask
from tests.service.service_redis import RedisServer

CLIENTS = 4
TOUCHED = 40
"""Tracks of the release that may be taken down or replaced."""
AWAY_S = 0.3
"""How long a killed Redis stays away."""
SWAP_S = 60.0


@dataclass
class Report:
    """What a run came to."""

    ledger: str
    plan: Plan
    tracks: int
    model: Model
    starts: list[Start] = field(default_factory=list)
    signals: int = 0
    folds: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    audits: list[float] = field(default_factory=list)
    live: int = 0
    compared: int = 0
    exact: int = 0
    looked: int = 0
    events: int = 0
    seconds: float = 0.0


class Run:
    """Everything that is started here is ended on leaving."""

    def __init__(
        self,
        folder: Path,
        release: Path,
        ledger: str,
        seed: int,
        operations: int,
        kills: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`release` is a releases folder, copied by hard links. `ledger` is "sqlite" or "redis" (two replicas).

        `say` is told how it goes.
        """
        self._say = say
        self._folder, self._shared = folder, ledger == "redis"
        self._releases = folder / "releases"
        self._base = _linked(release, self._releases)
        ids = _track_ids(self._releases / self._base)
        self._redis = RedisServer(folder / "redis") if self._shared else None
        self._ledger = self._redis.url if self._redis else folder / "ledger.sqlite"
        told = {
            "releases": self._releases,
            "ledger": self._ledger,
            "release_poll_s": 0.3,
            "decode_workers": 1,
            "search_threads": 2,
        }
        self._servers = [Server(number, folder, **told) for number in range(1 + self._shared)]
        self._plan = plan(seed, operations, kills, self._shared, ids[1 : 1 + TOUCHED], _start_s(len(ids)))
        self._model = Model(reads_lag=self._shared)
        for track_id in ids[1 : 1 + TOUCHED]:
            self._model.released(track_id)
        self._audit = Audit(self._plan, self._model, len(ids), ids[1 : 1 + TOUCHED], anchor=ids[0])
        self._clients = Clients(self._plan, self._model, self._servers, CLIENTS, redis_dies=self._shared)
        self._fold: Fold | None = None
        self.report = Report(ledger, self._plan, len(ids), self._model)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fold:
            self._fold.kill()
        for server in self._servers:
            server.kill()
        if self._redis:
            self._redis.kill()

    def run(self) -> Report:
        """Carry the plan out; ends early as soon as something is wrong. Raises Broken when a process fails."""
        began = time.monotonic()
        try:
            self._start(self._servers)
            self._settle(self._servers)
            self._clients.start()
            self._clients.gate.open()
            for kill in self._plan.kills:
                self._clients.wait_for(kill.at)
                time.sleep(kill.wait_s if "fold" not in kill.victims else 0.0)
                self._strike(kill)
                if self._model.wrong:
                    return self._done(began)
            self._clients.join()
            self._finish()
        except Broken as error:
            self._model.complain(f"process: {error}")
        return self._done(began)

    def _done(self, began: float) -> Report:
        report = self.report
        report.seconds, report.counts = time.monotonic() - began, dict(self._clients.counts)
        states = [self._model.states(i) for i in self._model.known()]
        report.live = sum(any(not isinstance(s, str) and s is not None for s in found) for found in states)
        report.compared, report.exact, report.looked = self._audit.compared, self._audit.exact, self._audit.looked
        return report

    def _strike(self, kill: Kill) -> None:
        """Kill, start again and look what is there, with clients at work until the last moment."""
        self._happened(f"SIGKILL for {kill.victims}")
        if "fold" in kill.victims:
            self._end_fold()
            self._fold = Fold(self._folder, releases=self._releases, ledger=self._ledger)
            time.sleep(kill.wait_s)
            if kill.victims == "fold":
                self._fold.kill()
                self.report.signals += 1
                self._settle_closed([])
                return
        everybody = kill.victims != "one" and kill.victims != "redis"
        victims = self._servers if everybody else [self._servers[kill.at % len(self._servers)]]
        if everybody:
            self._clients.gate.close()
        if self._redis and "redis" in kill.victims:
            self._redis.kill()
            self.report.signals += 1
            if self._fold:
                self._fold.may_fail = True  # it reads from there
        if kill.victims != "redis":
            self._kill(victims)
        if self._redis and "redis" in kill.victims:
            time.sleep(AWAY_S)
            self._redis.start()
        if kill.victims == "redis":
            for server in self._servers:
                server.ready()
        else:
            for moment in kill.starting:
                for server in victims:
                    server.start()
                time.sleep(moment)
                self._happened(f"SIGKILL {moment:.2f} s after the start")
                self._kill(victims)
            self._start(victims)
        self._settle_closed(victims)

    def _kill(self, victims: list[Server]) -> None:
        for server in victims:
            self._clients.up[server.number] = False
            server.kill()
            self.report.signals += 1
        for server in victims:
            self._clients.died(server.number)

    def _start(self, servers: list[Server]) -> None:
        for server in servers:
            server.start()
        for server in servers:
            start = server.ready()
            self.report.starts.append(start)
            self._clients.up[server.number] = True
            self._happened(f"service {server.number} is ready after {start.wall_s:.2f} s")

    def _happened(self, what: str) -> None:
        self._model.happened(what)
        self._say(f"{self._clients.begun:,} operations: {what}")

    def _settle_closed(self, restarted: list[Server]) -> None:
        """Let nobody in, look whether all is there, and let the clients go on."""
        self._clients.gate.close()
        self._clients.gate.wait_until_empty()
        self._settle(restarted or self._servers[:1])
        self._clients.gate.open()

    def _settle(self, servers: list[Server]) -> None:
        began = time.monotonic()
        touched = self._model.settle()
        doubtful = [track_id for track_id in sorted(touched) if len(self._model.states(track_id)) > 1]
        for server in servers:
            self._audit.everything(server, lagging=self._shared)
        self._audit.audiences(servers[0], doubtful[:10] + sorted(touched)[:5])
        self._audit.contents(servers[0], doubtful)
        self.report.audits.append(time.monotonic() - began)
        self._tidy()

    def _end_fold(self) -> None:
        if self._fold:
            self.report.folds.append(self._fold.wait())
            self._fold = None

    def _tidy(self) -> None:
        """Remove releases that nobody serves or makes any more: each is as large as the first."""
        if self._fold and self._fold.running:
            return
        self._end_fold()
        kept = {self._base, os.readlink(self._releases / CURRENT)}
        for path in self._releases.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in kept and not path.name.startswith("."):
                shutil.rmtree(path)

    def _finish(self) -> None:
        """The thorough audit: now, after a fold and a polite restart, and of the ledger itself."""
        self._clients.gate.wait_until_empty()
        self._settle(self._servers)
        self._audit.thoroughly(self._servers[0])
        self._end_fold()
        self._fold = Fold(self._folder, releases=self._releases, ledger=self._ledger)
        self._end_fold()
        self._await_release(os.readlink(self._releases / CURRENT))
        self._settle(self._servers)
        self._stop()
        self._start(self._servers)
        self._settle(self._servers)
        self._audit.thoroughly(self._servers[-1])
        self._stop()
        self._audit.ledger_holds(self._ledger_hashes())

    def _stop(self) -> None:
        for server in self._servers:
            server.stop()
            self._clients.died(server.number)

    def _await_release(self, release_id: str) -> None:
        deadline = time.monotonic() + SWAP_S
        for server in self._servers:
            while ask(server.port, "GET", "/readyz")[1].get("release") != release_id:
                if time.monotonic() > deadline:
                    raise Broken(f"service {server.number} does not serve {release_id}: {server.log()}")
                time.sleep(0.1)

    def _ledger_hashes(self) -> dict[str, str | None]:
        settings = Settings(ledger=self._ledger)
        with contextlib.closing(open_ledger(settings, read_only=not self._shared)) as ledger:
            self.report.events = len(ledger)
            events = [event for _, event in ledger.replay()]
        return {e.track_id: e.content_sha256 if isinstance(e, TrackAdded) else None for e in events}


def _linked(release: Path, root: Path) -> str:
    root.mkdir(parents=True)
    opened = Release.open(release, verify=False)
    shutil.copytree(opened.path, root / opened.id, copy_function=os.link)
    activate(root, opened.id)
    return opened.id


def _track_ids(release: Path) -> list[str]:
    return pq.read_table(release / "tracks.parquet", columns=["track_id"])["track_id"].to_pylist()


def _start_s(tracks: int) -> float:
    """About how long a start takes, in seconds: of interpreter, release and models."""
    return 1.5 + tracks / 100_000
