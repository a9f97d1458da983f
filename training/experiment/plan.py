"""Who is shown the track (treatment) and who is not (control): the split, its files, and their reading."""

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.experiment.audience import Member, member
from training.experiment.rows import ExperimentError, read_rows, text
from training.experiment.statistics import LEVEL, POWER, detectable

FORMAT = 1
PLAN, TABLE = "plan.json", "plan.csv"
TREATMENT, CONTROL = "treatment", "control"
ARMS = (TREATMENT, CONTROL)
RULE = (
    "treatment when the first 8 bytes (big-endian) of SHA-256 over the compact UTF-8 JSON array "
    "[salt, track_id, listener_id] are below share * 2^64"
)


@dataclass(frozen=True)
class Plan:
    """One experiment: members[k] of the track's audience is in arms[k]; events count from `start` (UTC) on.

    `planned` is how many listeners the plan was made of; plan.csv may have lost some since.
    """

    salt: str
    track_id: str
    share: float
    start: datetime
    base_rate: float
    members: list[Member]
    arms: list[str]
    planned: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Listeners in treatment and control."""
        treated = self.arms.count(TREATMENT)
        return treated, len(self.arms) - treated

    def clusters(self) -> dict[int | None, list[int]]:
        """Return the places in `members` by cluster, those without one (None) last."""
        found: dict[int | None, list[int]] = {}
        for place, one in enumerate(self.members):
            found.setdefault(one.cluster, []).append(place)
        return {key: found[key] for key in sorted(found, key=lambda c: (c is None, c or 0))}


def arm_of(salt: str, track_id: str, listener_id: str, share: float) -> str:
    """Return the arm (RULE): always the same for a listener, whoever else is in the audience."""
    named = json.dumps([salt, track_id, listener_id], ensure_ascii=False, separators=(",", ":"))
    place = int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big")
    return TREATMENT if place < int(share * 2**64) else CONTROL


def make_plan(
    track_id: str, members: Sequence[Member], salt: str, share: float, start: datetime, base_rate: float
) -> Plan:
    """Deal the members into arms.

    Raises ExperimentError for a share or base rate outside ]0, 1[, a salt or track that is empty or no text, and an arm
    that nobody falls into.
    """
    for name, value in (("share", share), ("base rate", base_rate)):
        if not 0 < value < 1:
            raise ExperimentError(f"the {name} must lie between 0 and 1, it is {value}")
    if not salt.strip():
        raise ExperimentError("the salt is empty: name the experiment, so that another one deals anew")
    for name, value in (("salt", salt), ("track_id", track_id)):
        text({name: value}, name, "the plan")
    arms = [arm_of(salt, track_id, one.listener_id, share) for one in members]
    if len(set(arms)) < len(ARMS):
        raise ExperimentError(
            f"all {len(members)} listeners fall into {arms[0] if arms else 'no arm'}, none is left to compare them "
            "with: ask for a larger audience, or another share"
        )
    return Plan(salt, track_id, share, start, base_rate, list(members), arms, len(members))


def write_plan(plan: Plan, folder: Path, source: str) -> dict[str, Any]:
    """Write plan.csv and plan.json (last) into `folder`; return what the latter says. `source`: the audience's file.

    Raises ExperimentError when the folder holds a plan: one that has been acted on must not change.
    """
    if (folder / PLAN).exists():
        raise ExperimentError(f"{folder} holds a plan already: give another folder, or remove it if it was not used")
    folder.mkdir(parents=True, exist_ok=True)
    document = describe(plan, source)
    staged = folder / f"{TABLE}.part"
    with staged.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)  # lines end in CR LF, so that either of them is quoted inside an id
        table.writerow(["listener_id", "arm", "score", "cluster"])
        table.writerows(
            (one.listener_id, arm, _cell(one.score), _cell(one.cluster))
            for one, arm in zip(plan.members, plan.arms, strict=True)
        )
    os.replace(staged, folder / TABLE)
    staged = folder / f"{PLAN}.part"
    staged.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staged, folder / PLAN)
    return document


def describe(plan: Plan, source: str) -> dict[str, Any]:
    """Return plan.json: what the experiment is, its arms' sizes, and the rise of the base rate it can find."""
    rise = detectable(plan.base_rate, *plan.sizes)
    return {
        "format": FORMAT,
        "what": "Push experiment: the treatment arm is shown the track, the control arm is not.",
        "salt": plan.salt,
        "track_id": plan.track_id,
        "audience": source,
        "start": plan.start.isoformat(),
        "share": plan.share,
        "rule": RULE,
        "listeners": plan.planned,
        "arms": dict(zip(ARMS, plan.sizes, strict=True)),
        "clusters": {str(key): _split(plan, places) for key, places in plan.clusters().items() if key is not None},
        "base_rate": plan.base_rate,
        "power": POWER,
        "level": LEVEL,
        "detectable": None
        if math.isnan(rise)
        else {"absolute": round(rise, 6), "relative": round(rise / plan.base_rate, 6)},
    }


def read_plan(folder: Path) -> Plan:
    """Read what `write_plan` wrote.

    Raises ExperimentError when a file is missing or damaged, a listener stands twice, or an arm is not the one
    that the hash gives.
    """
    try:
        document = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExperimentError(f"{folder} holds no {PLAN}: run `python -m training experiment plan` first") from error
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{folder / PLAN} cannot be read: {error}") from error
    try:
        if document["format"] != FORMAT:
            raise ExperimentError(f"{folder / PLAN} has format {document['format']!r}; this version reads {FORMAT}")
        salt, track, share = str(document["salt"]), str(document["track_id"]), float(document["share"])
        start, base = datetime.fromisoformat(document["start"]), float(document["base_rate"])
        planned = int(document["listeners"])
        if not 0 < share < 1:
            raise ValueError(f"share {share}")
    except (KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"{folder / PLAN} is damaged ({error!r}): make the plan again") from error
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    plan = Plan(salt, track, share, start, base, [], [], planned)
    known: dict[str, str] = {}
    for place, one, arm in _table(folder / TABLE):
        if (first := known.setdefault(one.listener_id, place)) != place:
            raise ExperimentError(f"{place}: {one.listener_id!r} stands already in {first}")
        if arm != arm_of(salt, track, one.listener_id, share):
            raise ExperimentError(f"{place}: {one.listener_id!r} is not in the arm {arm!r} that the plan gave it")
        plan.members.append(one)
        plan.arms.append(arm)
    return plan


def _table(path: Path) -> Iterator[tuple[str, Member, str]]:
    for place, row in read_rows(path, ["listener_id", "arm"], ["score", "cluster"]):
        yield place, member(row, place), row["arm"]


def _split(plan: Plan, places: Sequence[int]) -> dict[str, int]:
    return {arm: sum(plan.arms[place] == arm for place in places) for arm in ARMS}


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)
