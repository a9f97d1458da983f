"""Tab-separated tables: whatever is in them, the fast way and the plain one agree, and each broken row has its line."""

import bz2
import random
from pathlib import Path

import pytest

from training.adapters import blocks as line_blocks
from training.adapters.blocks import LineBlocks
from training.adapters.report import AdapterError, ImportReport
from training.adapters.tsv import COUNT, LINK, TEXT, TIME, Column, TsvTable, find_table
from training.progress import Silent

COLUMNS = (
    Column("user_id", COUNT, ("user_id",)),
    Column("title", TEXT, ("track_name", "track")),
    Column("time", TIME, ("timestamp",)),
    Column("album_id", LINK, ("album_id",), optional=True),
)
HEADER = b"user_id\talbum_id\ttrack\tnobody\ttimestamp\n"
Row = tuple[int, str, int, int | None]
SOUND = b"7\t3\tTitle\tx\t2019-01-31 08:00:00"
SOUND_ROW: Row = (7, "Title", 1548921600, 3)


def read(path: Path, columns: tuple[Column, ...] = COLUMNS) -> tuple[list[Row], ImportReport]:
    report = ImportReport("lfm", {})
    table = TsvTable(path, columns, report)
    rows = [tuple(row.values()) for block in table.blocks(Silent()) for row in block.to_pylist()]
    return rows, report  # type: ignore[return-value]


def written(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(HEADER + b"\n".join(lines) + end)
    return path


@pytest.mark.parametrize("end", [b"\n", b""])
def test_columns_are_found_by_their_header_and_kind(tmp_path: Path, end: bytes) -> None:
    path = written(
        tmp_path / "t.tsv",
        SOUND,
        b'12\t\tDer "Tod"\t-\t1970-01-01T00:01:00',
        b"13\t-1\t\t\t2019-01-31 08:00:00",
        end=end,
    )
    rows, report = read(path)
    assert rows == [SOUND_ROW, (12, 'Der "Tod"', 60, None), (13, "", 1548921600, None)]
    assert report.left_out == 0
    assert report.kinds["t.tsv"].rows == 3


def test_times_may_be_seconds_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\xef\xbb\xbfuser_id\ttrack_name\ttimestamp\r\n1\ta\rb\t1548921600\r\n2\tc\t0\r\n")
    rows, report = read(path)
    assert rows == [(1, "a b", 1548921600), (2, "c", 0)]
    assert report.left_out == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"7\t3\tTitle\tx", "has 4 columns, not 5 (got '7\\t3\\tTitle\\tx')"),
        (b"7\t3\tTit\tle\tx\t2019-01-31 08:00:00", "has 6 columns, not 5"),
        (b"", "has 1 columns, not 5"),
        (b"seven\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got 'seven')"),
        (b"\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got '')"),
        (b"-7\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got '-7')"),
        (b"-1\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got '-1')"),
        (b"7.5\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got '7.5')"),
        (b"9999999999999999\t3\tTitle\tx\t2019-01-31 08:00:00", "user_id is no number from 0 on (got '9999"),
        (b"7\tthree\tTitle\tx\t2019-01-31 08:00:00", "album_id is no number (got 'three')"),
        (b"7\t-3\tTitle\tx\t2019-01-31 08:00:00", "album_id is no number (got '-3')"),
        (b"7\t3\tTit\xffle\tx\t2019-01-31 08:00:00", "title is no UTF-8 (got 'Tit\\\\xffle')"),
        (b"7\t3\tTitle\tx\tyesterday", "time is no time (got 'yesterday')"),
        (b"7\t3\tTitle\tx\t2019-02-31 08:00:00", "time is no time (got '2019-02-31"),
        (b"7\t3\tTitle\tx\t", "time is no time (got '')"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, line: bytes, words: str) -> None:
    for number, lines in ((2, [line, SOUND, SOUND]), (4, [SOUND, SOUND, line]), (3, [SOUND, line, SOUND])):
        rows, report = read(written(tmp_path / "t.tsv", *lines))
        assert rows == [SOUND_ROW, SOUND_ROW]
        assert report.left_out == 1
        assert report.kinds["t.tsv"].rows == 3
        assert report.named[0].startswith(f"t.tsv, line {number}: {words}")


