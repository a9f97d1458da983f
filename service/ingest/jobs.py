"""Ingests that nobody waits for (Prefer: respond-async): taken over from their request, seen through, and looked up."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Literal

import structlog

from index.errors import DebutError
from service.http.problems import Problem, document, out_of_memory, problem_of
from service.metrics import Metrics, Stopwatch

KEPT = 1000
"""Ingests that are over and can still be looked up, in memory: the oldest goes first."""

State = Literal["queued", "running", "done", "failed"]
log = structlog.get_logger("debut.jobs")


class Job:
    """One ingest. `result` is schemas.IngestResponse as plain data, once it is done; `problem` says why it failed."""

    def __init__(self, track_id: str, watch: Stopwatch) -> None:
        self.id = uuid.uuid4().hex
        self.track_id, self._watch = track_id, watch
        self.created = _now()
        self.ended: str | None = None
        self.result: dict[str, Any] | None = None
        self.problem: Problem | None = None

    @property
    def state(self) -> State:
        """Where it is. It waits for a thread while no stage after `receive` has begun."""
        if self.result is not None:
            return "done"
        if self.problem is not None:
            return "failed"
        return "queued" if self._watch.current in (None, "receive") else "running"

    @property
    def document(self) -> dict[str, Any]:
        """schemas.IngestStatus as plain data."""
        running = self.state == "running"
        return {
            "id": self.id,
            "state": self.state,
            "stage": self._watch.current if running else None,
            "track_id": self.track_id,
            "created": self.created,
            "ended": self.ended,
            "result": self.result,
            "problem": self.problem and document(self.problem, self.id),
        }


class Jobs:
    """What was accepted with a 202. One event loop may use it.

    Each job holds its place in the queue of uploads until it is over, so there are never more than that. All of this
    is in memory: a 202 is a promise to try, and nothing of it is left after a crash. Once a job is done its track is
    in the ledger, as after a 201.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._closing = False
        metrics.ingest_jobs.set_function(lambda: len(self._running))

    def start(self, job: Job, work: Callable[[], Awaitable[dict[str, Any]]], held: AsyncExitStack) -> None:
        """Begin to work; what is `held` (the upload, its place in the queue) is taken over, and let go of at the end.

        Raises Problem `not_ready` while the service is being stopped.
        """
        if self._closing:
            raise Problem("not_ready", "The service is being stopped.")
        self._jobs[job.id] = job
        task = asyncio.get_running_loop().create_task(self._run(job, work, held.pop_all()))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._forget()

    def find(self, job_id: str) -> Job | None:
        """Return a job; None when there was none, or it is forgotten."""
        return self._jobs.get(job_id)

    async def _run(self, job: Job, work: Callable[[], Awaitable[dict[str, Any]]], held: AsyncExitStack) -> None:
        async with held:
            try:
                job.result = await work()
            except Problem as problem:
                job.problem = problem
            except DebutError as error:
                job.problem = _problem_of(error)
            except MemoryError:
                log.error("out of memory", ingest=job.id)
                job.problem = out_of_memory()
            except asyncio.CancelledError:
                job.problem = Problem("not_ready", "The service was stopped; send the track again.")
                raise
            except Exception:
                log.exception("ingest failed", ingest=job.id)
                job.problem = Problem(
                    "internal", "The track could not be taken in; the log has it by this ingest's id."
                )
            finally:
                job.ended = _now()

    def _forget(self) -> None:
        over = [job_id for job_id, job in self._jobs.items() if job.ended is not None]
        for job_id in over[: max(0, len(over) - KEPT)]:
            del self._jobs[job_id]

    async def close(self, seconds: float) -> None:
        """Take no more, and give what is being worked on `seconds` to come to its end."""
        self._closing = True
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                log.warning("ingests were given up at shutdown", count=len(late))
                await asyncio.wait(late)


def _problem_of(error: DebutError) -> Problem:
    try:
        return problem_of(error)
    except DebutError:
        log.exception("ingest failed")
        return Problem("internal", "The track could not be taken in; the log has it.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
