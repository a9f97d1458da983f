"""BCL's fields: which parts of a track the matcher reads, what was fitted to them, and the arrays they become."""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from index.errors import DebutError
from index.tracks.track import Track

Kind = Literal["categorical", "multi", "numeric", "dense"]
FORMAT = 1
MULTI_SLOTS = 8
HUGE = 1e100  # from here on a number is none: its square would not be finite
FAR = 10.0  # standard deviations at which a numeric field is cut off
_COLUMNS = frozenset(field.name for field in fields(Track)) - {"attributes"}


class FieldsError(DebutError):
    """Field specifications, a fields.json or vectors that do not fit together."""

    code = "fields_invalid"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a track.

    `column` names a Track attribute or a key of Track.attributes; for dense the vector: "audio", "text" or
    "lyrics". `block` is the width into which a dense vector is cut, so that the grouping of BCL has parts
    to choose from. `slots` is how many values of a multi field are read, the most frequent ones.
    """

    name: str
    kind: Kind
    column: str
    block: int = 32
    slots: int = MULTI_SLOTS

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise FieldsError(f"field {self.name!r} has kind {self.kind!r}; known are {list(get_args(Kind))}")
        if self.block < 1:
            raise FieldsError(f"field {self.name!r} has blocks of {self.block}; at least 1 is needed")
        if self.slots < 1:
            raise FieldsError(f"field {self.name!r} has {self.slots} slots; at least 1 is needed")


@dataclass(frozen=True)
class FieldSet:
    """Fields with what was fitted on the training tracks: the same transform for trainer and service.

    `vocabularies` holds the values of categorical and multi fields, most frequent first (id = place + 1, 0
    = unknown); `scales` mean and standard deviation of numeric fields; `widths` the length of each dense
    vector.
    """

    specs: tuple[FieldSpec, ...]
    vocabularies: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, tuple[float, float]]
    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.specs]
        if not names or len(set(names)) < len(names):
            raise FieldsError(f"field names must be unique and at least one, not {names}")
        dense = self.of("dense")
        if len({spec.block for spec in dense}) > 1:
            raise FieldsError("all dense fields must be cut into blocks of one width")
        for spec in dense:
            if self.widths[spec.name] % spec.block:
                raise FieldsError(
                    f"field {spec.name!r}: {self.widths[spec.name]} dims cannot be cut into {spec.block}s"
                )
        self._places: dict[str, dict[str, int]]
        places = {name: {v: i for i, v in enumerate(values, 1)} for name, values in self.vocabularies.items()}
        object.__setattr__(self, "_places", places)

    @classmethod
    def fit(
        cls,
        specs: Sequence[FieldSpec],
        tracks: Sequence[Track],
        vectors: Mapping[str, NDArray[np.float32]],
        min_count: int = 1,
    ) -> Self:
        """Learn vocabularies, scales and widths from `tracks` (the training ones) and their `vectors` f32 [N, width].

        A value seen fewer than `min_count` times is unknown. Raises FieldsError when a dense field has no
        vectors.
        """
        vocabularies, scales, widths = {}, {}, {}
        for spec in specs:
            if spec.kind == "dense":
                widths[spec.name] = _rows(vectors, spec, len(tracks)).shape[1]
            elif spec.kind == "numeric":
                scales[spec.name] = _scale([_number(_value(track, spec.column)) for track in tracks])
            else:
                vocabularies[spec.name] = _vocabulary((_words(_value(t, spec.column)) for t in tracks), min_count)
        return cls(tuple(specs), vocabularies, scales, widths)

    def of(self, kind: Kind) -> tuple[FieldSpec, ...]:
        """The fields of one kind, in order."""
        return tuple(spec for spec in self.specs if spec.kind == kind)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the F fields that the matcher embeds: categorical, multi, numeric, then each block of each dense."""
        flat = [spec.name for kind in ("categorical", "multi", "numeric") for spec in self.of(kind)]
        blocks = [f"{s.name}:{i}" for s in self.of("dense") for i in range(self.widths[s.name] // s.block)]
        return (*flat, *blocks)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that `transform` gives."""
        names = [kind for kind in get_args(Kind) if self.of(kind)]
        return (*names, *(f"{kind}_known" for kind in ("numeric", "dense") if kind in names))

    @property
    def slots(self) -> int:
        """Width of the array "multi": the slots of the field that has most."""
        return max((spec.slots for spec in self.of("multi")), default=MULTI_SLOTS)

    def sizes(self, kind: Literal["categorical", "multi"]) -> tuple[int, ...]:
        """Rows of the embedding table of each field of `kind`, the one for 0 included."""
        return tuple(1 + len(self.vocabularies[spec.name]) for spec in self.of(kind))

    def transform(self, tracks: Sequence[Track], vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        """The inputs of matcher.onnx for N tracks; an input without fields is left out.

        "categorical" int64 [N, C], 0 = unknown; "multi" int64 [N, M, slots], most frequent first, 0 = padding
        or unknown; "numeric" f32 [N, Q] standardised with "numeric_known" f32 [N, Q] (0 or 1); "dense" f32
        [N, blocks, width] with "dense_known" f32 [N, blocks]. What is missing (None, a NaN row of
        `vectors`) is zero in both arrays of a pair. Raises FieldsError when `vectors` lacks a dense field
        or has another shape than at `fit`.
        """
        arrays: dict[str, NDArray[Any]] = {}
        if specs := self.of("categorical"):
            columns = [[self._first(track, spec) for track in tracks] for spec in specs]
            arrays["categorical"] = np.array(columns, dtype=np.int64).reshape(len(specs), len(tracks)).T.copy()
        if specs := self.of("multi"):
            slots = [[self._slots(track, spec) for spec in specs] for track in tracks]
            arrays["multi"] = np.array(slots, dtype=np.int64).reshape(len(tracks), len(specs), self.slots)
        if specs := self.of("numeric"):
            arrays["numeric"], arrays["numeric_known"] = self._numeric(tracks, specs)
        if specs := self.of("dense"):
            arrays["dense"], arrays["dense_known"] = self._dense(vectors, specs, len(tracks))
        return arrays

    def to_json(self) -> str:
        """The whole set as JSON text; `from_json` gives an equal one."""
        state = {"vocabularies": self.vocabularies, "scales": self.scales, "widths": self.widths}
        return json.dumps({"format": FORMAT, "specs": [asdict(s) for s in self.specs], **state}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises FieldsError when it is damaged or of a newer format."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise FieldsError(f"fields.json has format {data['format']!r}; this version reads {FORMAT}: upgrade it")
            specs = tuple(FieldSpec(**spec) for spec in data["specs"])
            for spec in specs:
                _check_fitted(spec, data)
            return cls(
                specs,
                {name: tuple(values) for name, values in data["vocabularies"].items()},
                {name: (float(mean), float(deviation)) for name, (mean, deviation) in data["scales"].items()},
                {name: int(width) for name, width in data["widths"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FieldsError(f"fields.json is damaged ({error!r}); publish the release again") from error

    def _first(self, track: Track, spec: FieldSpec) -> int:
        words = _words(_value(track, spec.column))
        return self._places[spec.name].get(words[0], 0) if words else 0

    def _slots(self, track: Track, spec: FieldSpec) -> list[int]:
        places = self._places[spec.name]
        known = sorted({places[word] for word in _words(_value(track, spec.column)) if word in places})
        return (known[: spec.slots] + [0] * self.slots)[: self.slots]

    def _numeric(
        self, tracks: Sequence[Track], specs: Sequence[FieldSpec]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        raw = [[_number(_value(track, spec.column)) for spec in specs] for track in tracks]
        values = np.array(raw, dtype=np.float64).reshape(len(tracks), len(specs))
        mean, deviation = np.array([self.scales[spec.name] for spec in specs]).T
        known = ~np.isnan(values)
        scaled = np.where(known, ((values - mean) / deviation).clip(-FAR, FAR), 0)
        return scaled.astype(np.float32), known.astype(np.float32)

    def _dense(
        self, vectors: Mapping[str, NDArray[np.float32]], specs: Sequence[FieldSpec], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        blocks, known = [], []
        for spec in specs:
            rows = _rows(vectors, spec, count)
            if rows.shape[1] != self.widths[spec.name]:
                raise FieldsError(
                    f"field {spec.name!r} was fitted on {self.widths[spec.name]} dims, not {rows.shape[1]}"
                )
            there: NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=1))
            cut = np.where(there[:, None], rows, np.float32(0)).reshape(count, rows.shape[1] // spec.block, spec.block)
            blocks.append(cut.astype(np.float32, copy=False))
            known.append(np.repeat(there[:, None].astype(np.float32), cut.shape[1], axis=1))
        return np.concatenate(blocks, axis=1), np.concatenate(known, axis=1)


def _rows(vectors: Mapping[str, NDArray[np.float32]], spec: FieldSpec, count: int) -> NDArray[np.float32]:
    rows = vectors.get(spec.column)
    if rows is None or rows.ndim != 2 or len(rows) != count:
        found = "none" if rows is None else str(list(rows.shape))
        raise FieldsError(f"field {spec.name!r} needs {spec.column!r} vectors [{count}, width]; found {found}")
    return rows


def _value(track: Track, column: str) -> object:
    return getattr(track, column) if column in _COLUMNS else track.attributes.get(column)


def _words(value: object) -> list[str]:
    """Values of a categorical or multi field, folded (case, width, blanks), in order."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in _words(item)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1797.0 and 1797 are one value
    text = str(value)
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return [folded] if folded else []


def _number(value: object) -> float:
    """Value of a numeric field; an ISO date becomes a year with its fraction; NaN when there is no number in it."""
    if isinstance(value, str):
        try:
            day = date.fromisoformat(value)
        except ValueError:
            return _float(value)
        return day.year + (day.timetuple().tm_yday - 1) / 366
    return _float(value) if isinstance(value, (bool, int, float)) else math.nan


def _float(value: str | float) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if abs(number) < HUGE else math.nan


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the known values; 0 and 1 when there are none, 1 when they are all equal."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return 0.0, 1.0
    mean, deviation = float(known.mean()), float(known.std())
    return mean, deviation if deviation > 1e-9 * float(np.abs(known).max()) else 1.0


def _check_fitted(spec: FieldSpec, state: Mapping[str, Any]) -> None:
    """Raise KeyError or ValueError when fields.json does not hold what was fitted to a field."""
    fitted = state[{"numeric": "scales", "dense": "widths"}.get(spec.kind, "vocabularies")][spec.name]
    if spec.kind == "numeric":
        mean, deviation = fitted
        if not (math.isfinite(mean) and 0 < deviation < math.inf):
            raise ValueError(f"field {spec.name!r} has the scale {fitted}")


def _vocabulary(values: Iterable[list[str]], min_count: int) -> tuple[str, ...]:
    """Words by falling frequency (a track counts once), ties in alphabetical order."""
    counts = Counter(word for words in values for word in set(words))
    kept = [(-count, word) for word, count in counts.items() if count >= min_count]
    return tuple(word for _, word in sorted(kept))
