"""The plan of a run: what is asked and who is killed when, all of it from one seed and from nothing else."""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import sounds

GROUP = 80
"""Track ids that share a word in their title and a genre: one search lists them all, one continuation finds them."""

KINDS = {
    "new": 36,
    "again": 9,
    "copy": 5,
    "clash": 6,
    "edit": 5,
    "replace": 8,
    "delete": 9,
    "get": 7,
    "search": 5,
    "continue": 6,
    "audience": 4,
}
"""Weights of the operations:

new: a recording nobody sent before; again: an upload as it was sent before; copy: its content under another id;
clash: its id with other content; edit: its id and content with other metadata; replace: as clash, with replace=true.
"""

_LANGUAGES, _NAMES = (None, "de", "en", "fr"), ("Ada", "Bo", "Clara", "Dvořák", "Emil", "Fanny", "Grete", "Ives")


@dataclass(frozen=True)
class Upload:
    """A recording and what is said of it. Two that are equal are the same upload."""

    track_id: str
    sound: int
    meta: str
    """JSON of the metadata but for the id."""
    named: bool = True
    """False: the id is not sent, because it follows from the content."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What is sent as metadata."""
        told: dict[str, Any] = json.loads(self.meta)
        return told | {"track_id": self.track_id} if self.named else told


@dataclass(frozen=True)
class Operation:
    """One thing to ask. `kind` is one of KINDS; `track_id` is whom it is about (a group's word for a search)."""

    number: int
    kind: str
    track_id: str
    upload: Upload | None = None
    replace: bool = False
    form: bool = False
    """A multipart form, else a raw body."""
    later: bool = False
    """Prefer: respond-async."""
    key: str | None = None
    """Idempotency-Key."""
    twin: bool = False
    """Sent by two clients at once."""
    times: int = 1
    """2: sent again as soon as it was answered, or not answered."""
    seeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kill:
    """Who gets SIGKILL, as soon as operation `at` was begun and `wait_s` after that.

    victims: "one" service (of the replicas), "all" of them, "redis", "redis+all", or during a fold "fold", "fold+all".
    `starting` are further kills: seconds after the start that follows.
    """

    at: int
    victims: str
    wait_s: float
    starting: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, in order."""

    seed: int
    operations: tuple[Operation, ...]
    kills: tuple[Kill, ...]
    groups: dict[str, tuple[str, ...]] = field(repr=False)
    """A group's word -> the ids that may be in it."""


