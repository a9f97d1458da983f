"""Clients: they ask the services what the plan says, and tell the model what was answered."""

import json
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from tests.chaos import sounds
from tests.chaos.model import Event, Model, shows
from tests.chaos.plan import Operation, Plan, Upload
from tests.chaos.processes import Server, ask

BOUNDARY = "debut-chaos-boundary"
AWAY = ("ledger_unwritable", "not_ready")
"""What a service may answer while its Redis is away."""
PAUSE_S = 0.05


class Gate:
    """Open: requests are sent. Closed: no more are, and whoever closed it may wait for the last to be over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self._within = False, 0

    @contextmanager
    def passed(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._open)
            self._within += 1
        try:
            yield
        finally:
            with self._changed:
                self._within -= 1
                self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False

    def wait_until_empty(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._within == 0)


class Clients:
    """Threads that take the plan's operations one after the other."""

    def __init__(self, plan: Plan, model: Model, servers: list[Server], threads: int, redis_dies: bool) -> None:
        self.model, self.gate = model, Gate()
        self._servers, self._redis_dies = servers, redis_dies
        self.up = [True] * len(servers)
        """Which servers are asked; the others are being restarted."""
        self.counts: Counter[str] = Counter()
        self.begun = 0
        self._moved = threading.Condition()
        self._operations: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        for operation in plan.operations:
            self._operations.put(operation)
        self._total = len(plan.operations)
        self._answers: dict[tuple[int, str | None], Any] = {}
        self._pool = ThreadPoolExecutor(2 * threads)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def wait_for(self, operation: int) -> None:
        """Return when this operation was begun, or all are over."""
        with self._moved:
            self._moved.wait_for(lambda: self.begun > operation or self.begun == self._total)

    def died(self, server: int) -> None:
        """A service is dead: what it had not answered it never will, and the answers it kept are gone."""
        self.model.died(server)
        self._answers = {key: told for key, told in self._answers.items() if key[0] != server}

    def _work(self) -> None:
        while True:
            try:
                operation = self._operations.get_nowait()
            except queue.Empty:
                return
            with self._moved:
                self.begun += 1
                self._moved.notify_all()
            try:
                for turn in range(operation.times):
                    self._carry_out(operation, operation.number + turn)
            except Exception as error:
                self.model.complain(
                    f"{operation.track_id}: operation {operation.number}: {type(error).__name__} {error}"
                )

    def _carry_out(self, operation: Operation, turn: int) -> None:
        """Until somebody heard it."""
        heard = False
        while not heard:
            with self.gate.passed():
                if operation.twin:
                    both = [self._pool.submit(self._ask, operation, turn + other) for other in range(2)]
                    answers = [one.result() for one in both]
                    heard = any(answers)
                else:
                    heard = self._ask(operation, turn)
            if not heard:
                time.sleep(PAUSE_S)

    def _server(self, turn: int) -> Server:
        up = [server for server in self._servers if self.up[server.number]] or self._servers
        return up[turn % len(up)]

    def _ask(self, operation: Operation, turn: int) -> bool:
        server = self._server(turn)
        if operation.kind in ("search", "continue", "audience"):
            return self._read(operation, server)
        if operation.kind == "get":
            return self._look(operation, server)
        if operation.kind == "delete":
            return self._write(operation, server, "drop")
        return self._write(operation, server, "put")

    def _event(self, operation: Operation, server: Server, asked: str) -> Event:
        how = [name for name in ("form", "later", "twin") if getattr(operation, name)]
        note = f"operation {operation.number} ({' '.join((operation.kind, *how, operation.key or '')).strip()})"
        event = Event(operation.track_id, asked, server.number, note, operation.upload, operation.replace)
        return self.model.ask(event)

    def _write(self, operation: Operation, server: Server, asked: str) -> bool:
        event = self._event(operation, server, asked)
        try:
            status, told = self._sent(operation, server)
        except ConnectionRefusedError:
            self.model.withdrawn(event)
            return False
        except OSError:
            self.counts["not answered"] += 1
            self.model.unanswered(event)
            return True
        self._note(operation, event, status, told)
        return True

    def _sent(self, operation: Operation, server: Server) -> tuple[int, Any]:
        if operation.kind == "delete":
            return ask(server.port, "DELETE", f"/tracks/{quote(operation.track_id)}")
        status, told = upload(server, operation)
        if status != 202:
            return status, told
        return _awaited(server, told["id"])

    def _note(self, operation: Operation, event: Event, status: int, told: Any) -> None:
        code = told.get("code")
        self.counts[f"{status} {code}" if code else str(status)] += 1
        if told.pop("replayed", False):
            before = self._answers.get((event.server, operation.key))
            if before is not None and told != before:
                self.model.complain(f"{event.track_id}: {operation.key} has another answer than before: {told}")
            self.model.withdrawn(event)
        elif status in (200, 201) and event.asked == "put":
            if operation.key:
                self._answers[event.server, operation.key] = told
            self._check_receipt(event, status, told)
            self.model.answered(event, told["outcome"])
        elif status == 200:
            self.model.answered(event, "removed")
        elif code in ("track_exists", "unknown_track"):
            self.model.answered(event, code)
        elif code in AWAY and self._redis_dies:
            self.model.refused(event, code)
            time.sleep(PAUSE_S)
        else:
            self.model.refused(event, f"{status} {told}")
            self.model.complain(f"{event.track_id}: {event}")

    def _check_receipt(self, event: Event, status: int, told: dict[str, Any]) -> None:
        sent = event.upload
        assert sent is not None
        right = (told["outcome"] == "unchanged") == (status == 200) and told["content_sha256"] == sounds.sha256(
            sent.sound
        )
        if not (right and shows(sent, told["track"], event.track_id)):
            self.model.complain(f"{event.track_id}: was acknowledged as something else: {told}")

    def _look(self, operation: Operation, server: Server) -> bool:
        event = self._event(operation, server, "look")
        try:
            status, told = ask(server.port, "GET", f"/tracks/{quote(operation.track_id)}")
        except OSError:
            self.model.withdrawn(event)
            return True
        self.counts[str(status)] += 1
        if status in (200, 404):
            self.model.answered(event, "seen", told if status == 200 else None)
        else:
            self.model.complain(f"{event.track_id}: {event}: {status} {told}")
        return True

    def _read(self, operation: Operation, server: Server) -> bool:
        try:
            status, told = _question(operation, server)
        except OSError:
            return True
        code = told.get("code")
        self.counts[f"{status} {code}" if code else str(status)] += 1
        allowed = {"continue": "unknown_seeds", "audience": "unknown_track"}.get(operation.kind)
        if status != 200 and code != allowed:
            self.model.complain(f"{operation.track_id}: {operation.kind} was answered with {status} {told}")
        found = [track["track_id"] for track in told.get("tracks", ())]
        if len(found) != len(set(found)):
            self.model.complain(f"{operation.track_id}: {operation.kind} names a track twice: {found}")
        if set(found) & set(operation.seeds):
            self.model.complain(f"{operation.track_id}: a continuation repeats its seeds {operation.seeds}")
        return True


