"""Whether the ledger takes writes, asked at most once a second however many want to know."""

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor

from index.errors import DebutError
from service.ledger.ledger import Ledger, LedgerError

FRESH_S = 1.0
"""How long an answer serves, in seconds."""

PATIENCE_S = 2.0
"""Longest wait for an answer, in seconds: a probe that waits longer takes the silence for one."""


class Probe:
    """A real write transaction of the ledger's, for whoever asks within a second of it. One event loop may use it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="probe")  # never behind anything else
        self._asked: Future[DebutError | None] | None = None
        self._began = self._stale = 0.0

    async def check(self) -> None:
        """Raise LedgerError when the ledger cannot be written, or does not say within PATIENCE_S."""
        if self._asked is None or (self._asked.done() and time.monotonic() >= self._stale):
            self._began = time.monotonic()
            self._asked = self._pool.submit(self._ask)
        left = max(0.0, self._began + PATIENCE_S - time.monotonic())
        done, _ = await asyncio.wait([asyncio.wrap_future(self._asked)], timeout=left)
        if not done:
            raise LedgerError(f"it has not answered for {PATIENCE_S:g} s: see to its disk, or to its Redis.")
        if (error := self._asked.result()) is not None:
            raise LedgerError(error.detail, code=error.code)

    def _ask(self) -> DebutError | None:
        try:
            self._ledger.check()
        except DebutError as error:
            return error
        finally:
            self._stale = time.monotonic() + FRESH_S
        return None

    def close(self) -> None:
        """Wait for a transaction under way; nobody may ask any more."""
        self._pool.shutdown()