class _Writer:
    def __init__(self, rng: random.Random, released: Sequence[str]) -> None:
        self._rng, self._released = rng, released
        self._sounds, self._ids = 0, 0
        self._uploads: list[Upload] = []
        self._keyed: list[Operation] = []
        self._word: dict[str, str] = {}
        self.groups: dict[str, list[str]] = {}

    def operation(self, number: int) -> Operation:
        rng = self._rng
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0] if self._uploads else "new"
        if kind == "search":
            return Operation(number, kind, rng.choice(list(self.groups)))
        if kind == "again" and self._keyed and rng.random() < 0.3:
            return dataclasses.replace(rng.choice(self._keyed[-200:]), number=number, kind=kind)
        if kind in ("get", "delete", "continue", "audience"):
            track_id = self._any_id()
            seeds = (track_id, *(self._any_id() for _ in range(rng.randrange(4)))) if kind == "continue" else ()
            twin = kind == "delete" and rng.random() < 0.1
            times = 2 if kind == "delete" and rng.random() < 0.2 else 1
            return Operation(number, kind, track_id, seeds=seeds, twin=twin, times=times)
        upload = self._upload(kind)
        self._uploads.append(upload)
        key = f"key-{number}" if rng.random() < 0.12 else None
        operation = Operation(
            number,
            kind,
            upload.track_id,
            upload,
            replace=kind == "replace" or (kind == "edit" and rng.random() < 0.5),
            form=rng.random() < 0.4,
            later=key is None and rng.random() < 0.1,
            key=key,
            twin=rng.random() < 0.08,
            times=2 if rng.random() < 0.12 else 1,
        )
        if key:
            self._keyed.append(operation)
        return operation

    def _any_id(self) -> str:
        """An id that was sent: one of the last half of the time; sometimes one of the release's."""
        rng = self._rng
        if self._released and rng.random() < 0.06:
            return rng.choice(self._released)
        return rng.choice(self._uploads[-60:] if rng.random() < 0.5 else self._uploads).track_id

    def _upload(self, kind: str) -> Upload:
        rng = self._rng
        if kind == "new":
            return self._first(self._sound())
        old = rng.choice(self._uploads[-60:] if rng.random() < 0.5 else self._uploads)
        if kind == "again":
            return old
        if kind == "copy":
            return self._first(old.sound)
        track_id = self._any_id()
        known = next((u for u in reversed(self._uploads) if u.track_id == track_id), None)
        word = self._group_of(track_id)
        if known is not None and (kind == "edit" or not known.named):
            return dataclasses.replace(known, meta=self._meta(word))
        if kind == "clash" and known is not None and rng.random() < 0.7:
            return dataclasses.replace(known, sound=self._sound())
        return Upload(track_id, self._sound(), self._meta(word))

    def _sound(self) -> int:
        self._sounds += 1
        return self._sounds - 1

    def _first(self, sound: int) -> Upload:
        """An upload under an id of its own, or under the one that follows from its content."""
        named = self._rng.random() < 0.85
        track_id = f"c{self._ids:05}" if named else f"sha256-{sounds.sha256(sound)}"
        self._ids += 1
        return Upload(track_id, sound, self._meta(self._group_of(track_id)), named)

    def _group_of(self, track_id: str) -> str:
        if track_id not in self._word:
            word = self._word[track_id] = f"group{len(self._word) // GROUP:04}"
            self.groups.setdefault(word, []).append(track_id)
        return self._word[track_id]

    def _meta(self, word: str) -> str:
        rng = self._rng
        told: dict[str, Any] = {
            "title": f"{rng.choice(('Take', 'Étude', 'Song', 'Nacht'))} {rng.randrange(10_000)} {word}",
            "artist": rng.choice(_NAMES),
            "album": rng.choice((None, "Harbour", "Mühle")),
            "language": rng.choice(_LANGUAGES),
            "genres": [word, *rng.sample(("folk", "lied", "jazz"), rng.randrange(3))],
            "release_date": rng.choice((None, f"20{rng.randrange(10, 30)}-05-31")),
            "explicit": rng.choice((None, True, False)),
            "lyrics": rng.choice((None, None, "la la la")),
        }
        return json.dumps({name: value for name, value in told.items() if value is not None}, sort_keys=True)


def plan(seed: int, operations: int, kills: int, shared: bool, released: Sequence[str], start_s: float) -> Plan:
    """Draw a plan. `shared`: two replicas on Redis. `released`: the release's ids that may be asked for and changed.

    `start_s` is about how long a start takes: kills during one, and during a fold, fall within such a time.
    """
    rng = random.Random(f"{seed} {operations} {kills} {shared} {start_s}")
    writer = _Writer(rng, released)
    written = tuple(writer.operation(number) for number in range(operations))
    groups = {word: tuple(ids) for word, ids in writer.groups.items()}
    return Plan(seed, written, _kills(rng, operations, kills, shared, start_s), groups)


def _kills(rng: random.Random, operations: int, count: int, shared: bool, start_s: float) -> tuple[Kill, ...]:
    """SIGKILLs, `count` in all, at random operations."""
    victims = (
        {"one": 55, "all": 12, "redis": 15, "redis+all": 10, "fold": 3, "fold+all": 5}
        if shared
        else {"all": 90, "fold": 4, "fold+all": 6}
    )
    drawn: list[tuple[str, tuple[float, ...]]] = []
    left = count
    while left:
        who = rng.choices(list(victims), list(victims.values()))[0]
        again = min(left - 1, rng.choices((0, 1, 2), (85, 12, 3))[0]) if who in ("all", "redis+all") else 0
        drawn.append((who, tuple(rng.uniform(0.0, start_s) for _ in range(again))))
        left -= 1 + again
    moments = sorted(rng.randrange(operations) for _ in drawn)
    return tuple(
        Kill(at, who, rng.uniform(0.0, 3 * start_s) if "fold" in who else rng.uniform(0.0, 0.1), starting)
        for at, (who, starting) in zip(moments, drawn, strict=True)
    )
