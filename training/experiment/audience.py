"""The audience of a track, as GET /audience answers it (JSON) or as a table (CSV, Parquet)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.experiment.rows import ExperimentError, Row, read_rows, text

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True)
class Member:
    """One listener to show the track to; score and cluster are None where the file does not say."""

    listener_id: str
    score: float | None = None
    cluster: int | None = None


def read_audience(path: Path, track_id: str | None) -> tuple[str, list[Member]]:
    """Return the track's id and the members in the file's order.

    JSON (.json) is schemas.AudienceResponse, of which `track_id` and `listeners` are read; anything else a table
    with the column listener_id, and score and cluster if it has them. `track_id` must be given where the file does
    not say it, and must agree where it does. Raises ExperimentError for that, for a broken file, a listener that
    stands twice, an id that the service's CSV has led by an apostrophe, and an audience of fewer than two.
    """
    said, entries = _document(path) if path.suffix.lower() == ".json" else (None, _table(path))
    if said is not None and track_id not in (None, said):
        raise ExperimentError(f"{path} is the audience of {said!r}, not of {track_id!r}")
    if not (track := said or track_id):
        raise ExperimentError(f"{path} does not say whose audience it is: name the track with --track")
    places: dict[str, str] = {}
    for place, member in entries:
        if (first := places.setdefault(member.listener_id, place)) != place:
            raise ExperimentError(f"{place}: {member.listener_id!r} stands already in {first}")
    if len(entries) < 2:
        raise ExperimentError(f"{path} names {len(entries)} listeners: an experiment needs two arms of at least one")
    return track, [member for _, member in entries]


def member(row: Row, place: str) -> Member:
    """Read one entry of an audience. Raises ExperimentError naming `place`."""
    score, cluster = row.get("score"), row.get("cluster")
    return Member(
        text(row, "listener_id", place),
        None if score is None else _finite(score, "score", place),
        None if cluster is None else _whole(cluster, place),
    )


def _table(path: Path) -> list[tuple[str, Member]]:
    found = [(place, member(row, place)) for place, row in read_rows(path, ["listener_id"], ["score", "cluster"])]
    for place, one in found:
        rest = one.listener_id.removeprefix("'")
        if rest != one.listener_id and (rest.startswith(_FORMULA) or rest.lstrip().startswith(_FORMULA)):
            raise ExperimentError(
                f"{place}: {one.listener_id!r} is led by an apostrophe, as the service's CSV does with an id that "
                "could be a formula, so it is not the id of the events: use the JSON answer"
            )
    return found


def _document(path: Path) -> tuple[str, list[tuple[str, Member]]]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ExperimentError(f"{path}, line {error.lineno}: is no JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, a thousand brackets
        raise ExperimentError(f"{path} is no JSON in UTF-8 that can be read") from error
    listeners = found.get("listeners") if isinstance(found, dict) else None
    if not isinstance(listeners, list):
        raise ExperimentError(f"{path} holds no list of `listeners`: save an answer of GET /audience")
    track = text({"track_id": found.get("track_id")}, "track_id", str(path))
    return track, [_entry(row, f"{path}, listeners[{n}]") for n, row in enumerate(listeners)]


def _entry(row: Any, place: str) -> tuple[str, Member]:
    if not isinstance(row, dict) or "listener_id" not in row:
        raise ExperimentError(f"{place}: has no listener_id")
    return place, member(row, place)


def _finite(value: Any, column: str, place: str) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ExperimentError(f"{place}: {column} is {str(value)[:40]!r}; a number is needed")
    return found


def _whole(value: Any, place: str) -> int:
    found = _finite(value, "cluster", place)
    if not found.is_integer() or found < 0:
        raise ExperimentError(f"{place}: cluster is {str(value)[:40]!r}; a whole number from 0 on is needed")
    return int(found)
