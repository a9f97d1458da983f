"""A store that keeps silent is waited for by one caller at a time; the others are told at once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.ledger.ledger import LedgerError

SLOW_S = 1.0
"""A failure that took longer is silence, in seconds; a quick one (nobody listens, no memory) holds nobody up."""

PAUSE_S = 1.0
"""How long after a failure the next caller waits anew, in seconds."""


class Silence:
    """Whether a store answers at all. Without this, every caller would wait as long as the first, one after the other.

    Safe to use from several threads. A circuit breaker (Nygard, *Release It!*, 2007) that opens for silence alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: LedgerError | None = None  # what the last one who waited in vain was told; None: it answers
        self._waiting = False
        self._again = 0.0

    @contextmanager
    def endured(self, patient: bool) -> Iterator[None]:
        """Ask within this. Raises LedgerError while the store is silent, unless it is this caller's turn to wait.

        `patient` callers come before others: they have nobody who waits for them.
        """
        started = time.monotonic()
        mine = self._turn(patient, started)
        try:
            yield
        except LedgerError as error:
            ended = time.monotonic()
            self._end(mine, error if ended - started > SLOW_S else None, ended)
            raise
        except BaseException:
            self._end(mine, None, 0.0)
            raise
        self._end(mine, None, 0.0)

    @property
    def lasts(self) -> bool:
        """Whether the store is silent, as far as is known."""
        return self._heard is not None

    def _turn(self, patient: bool, now: float) -> bool:
        """Return whether this caller is the one who waits."""
        with self._lock:
            if self._heard is None:
                return False
            if self._waiting or not (patient or now >= self._again):
                raise LedgerError(self._heard.detail, code=self._heard.code)
            self._waiting = True
            return True

    def _end(self, mine: bool, error: LedgerError | None, now: float) -> None:
        with self._lock:
            self._heard, self._again = error, now + PAUSE_S
            if mine:
                self._waiting = False
