"""Reads columns of a Parquet file and says what is wrong with them: file, column and row (counted from 0)."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.errors import DebutError


class DataSetError(DebutError):
    """A data set directory that cannot be used as it is."""

    code = "data_set"


Check = Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and (
        _is_text(kind.value_type) or pa.types.is_null(kind.value_type)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_date(kind: pa.DataType) -> bool:
    return pa.types.is_date(kind) or pa.types.is_timestamp(kind) or _is_text(kind)


_KINDS: dict[str, tuple[Check, str]] = {
    "text": (_is_text, "text"),
    "texts": (_is_texts, "a list of texts"),
    "number": (_is_number, "a number"),
    "integer": (pa.types.is_integer, "an integer"),
    "flag": (pa.types.is_boolean, "true or false"),
    "date": (_is_date, "a date (or text like 2024-05-31)"),
}


class Table:
    """One Parquet file of the data set. Raises DataSetError when it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise DataSetError(f"{path.name} cannot be read as Parquet: {error}", code="data_unreadable") from error
        self.count: int = self._file.metadata.num_rows
        self.names: list[str] = self._file.schema_arrow.names

    def kind(self, column: str) -> pa.DataType:
        """The Arrow type of a column (that of its values, where it is dictionary-encoded)."""
        kind = self._file.schema_arrow.field(column).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def required(self, column: str, kind: str) -> list[Any]:
        """Return a column without gaps. Raises DataSetError for what is absent, null, empty or mistyped."""
        values = self.optional(column, kind)
        if values is None:
            raise DataSetError(
                f"{self.path.name} has no column {column!r}; its columns are {', '.join(self.names)}",
                code="data_column_missing",
            )
        for row, value in enumerate(values):
            if value is None or value == "":
                raise self.error(column, row, "is missing", "data_value")
        return values

    def optional(self, column: str, kind: str) -> list[Any] | None:
        """Return a column as Python values, None where null; None for a column that is not there.

        `kind`: "text", "texts", "number" (float), "integer", "flag" or "date" (ISO text). Text is
        NFC-normalised but for columns that hold ids or paths ("id", "audio", and names that end in "_id").
        Raises DataSetError.
        """
        if column not in self.names:
            return None
        data = self._read(column)
        matches, meaning = _KINDS[kind]
        if pa.types.is_null(data.type):
            return [None] * self.count
        if not matches(data.type):
            row = pc.index(pc.is_valid(data), True).as_py()
            found = f"; row {row} holds {data[row].as_py()!r}" if row >= 0 else ""
            raise DataSetError(
                f"{self.path.name}, column {column!r}: expected {meaning}, the file has {data.type}{found}",
                code="data_type",
            )
        return self._python(column, kind, data)

    def error(self, column: str, row: int, problem: str, code: str) -> DataSetError:
        """Return an error that names file, column and row."""
        return DataSetError(f"{self.path.name}, column {column!r}, row {row}: {problem}", code=code)

    def _read(self, column: str) -> pa.ChunkedArray:
        try:
            data = self._file.read(columns=[column]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise DataSetError(
                f"{self.path.name}, column {column!r} cannot be read: {error}", code="data_unreadable"
            ) from error
        return pc.cast(data, data.type.value_type) if pa.types.is_dictionary(data.type) else data

    def _python(self, column: str, kind: str, data: pa.ChunkedArray) -> list[Any]:
        values: list[Any] = data.to_pylist()
        if kind == "number":
            return [self._number(column, row, value) for row, value in enumerate(values)]
        if kind == "date":
            return [self._date(column, row, value) for row, value in enumerate(values)]
        if kind == "texts":
            return [value and [normalised(v) for v in value if v is not None] for value in values]
        if kind == "text" and not (column.endswith("_id") or column in ("id", "audio")):
            return [value and normalised(value) for value in values]
        return values

    def _number(self, column: str, row: int, value: Any) -> float | None:
        if value is None:
            return None
        if not math.isfinite(value):
            raise self.error(column, row, f"{value} is not a finite number", "data_value")
        return float(value)

    def _date(self, column: str, row: int, value: date | str | None) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, date):
            return (value.date() if isinstance(value, datetime) else value).isoformat()
        whole = value + "-01-01"[3 * value.count("-") :] if value.count("-") < 2 else value
        try:
            return date.fromisoformat(whole).isoformat()
        except ValueError:
            raise self.error(
                column, row, f"{value!r} is no date; write YYYY-MM-DD, YYYY-MM or YYYY", "data_value"
            ) from None


def normalised(text: str) -> str:
    """Unicode NFC: one spelling for one text, whatever the platform that wrote it."""
    return unicodedata.normalize("NFC", text)


def rows_of(table: Table, column: str, ids: Sequence[str], known: dict[str, int], where: str) -> list[int]:
    """Return the row of each id. Raises DataSetError for the first id that `where` does not hold."""
    try:
        return [known[key] for key in ids]
    except KeyError:
        row = next(row for row, key in enumerate(ids) if key not in known)
        raise table.error(column, row, f"{ids[row]!r} is not in {where}", "data_reference") from None


def index_ids(table: Table, column: str, ids: Sequence[str]) -> dict[str, int]:
    """Return id -> row. Raises DataSetError for an id that stands twice."""
    known: dict[str, int] = {}
    for row, key in enumerate(ids):
        first = known.setdefault(key, row)
        if first != row:
            raise table.error(column, row, f"{key!r} stands already in row {first}", "data_duplicate")
    return known
