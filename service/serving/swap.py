"""Another release while serving: noticed, loaded beside the old one, brought up to date, and served in its place.

The old release serves until one assignment, and stays on disk: pointing `current` back to it is the way back.
"""

import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import structlog

from index.errors import DebutError
from index.release.release import Pointer, Release, pointer
from service.ledger.ledger import Ledger, LedgerError
from service.metrics import Metrics
from service.serving.serving import Current, Serving
from service.settings import Settings

CATCHING_UP = 3
"""Passes over what came in while the last one ran, before uploads are held for the very last events."""

log = structlog.get_logger("debut.swap")


@dataclass(frozen=True, slots=True)
class Refused:
    """A release that was pointed to and is not served, and why."""

    release: str
    reason: str


class Swapper:
    """Serves what `current` of the releases folder points to, looking every `release_poll_s` seconds or when told to.

    A release that cannot be served is refused: the one that is served goes on. It is tried again when `current` is set
    again (even to the same) or when `look_now` is called.
    """

    def __init__(
        self, current: Current, ledger: Ledger, settings: Settings, metrics: Metrics, opened: Pointer | None
    ) -> None:
        """`opened` is what `current` pointed to when the release that is served now was opened."""
        self._current, self._ledger, self._settings, self._metrics = current, ledger, settings, metrics
        self._looked_at = opened
        self._told: SimpleQueue[None] = SimpleQueue()  # an Event would lock up where a signal interrupts another's
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swap", daemon=True)
        self.refused: Refused | None = None
        self.preparing: str | None = None
        """The release that is being loaded."""
        metrics.show_release(current.serving.release.id, current.serving.encoder_id)
        for outcome in ("swapped", "refused"):
            metrics.swaps.labels(outcome)  # a series that begins with its first event hides that event

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a release that is being loaded is given up."""
        self._stopping.set()
        self._told.put(None)
        if self._thread.is_alive():
            self._thread.join(self._settings.shutdown_s)

    def look_now(self) -> None:
        """Look at once, and try a refused release again. Returns immediately; a signal handler may call it."""
        self._told.put(None)

    @property
    def status(self) -> str:
        """What is served and what is not, as a sentence."""
        served, refused = f"serving {self._current.serving.release.id}", self.refused
        if self.preparing:
            served += f"; preparing {self.preparing}"
        return served if refused is None else f"{served}; {refused.release} refused: {refused.reason}"

    def _run(self) -> None:
        while not self._stopping.is_set():
            told = self._wait_to_be_told()
            if not self._stopping.is_set():
                self.look(again=told)

    def _wait_to_be_told(self) -> bool:
        """Wait until somebody says to look, or for `release_poll_s` seconds; return whether somebody did."""
        try:
            self._told.get(timeout=self._settings.release_poll_s)
        except Empty:
            return False
        while not self._told.empty():  # told twice is told once
            self._told.get()
        return True

    def look(self, again: bool = False) -> bool:
        """Serve another release if `current` points to one; return whether it does now.

        What was looked at before is only looked at `again` if that is said.
        """
        found = pointer(self._settings.releases)
        if found is None or (found == self._looked_at and not again):
            return False
        self._looked_at = found
        try:
            if Release.open(self._settings.releases, verify=False).id == self._current.serving.release.id:
                self.refused = None
                return False
            self.preparing = found.target
            self._swap()
        except DebutError as error:
            self._refuse(found.target, error.detail)
            return False
        except Exception:
            if self._stopping.is_set():
                return False  # the ledger was closed under it
            log.exception("a release cannot be served")
            self._refuse(found.target, "something broke on our side; the log has it.")
            return False
        finally:
            self.preparing = None
        return True

    def _swap(self) -> None:
        started, before = time.perf_counter(), self._current.serving.release.id
        log.info("preparing a release", release=self.preparing)
        serving = Serving.open(self._settings)
        last = serving.replay(self._ledger)
        for _ in range(CATCHING_UP):
            reached, last = last, serving.replay(self._ledger, last)
            if last == reached:
                break
        with self._current.committing:
            held = time.perf_counter()
            self._current.reached = serving.replay(self._ledger, last)
            old, self._current.serving = self._current.serving, serving
        done = time.perf_counter()
        del old  # takes its time, and nobody has to wait for it
        self.refused = None
        self._metrics.show_release(serving.release.id, serving.encoder_id)
        self._metrics.swaps.labels("swapped").inc()
        log.info(
            "another release is served",
            release=serving.release.id,
            before=before,
            seconds=round(done - started, 3),
            uploads_held_ms=round((done - held) * 1e3, 1),
        )
        trim(serving, self._ledger)

    def _refuse(self, release: str, reason: str) -> None:
        self.refused = Refused(release, reason)
        self._metrics.swaps.labels("refused").inc()
        log.warning("a release is refused", release=release, reason=reason, serving=self._current.serving.release.id)


def trim(serving: Serving, ledger: Ledger) -> None:
    """Let go of what the ledger need not keep once it was folded into the release that is served."""
    if not len(serving.marks):
        return
    try:
        log.info("the ledger is trimmed", events=ledger.trim(), release=serving.release.id)
    except LedgerError as error:  # the next start or swap does it
        log.warning("the ledger cannot be trimmed", reason=error.detail)
