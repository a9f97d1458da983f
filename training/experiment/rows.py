"""Reads the rows of a CSV or Parquet file one by one, each with its place, so that errors can name it."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.errors import DebutError

Row = dict[str, Any]


class ExperimentError(DebutError):
    """An audience, a plan or events that cannot be used as they are."""

    code = "experiment"


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield each row's place ("events.csv, line 3"; of Parquet "row 2", from 0) and its named columns.

    Empty cells are None; an optional column that the file lacks is not in the rows, other columns are left out.
    Raises ExperimentError for a file that cannot be read, or lacks a required column.
    """
    reader = _parquet if path.suffix.lower() in (".parquet", ".pq") else _csv
    return reader(path, required, optional)


def _csv(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            places = _places(path, header, required, optional)
            for cells in lines:
                line = lines.line_num
                if len(cells) not in (0, len(header)):
                    raise ExperimentError(f"{path}, line {line}: has {len(cells)} columns, the header {len(header)}")
                if cells:
                    yield f"{path}, line {line}", {name: cells[place] or None for name, place in places.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"{path}, after line {line}: is no CSV in UTF-8 ({error})") from error
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror or error}") from error


def _parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = list(_places(path, file.schema_arrow.names, required, optional))
            for batch in file.iter_batches(columns=names):
                for values in _microseconds(batch).to_pylist():
                    yield f"{path}, row {row}", {name: None if v == "" else v for name, v in values.items()}
                    row += 1
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ExperimentError(f"{path}, from row {row} on: cannot be read as Parquet ({error})") from error


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Cut times to what Python's datetime can hold."""
    columns = [
        pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
        if pa.types.is_timestamp(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _places(path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    twice = sorted({name for name in header if header.count(name) > 1 and name in (*required, *optional)})
    missing = [name for name in required if name not in header]
    if missing or twice:
        problem = f"has no column {missing[0]!r}" if missing else f"has the column {twice[0]!r} twice"
        raise ExperimentError(f"{path}, line 1: {problem}; its columns are {', '.join(map(repr, header)) or 'none'}")
    return {name: header.index(name) for name in (*required, *optional) if name in header}


def text(row: Row, column: str, place: str) -> str:
    """Return a cell of text. Raises ExperimentError when it is empty, no text, or not encodable."""
    value = row[column]
    if not isinstance(value, str) or not value:
        problem = "is missing" if value is None else f"is {value!r}, which is no text"
        raise ExperimentError(f"{place}: {column} {problem}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ExperimentError(f"{place}: {column} holds half a surrogate pair, which is not text") from None
    return value


def number(row: Row, column: str, place: str) -> float | None:
    """Return a cell's finite number from 0 on, None where it is empty or absent. Raises ExperimentError."""
    value = row.get(column)
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise ExperimentError(f"{place}: {column} is {str(value)[:40]!r}; a number from 0 on is needed")
    return found
