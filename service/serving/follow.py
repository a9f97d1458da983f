"""What other replicas take in and take down, applied here too: a thread that follows the ledger they share."""

import random
import threading

import structlog

from index.errors import DebutError
from service.ledger.ledger import SharedLedger
from service.serving.serving import Current

WAIT_S = 0.5
"""Longest wait for an event before looking whether to stop, in seconds. An event ends it at once."""
PAUSE_S = (0.05, 1.0)
"""Shortest and longest pause after a failure, in seconds: each is up to twice the one before."""

log = structlog.get_logger("debut.follow")


class Follower:
    """Applies the events of a shared ledger to what is served, in their order, once each (see `Current.reached`).

    While the ledger is away, reads go on from what is known, and what was missed is applied when it is back.
    """

    def __init__(self, current: Current, ledger: SharedLedger) -> None:
        self._current, self._ledger = current, ledger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when nothing more is applied."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10 * WAIT_S)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._look()
            except DebutError as error:
                if not failures:
                    log.warning("the ledger cannot be followed", reason=error.detail)
            except Exception:
                if not failures:
                    log.exception("the ledger cannot be followed")
            else:
                if failures:
                    log.info("the ledger is followed again", failures=failures)
                failures = 0
                continue
            failures += 1
            shortest, longest = PAUSE_S
            self._stopping.wait(random.uniform(0.5, 1) * min(shortest * 2 ** min(failures, 30), longest))

    def _look(self) -> None:
        if self._ledger.wait(self._current.reached, WAIT_S):
            self._current.caught_up(self._ledger)