def _awaited(server: Server, ingest_id: str) -> tuple[int, Any]:
    """What became of an upload that was answered with 202, as it would have been answered without."""
    while True:
        try:
            status, job = ask(server.port, "GET", f"/ingests/{ingest_id}")
        except ConnectionRefusedError as error:  # the upload itself was heard
            raise ConnectionResetError(str(error)) from None
        if job.get("state") == "done":
            return (200 if job["result"]["outcome"] == "unchanged" else 201), job["result"]
        if job.get("state") not in ("queued", "running"):
            return (job["problem"]["status"], job["problem"]) if job.get("problem") else (status, job)
        time.sleep(0.02)


def _question(operation: Operation, server: Server) -> tuple[int, Any]:
    if operation.kind == "search":
        return ask(server.port, "GET", f"/tracks?{urlencode({'q': operation.track_id, 'limit': 200})}")
    if operation.kind == "audience":
        return ask(server.port, "GET", f"/audience/{quote(operation.track_id)}?limit=5")
    asked = {"seeds": list(dict.fromkeys(operation.seeds)), "k": random.Random(operation.number).choice((5, 100))}
    return post(server, "/continue-playlist", asked)


def post(server: Server, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
    """Send JSON."""
    return ask(server.port, "POST", path, json.dumps(asked).encode(), {"Content-Type": "application/json"})


def upload(server: Server, operation: Operation) -> tuple[int, Any]:
    """Send an upload in the form that the operation says."""
    sent = operation.upload
    assert sent is not None
    headers = {"Content-Type": sounds.kind(sent.sound)}
    if operation.key:
        headers["Idempotency-Key"] = operation.key
    if operation.later:
        headers["Prefer"] = "respond-async"
    replace = {"replace": "true"} if operation.replace else {}
    if not operation.form:
        query = urlencode(_as_query(sent) | replace, doseq=True)
        return ask(server.port, "POST", f"/ingest-track?{query}", sounds.recording(sent.sound), headers)
    parts = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n\r\n'
        f'{json.dumps(sent.metadata)}\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="audio"; '
        f'filename="track"\r\nContent-Type: {sounds.kind(sent.sound)}\r\n\r\n'
    )
    body = parts.encode() + sounds.recording(sent.sound) + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
    return ask(server.port, "POST", f"/ingest-track?{urlencode(replace)}", body, headers)


def _as_query(sent: Upload) -> dict[str, Any]:
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in sent.metadata.items()}
