"""What may be there: each track's history of what was asked and answered, and the states that it admits.

A track is a register: it holds an upload, or nothing. What was answered happened at some instant between question and
answer; what was not answered happened at one such instant before whoever was asked had died, or never. A state is
admitted when the operations can be put into an order that fits these times and every answer (linearizability: Herlihy
and Wing, 1990; found by search as in Wing and Gong, 1993).
"""

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import sounds
from tests.chaos.plan import Upload

RELEASED = "as the release has it"
State = Upload | str | None
"""An upload, RELEASED, or None: no such track."""

IN_FLIGHT_S = 1.0
"""What a dead service had sent to Redis may still arrive for so long."""


@dataclass(slots=True, eq=False)
class Event:
    """Something that was asked about one track. `asked`: "put", "drop" or "look"."""

    track_id: str
    asked: str
    server: int
    note: str
    upload: Upload | None = None
    replace: bool = False
    began: float = field(default_factory=time.monotonic)
    ended: float = math.inf
    """When it was answered; if it was not, from when on it cannot happen any more."""
    answer: str | None = None
    """None: it was not answered, or not in a way that says whether it happened."""
    seen: dict[str, Any] | None = None
    """The track as it was shown to "look"."""
    status: str = ""

    def after(self, state: State) -> list[State]:
        """States that it may leave behind where it found `state`; none when its answer does not fit."""
        if self.asked == "look":
            return [state] if shows(state, self.seen, self.track_id) else []
        if self.asked == "drop":
            fits = {"removed": state is not None, "unknown_track": state is None, None: True}[self.answer]
            return [None] if fits else []
        taken = state is None or state == self.upload or self.replace
        if self.answer is None:
            return [self.upload if taken else state]
        if self.answer == "track_exists":
            return [] if taken else [state]
        fits = {
            "created": state is None,
            "replaced": state is not None and state != self.upload and self.replace,
            "unchanged": state == self.upload,
        }[self.answer]
        return [self.upload] if fits else []

    def __str__(self) -> str:
        what = f"{self.asked}{' replace' if self.replace else ''}"
        which = "" if self.upload is None else f" sound {self.upload.sound} {self.upload.meta}"
        until = f"{self.ended:.3f}" if math.isfinite(self.ended) else "?"
        seen = "" if self.asked != "look" else f" saw {self.seen}"
        said = self.answer or self.status or "no answer"
        return f"{self.began:.3f}-{until} server {self.server} {self.note}: {what}{which} -> {said}{seen}"


def shows(state: State, document: dict[str, Any] | None, track_id: str) -> bool:
    """Whether this document (None: 404) is that of a track in this state. What the release has is not compared."""
    if state is None or document is None:
        return state is None and document is None
    if state == RELEASED:
        return document["track_id"] == track_id and "group" not in (document["title"] or "")
    assert isinstance(state, Upload)
    told = state.metadata | {"track_id": track_id}
    told.pop("lyrics", None)
    empty = {"genres": [], "attributes": {}}
    fields = ("track_id", "title", "artist", "album", "release_date", "explicit", "language", "genres", "isrc")
    same = all(document[name] == told.get(name, empty.get(name)) for name in (*fields, "attributes"))
    return same and abs(document["duration_s"] - sounds.seconds(state.sound)) < 1e-6


def admitted(states: Iterable[State], events: list[Event]) -> set[State]:
    """States that the events may have left behind, beginning with one of `states`; empty when no order fits."""
    found: set[State] = set()
    visited: set[tuple[int, State]] = set()
    waiting = [((1 << len(events)) - 1, state) for state in states]
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        left, state = node
        remaining = [place for place in range(len(events)) if left >> place & 1]
        if all(events[place].answer is None for place in remaining):
            found.add(state)
        for place in remaining:
            rest = _without_earlier(events, remaining, left & ~(1 << place), events[place].began)
            if rest is not None:
                waiting += [(rest, after) for after in events[place].after(state)]
    return found


def _without_earlier(events: list[Event], remaining: list[int], left: int, began: float) -> int | None:
    """Leave out what can only have happened before `began`; None when one of them certainly did."""
    for place in remaining:
        if left >> place & 1 and events[place].ended < began:
            if events[place].answer is not None:
                return None
            left &= ~(1 << place)
    return left


