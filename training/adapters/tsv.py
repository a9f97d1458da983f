"""Reads tab-separated tables of any size, plain or bzip2, block by block into typed columns; broken rows are named."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from training.adapters.blocks import LineBlocks
from training.adapters.report import AdapterError, ImportReport
from training.progress import Progress

COUNT, LINK, TEXT, TIME = "count", "link", "text", "time"
_KINDS = {COUNT: pa.int64(), LINK: pa.int64(), TEXT: pa.string(), TIME: pa.int64()}
_PROBLEMS = {COUNT: "is no number from 0 on", LINK: "is no number", TEXT: "is no UTF-8", TIME: "is no time"}
_NOTHING = ["", "-1", "nan", "NaN", "None", "NULL"]  # a LINK to nothing
_NUMBER = re.compile(rb"[0-9]{1,15}")
_LARGEST = 10**15 - 1
_MB = 1_000_000


@dataclass(frozen=True)
class Column:
    """A column to read: its name here, its kind, the names it has in headers, and whether it may be missing.

    COUNT: whole numbers from 0 on. LINK: the same, or nothing (null). TEXT: UTF-8. TIME: seconds since 1970, from their
    number or from text such as 2019-01-31 08:00:00 (UTC where it names no zone).
    """

    name: str
    kind: str
    known_as: tuple[str, ...]
    optional: bool = False


def find_table(source: Path, name: str) -> Path | None:
    """The file NAME.tsv or NAME.tsv.bz2 in a folder, with hyphens or underscores; None without one."""
    for stem in dict.fromkeys((name, name.replace("-", "_"))):
        for suffix in (".tsv", ".tsv.bz2"):
            if (path := source / f"{stem}{suffix}").is_file():
                return path
    return None


class TsvTable:
    """One file with a header line. Raises AdapterError when it has none, or lacks a column that is wanted."""

    def __init__(self, path: Path, columns: Sequence[Column], report: ImportReport) -> None:
        self.path = path
        self._report = report
        self.header = self._read_header()
        self._place: dict[Column, int] = {}
        for column in columns:
            found = next((name for name in column.known_as if name in self.header), None)
            if found is not None:
                self._place[column] = self.header.index(found)
            elif not column.optional:
                raise AdapterError(
                    f"{path.name} has no column {' or '.join(map(repr, column.known_as))}; its columns are "
                    f"{', '.join(map(repr, self.header))}",
                    code="import_column",
                )

    @property
    def schema(self) -> pa.Schema:
        """The columns that `blocks` yields."""
        return pa.schema([(column.name, _KINDS[column.kind]) for column in self._place])

    def has(self, name: str) -> bool:
        """Whether the file has the column that is called `name` here."""
        return any(column.name == name for column in self._place)

    def blocks(self, progress: Progress) -> Iterator[pa.Table]:
        """Yield the sound rows in order, the columns by the names they have here, in blocks of some MB.

        Broken rows go to the report by line (the header is line 1); so does a bzip2 file that ends early.
        """
        source = LineBlocks(self.path)
        size = self.path.stat().st_size
        with progress.stage(f"read {self.path.name}, MB", size // _MB) as stage:
            number = 1
            for block in source:
                yield from self._rows(block, number)
                number += _lines(block)
                stage.advance(source.consumed // _MB - stage.done, broken=self._report.left_out)
        if source.cut:
            self._report.read(self.path.name)
            self._broken(f"{self.path.name}, after line {number - 1}", "cut off or damaged: what follows is missing")

    def _read_header(self) -> list[str]:
        for block in LineBlocks(self.path):
            line = block.partition(b"\n")[0].rstrip(b"\r").removeprefix(b"\xef\xbb\xbf")
            return line.decode("utf-8", "replace").split("\t")
        raise AdapterError(f"{self.path.name} is empty or damaged: it has no header", code="import_column")

    def _rows(self, block: bytes, number: int) -> Iterator[pa.Table]:
        """Parse a block whose first line is line `number` of the file."""
        if number == 1:
            block, number = block.partition(b"\n")[2], 2
        if not block:
            return
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        self._report.read(self.path.name, _lines(block))
        try:
            table = self._parse_sound(block)
        except pa.ArrowInvalid:
            table = self._parse_lines(block, number)
        if table.num_rows:
            yield table

    def _parse_sound(self, block: bytes) -> pa.Table:
        """Parse a block at full speed. Raises ArrowInvalid when a row is broken, or may be."""
        names = [str(k) for k in range(len(self.header))]
        kinds = {
            names[place]: pa.timestamp("s") if column.kind == TIME and _dated(block, place) else _KINDS[column.kind]
            for column, place in self._place.items()
        }
        table = pacsv.read_csv(
            pa.BufferReader(block),
            pacsv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
            pacsv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            pacsv.ConvertOptions(column_types=kinds, include_columns=list(kinds), null_values=_NOTHING),
        )
        columns = [pc.cast(column, pa.int64()) if _is_time(column) else column for column in table.columns]
        for kind, column in zip(self._place, columns, strict=True):
            if kind.kind != TEXT and not _within(column, nulls=kind.kind == LINK):
                raise pa.ArrowInvalid("out of range")
        return pa.table(columns, names=[column.name for column in self._place])

    def _parse_lines(self, block: bytes, first: int) -> pa.Table:
        """Parse a block line by line, and name what is broken."""
        rows = []
        for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), first):
            fields = line.split(b"\t")
            place = f"{self.path.name}, line {number}"
            if len(fields) != len(self.header):
                self._broken(place, f"has {len(fields)} columns, not {len(self.header)}", line)
            elif (row := self._parse_fields(fields, place)) is not None:
                rows.append(row)
        columns = list(zip(*rows, strict=True)) or [()] * len(self._place)
        arrays = [pa.array(values, kind) for values, kind in zip(columns, self.schema.types, strict=True)]
        return pa.table(arrays, schema=self.schema)

    def _parse_fields(self, fields: Sequence[bytes], place: str) -> list[int | str | None] | None:
        row = []
        for column, at in self._place.items():
            try:
                row.append(_value(column.kind, fields[at]))
            except ValueError:
                return self._broken(place, f"{column.name} {_PROBLEMS[column.kind]}", fields[at])
        return row

    def _broken(self, place: str, problem: str, value: bytes | None = None) -> None:
        shown = None if value is None else value.decode("utf-8", "backslashreplace")
        self._report.broken(self.path.name, place, problem, shown)


def _lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _dated(block: bytes, place: int) -> bool:
    """Whether the times of a block are text, by its first row."""
    fields = block.partition(b"\n")[0].split(b"\t")
    return place < len(fields) and b"-" in fields[place]


def _is_time(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_timestamp(column.type))


def _within(column: pa.ChunkedArray, *, nulls: bool) -> bool:
    ends = pc.min_max(column).as_py()
    inside = ends["min"] is None or (ends["min"] >= 0 and ends["max"] <= _LARGEST)
    return inside and (nulls or not column.null_count)


def _value(kind: str, field: bytes) -> int | str | None:
    """Read one field. Raises ValueError when it is broken."""
    if kind == TEXT:
        return field.decode()
    if kind == TIME:
        return _seconds(field.decode())
    field = field.strip(b" ")
    if kind == LINK and field.decode() in _NOTHING:
        return None
    if not _NUMBER.fullmatch(field):
        raise ValueError("no number")
    return int(field)


def _seconds(text: str) -> int:
    if text.isdecimal():
        return int(text[:15])
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
