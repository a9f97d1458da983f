"""What the listeners of a plan did: plays and favourites, read from event files, told apart and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.experiment.plan import Plan
from training.experiment.rows import ExperimentError, Row, number, read_rows, text

PLAY, FAVOURITE = "play", "favourite"
_REQUIRED = ("listener_id", "track_id", "event")
_OPTIONAL = ("time", "played_s", "duration_s", "completed")


@dataclass(frozen=True)
class Effective:
    """An effective play lasts `seconds`, or the share `completed` of the track, whichever comes first.

    The paper does not define its own; this is ours. Raises ExperimentError for a value outside its range.
    """

    seconds: float = 30.0
    completed: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.seconds < float("inf") and 0 < self.completed <= 1):
            raise ExperimentError(
                f"an effective play needs seconds above 0 and a share up to 1, not {self.seconds} and {self.completed}"
            )


@dataclass
class Tally:
    """Counts by listener, in the plan's order [n], and what was set aside.

    `plays` and `effective` count events, `favourite` says whether there was any.
    """

    plays: NDArray[np.int64]
    effective: NDArray[np.int64]
    favourite: NDArray[np.bool_]
    read: int = 0
    """Events in the files."""
    counted: int = 0
    """Those of the track, by listeners of the plan, from its start on, each once."""
    other_tracks: int = 0
    early: int = 0
    """Before the plan's start."""
    repeated: int = 0
    """Equal to an earlier one in listener, event, time and length."""
    outside: int = 0
    """By listeners who are not in the plan."""
    untimed: int = 0
    """Without a time: counted, though they may be early or repeated."""
    strangers: set[str] = field(default_factory=set)


def tally(plan: Plan, paths: Sequence[Path], rule: Effective) -> Tally:
    """Count the events of CSV and Parquet files.

    Columns: listener_id, track_id, event ("play" or "favourite"); optional time (ISO 8601, UTC where it names no
    zone, or seconds since 1970), and of plays played_s (seconds), with duration_s (seconds) or completed (a share)
    to know the part that was heard. Raises ExperimentError naming file and line.
    """
    place_of = {one.listener_id: place for place, one in enumerate(plan.members)}
    n = len(plan.members)
    found = Tally(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, bool))
    seen: set[tuple[Any, ...]] = set()
    for path in paths:
        for where, row in read_rows(path, _REQUIRED, _OPTIONAL):
            listener, event = text(row, "listener_id", where), _event(row, where)
            place = place_of.get(listener)
            heard, length = _heard(row, where) if event == PLAY else (None, None)
            moment = _moment(row, where) if "time" in row else None
            found.read += 1
            if text(row, "track_id", where) != plan.track_id:
                found.other_tracks += 1
            elif moment is not None and moment < plan.start:
                found.early += 1
            elif place is None:
                found.outside += 1
                found.strangers.add(listener)
            elif moment is not None and (place, event, moment, heard, length) in seen:
                found.repeated += 1
            else:
                found.counted += 1
                found.untimed += moment is None
                if moment is not None:
                    seen.add((place, event, moment, heard, length))
                _count(found, place, event, _effective(heard, length, rule))
    return found


def _count(found: Tally, place: int, event: str, effective: bool) -> None:
    if event == FAVOURITE:
        found.favourite[place] = True
    else:
        found.plays[place] += 1
        found.effective[place] += effective


def _effective(heard: float | None, part: float | None, rule: Effective) -> bool:
    return (heard is not None and heard >= rule.seconds) or (part is not None and part >= rule.completed)


def _event(row: Row, place: str) -> str:
    event = text(row, "event", place)
    if event not in (PLAY, FAVOURITE):
        raise ExperimentError(f"{place}: event is {event[:40]!r}; known are {PLAY!r} and {FAVOURITE!r}")
    return event


def _heard(row: Row, place: str) -> tuple[float | None, float | None]:
    """Return the seconds and the share of the track that were heard; one may be unknown."""
    seconds, length, part = (number(row, column, place) for column in ("played_s", "duration_s", "completed"))
    if seconds is None and part is None:
        raise ExperimentError(f"{place}: a play needs played_s or completed, to know whether it was effective")
    if length == 0:
        raise ExperimentError(f"{place}: duration_s is 0; leave it out where it is unknown")
    if part is not None and part > 1:
        raise ExperimentError(f"{place}: completed is {part:g}; a share from 0 to 1 is needed")
    if part is None and seconds is not None and length is not None:
        part = seconds / length
    return seconds, part


def _moment(row: Row, place: str) -> datetime:
    value = row["time"]
    if value is None:
        raise ExperimentError(f"{place}: time is missing")
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, int | float) or str(value).replace(".", "", 1).isdecimal():
            moment = datetime.fromtimestamp(float(value), UTC)
        else:
            moment = datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        raise ExperimentError(
            f"{place}: time is {str(value)[:40]!r}; write 2026-05-31T18:00:00Z, or seconds since 1970"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