class Model:
    """Histories and admitted states of all tracks; several threads note what they ask."""

    def __init__(self, reads_lag: bool) -> None:
        """`reads_lag`: a service may show what another has changed already, until it has followed."""
        self._reads_lag = reads_lag
        self._lock = threading.Lock()
        self._states: dict[str, set[State]] = {}
        self._recent: dict[str, list[Event]] = {}
        self._unanswered: list[Event] = []
        self._deaths: dict[int, list[float]] = {}
        self.histories: dict[str, list[str]] = {}
        self.timeline: list[tuple[float, str]] = []
        self.wrong: list[str] = []

    def released(self, track_id: str) -> None:
        """A track of the release."""
        self._states[track_id] = {RELEASED}

    def ask(self, event: Event) -> Event:
        """Note that something is being asked."""
        with self._lock:
            self._recent.setdefault(event.track_id, []).append(event)
        return event

    def answered(self, event: Event, answer: str, seen: dict[str, Any] | None = None) -> None:
        """Note what was answered."""
        event.ended = time.monotonic()
        event.answer, event.seen = answer, seen

    def refused(self, event: Event, status: str) -> None:
        """Note an answer that says that it failed on the way: it may have happened by now, not later."""
        event.ended, event.status = time.monotonic() + IN_FLIGHT_S, status

    def unanswered(self, event: Event) -> None:
        """Note that whoever was asked went away."""
        event.status = "no answer"
        with self._lock:
            died = [when for when in self._deaths.get(event.server, ()) if when > event.began]
            if died:
                event.ended = died[0] + IN_FLIGHT_S
            else:
                self._unanswered.append(event)

    def withdrawn(self, event: Event) -> None:
        """Nobody heard it: there was no connection."""
        with self._lock:
            self._recent[event.track_id].remove(event)

    def died(self, server: int) -> None:
        """Note that a service is dead: what it did not answer it cannot do any more."""
        now = time.monotonic()
        with self._lock:
            self._deaths.setdefault(server, []).append(now)
            for event in self._unanswered:
                if event.server == server:
                    event.ended = now + IN_FLIGHT_S
            self._unanswered = [event for event in self._unanswered if event.server != server]

    def happened(self, what: str) -> None:
        """Put a kill or a start into the story."""
        self.timeline.append((time.monotonic(), what))

    def complain(self, about: str) -> None:
        """Note something that must not be."""
        self.wrong.append(about)

    def settle(self) -> set[str]:
        """Work out every track's states from what was asked since the last time; return the tracks it was asked of.

        Nothing may be in flight.
        """
        for event in self._unanswered:
            self.complain(f"{event.track_id}: a connection broke though nobody was killed: {event}")
        self._unanswered = []
        touched = self._recent
        self._recent = {}
        for track_id, events in touched.items():
            self.histories.setdefault(track_id, []).extend(f"{event.began:.3f} {event}" for event in events)
            before = self._states.get(track_id, {None})
            counted = [e for e in events if e.asked != "look" or (e.answer is not None and not self._reads_lag)]
            after = admitted(before, counted)
            if not after:
                self.complain(f"{track_id}: its answers fit no order of events, from {_said(before)}")
            self._states[track_id] = after or before
        return set(touched)

    def states(self, track_id: str) -> set[State]:
        """What a track may be."""
        return self._states.get(track_id, {None})

    def known(self) -> list[str]:
        """Tracks of which something was asked, ever."""
        return list(self._states)

    def observe(self, track_id: str, document: dict[str, Any] | None, where: str) -> State:
        """Hold what is there (None: nothing) against what may be; from now on it is what was seen."""
        states = self.states(track_id)
        fitting = {state for state in states if shows(state, document, track_id)}
        if not fitting:
            self.complain(f"{track_id}: {where} has {document or 'nothing'}, admitted: {_said(states)}")
            return next(iter(states))
        self._states[track_id] = fitting
        return next(iter(fitting))

    def story(self, track_id: str) -> str:
        """All that was asked of a track, with the kills between, in order."""
        lines = [(float(line.split()[0]), line.partition(" ")[2]) for line in self.histories.get(track_id, [])]
        if not lines:
            return "  nothing was asked of it"
        first, last = lines[0][0], lines[-1][0]
        lines += [(when, f"--- {what}") for when, what in self.timeline if first - 60 <= when <= last + 60]
        return "\n".join(f"  {text}" for _, text in sorted(lines))


def _said(states: set[State]) -> str:
    return " or ".join("nothing" if state is None else str(state) for state in states)
