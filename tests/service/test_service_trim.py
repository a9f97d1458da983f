"""Trimming holds up nobody who appends, whoever reads in the file meanwhile, and leaves nothing in the log."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest
from test_service_ledger import added

from service.ledger import sqlite
from service.ledger.sqlite import SqliteLedger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    """Forty events, of which thirty are overtaken."""
    ledger = SqliteLedger(path)
    for number in range(40):
        ledger.append(added(f"t{number % 10}", number))
    yield ledger
    ledger.close()


def test_appends_go_on_while_a_reader_keeps_the_log_from_being_emptied(ledger, path):
    overtaken = added("t0", 0).features.data[500:600]
    log = path.with_name(path.name + "-wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()  # and stays there, as a backup does
        trimming = threading.Thread(target=ledger.trim)
        trimming.start()
        while len(ledger) > 10:
            time.sleep(0.01)
        longest = 0.0
        for number in range(5):
            started = time.monotonic()
            ledger.append(added("next", 100 + number))
            longest = max(longest, time.monotonic() - started)
            assert trimming.is_alive(), "it waited until the trim gave up"
        assert ledger.known("t1") is not None
        reader.execute("ROLLBACK")
    trimming.join(30)
    print(f"the longest append took {longest * 1e3:.0f} ms")
    assert overtaken not in path.read_bytes() + log.read_bytes()
    assert log.stat().st_size == 0
    assert len(ledger) == 15


def test_a_reader_that_never_ends_does_not_keep_the_trim(ledger, path, monkeypatch):
    monkeypatch.setattr(sqlite, "EMPTIED_S", 0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        assert ledger.trim() == 30
    ledger.append(added("next", 1))
