"""Whether the ledger takes writes, asked at most once a second however many want to know."""

import asyncio
import threading
import time
from concurrent.futures import Future, wait

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
        self._asked: Future[DebutError | None] | None = None
        self._awaited: asyncio.Future[DebutError | None] | None = None
        """The loop's end of `_asked`: one, whoever waits, for a disk may hang for days and every end of it stays."""
        self._began = self._stale = 0.0

    async def check(self) -> None:
        """Raise LedgerError when the ledger cannot be written, or does not say within PATIENCE_S."""
        if self._awaited is None or (self._awaited.done() and time.monotonic() >= self._stale):
            self._awaited = self._ask()
        awaited, left = self._awaited, max(0.0, self._began + PATIENCE_S - time.monotonic())
        done, _ = await asyncio.wait([awaited], timeout=left)
        if not done:
            raise LedgerError(f"it has not answered for {PATIENCE_S:g} s: see to its disk, or to its Redis.")
        if (error := awaited.result()) is not None:
            raise LedgerError(error.detail, code=error.code)

    def _ask(self) -> "asyncio.Future[DebutError | None]":
        """Ask in a thread that no exit waits for: nothing can end a write that hangs."""
        asked: Future[DebutError | None] = Future()
        try:
            threading.Thread(target=self._answer, args=(asked,), name="probe", daemon=True).start()
        except RuntimeError as error:
            raise LedgerError(f"there is no thread to ask it ({error}): raise the limit of threads.") from None
        self._asked, self._began = asked, time.monotonic()
        return asyncio.wrap_future(asked)

    def _answer(self, asked: "Future[DebutError | None]") -> None:
        answer: BaseException | None = None
        try:
            self._ledger.check()
        except BaseException as error:
            answer = error
        self._stale = time.monotonic() + FRESH_S
        if answer is None or isinstance(answer, DebutError):
            asked.set_result(answer)
        else:
            asked.set_exception(answer)

    def close(self) -> None:
        """Wait for a transaction under way, for PATIENCE_S at most; nobody may ask any more."""
        if self._asked is not None:
            wait([self._asked], PATIENCE_S)