@pytest.mark.parametrize("seed", range(30))
def test_both_ways_of_parsing_agree_with_a_plain_reading(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random rows, some of them spoilt, in blocks of any size, packed or not, in one stream or two."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    share = rng.choice([0.0, 0.02, 0.3])
    lines = [_random_line(rng, share) for _ in range(rng.randint(1, 60))]
    expected, bad = _plain(lines)
    monkeypatch.setattr(line_blocks, "PIECE", rng.choice([4, 50, 400, 1 << 20]))
    content = HEADER + b"\n".join(lines) + rng.choice([b"", b"\n"])
    if not lines[-1]:
        content = HEADER + b"\n".join(lines) + b"\n"
    path = tmp_path / "t.tsv"
    packing = rng.randrange(3)
    half = len(content) // 2
    path.write_bytes(
        [content, bz2.compress(content), bz2.compress(content[:half]) + bz2.compress(content[half:])][packing]
    )
    rows, report = read(path)
    assert rows == expected
    assert [int(line.partition("line ")[2].partition(":")[0]) for line in report.named] == bad[: len(report.named)]
    assert report.left_out == len(bad)
    assert report.kinds["t.tsv"].rows == len(lines)


def _random_line(rng: random.Random, share: float) -> bytes:
    fields = [
        rng.choice([b"0", b"42", b" 5", b"007", b"123456789012345"]),
        rng.choice([b"", b"-1", b"9", b"NULL"]),
        rng.choice([b"a", '"ü'.encode(), b"", b" x ", b"NULL", b"'"]),
        rng.choice([b"\xff", b"", b"-"]),
        rng.choice([b"2019-01-31 08:00:00", b"1999-12-31T23:59:59"]),
    ]
    if rng.random() < share:
        spoilt = [(0, b"x"), (0, b""), (0, b"-1"), (0, b"1e3"), (1, b"y"), (2, b"\xff\xfe"), (4, b"soon"), (4, b"")]
        place, value = rng.choice(spoilt)
        fields[place] = value
    if rng.random() < share:
        fields = fields[: rng.randint(0, 4)] or [b""]
    return b"\t".join(fields)


def _plain(lines: list[bytes]) -> tuple[list[Row], list[int]]:
    """What the table says, one row after another, by the simplest means."""
    times = {b"2019-01-31 08:00:00": 1548921600, b"1999-12-31T23:59:59": 946684799}
    rows: list[Row] = []
    bad = []
    for number, line in enumerate(lines, 2):
        fields = line.split(b"\t")
        try:
            user, album, title, _, moment = fields
            if not user.strip().isdigit() or album not in (b"", b"-1", b"9", b"NULL"):
                raise ValueError
            rows.append((int(user), title.decode(), times[moment], 9 if album == b"9" else None))
        except (ValueError, KeyError):
            bad.append(number)
    return rows, bad


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_bzip2_file_that_is_cut_off_gives_whole_lines_and_is_named(tmp_path: Path, kept: float) -> None:
    rng = random.Random(1)
    lines = [f"{k}\t{k}\t{rng.random()}\tx\t2019-01-31 08:00:00".encode() for k in range(60_000)]
    packed = bz2.compress(HEADER + b"\n".join(lines) + b"\n", 1)
    path = tmp_path / "t.tsv.bz2"
    path.write_bytes(packed[: int(kept * len(packed))])
    rows, report = read(path)
    assert 0 < len(rows) < len(lines)
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert all(row[1] == lines[k].split(b"\t")[2].decode() for k, row in enumerate(rows))
    last = len(rows) + 1
    assert report.named == [f"t.tsv.bz2, after line {last}: cut off or damaged: what follows is missing"]


@pytest.mark.parametrize("seed", range(4))
def test_of_a_bzip2_file_that_is_damaged_nothing_wrong_comes(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    lines = [f"{k}\t{k}\t{k % 1000}\tx\t2019-01-31 08:00:00".encode() for k in range(120_000)]
    packed = bytearray(bz2.compress(HEADER + b"\n".join(lines) + b"\n"))
    packed[rng.randrange(3 * len(packed) // 4, len(packed))] ^= 1 << rng.randrange(8)
    path = tmp_path / "t.tsv.bz2"
    path.write_bytes(packed)
    rows, report = read(path)
    assert rows == [(k, str(k % 1000), 1548921600, k) for k in range(len(rows))]
    assert 0 < len(rows) < len(lines)
    assert report.left_out == 1
    assert "cut off or damaged" in report.named[0]


def test_a_missing_column_names_what_was_found_and_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"user_id\tname\ttimestamp\n")
    with pytest.raises(AdapterError) as caught:
        read(path)
    assert caught.value.code == "import_column"
    assert caught.value.detail == (
        "t.tsv has no column 'track_name' or 'track'; its columns are 'user_id', 'name', 'timestamp'"
    )
    for content in (b"", bz2.compress(b""), b"BZh9 and no more"):
        path.write_bytes(content)
        with pytest.raises(AdapterError, match="it has no header"):
            read(path)


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    for content in (HEADER, HEADER[:-1]):
        (tmp_path / "t.tsv").write_bytes(content)
        rows, report = read(tmp_path / "t.tsv")
        assert (rows, report.left_out) == ([], 0)


def test_tables_are_found_packed_or_not_with_hyphens_or_underscores(tmp_path: Path) -> None:
    assert find_table(tmp_path, "listening-counts") is None
    for name in (
        "listening_counts.tsv.bz2",
        "listening_counts.tsv",
        "listening-counts.tsv.bz2",
        "listening-counts.tsv",
    ):
        (tmp_path / name).touch()
        assert find_table(tmp_path, "listening-counts") == tmp_path / name


def test_blocks_end_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_blocks, "PIECE", 5)
    (tmp_path / "t").write_bytes(b"one\ntwo and more\nthree")
    source = LineBlocks(tmp_path / "t")
    assert list(source) == [b"one\n", b"two and more\n", b"three"]
    assert (source.cut, source.consumed) == (False, 22)
