"""Memory that runs out between the ledger and the index: a 503, nothing half, and both agree again."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from service_uploads import ogg, seeded, tone, upload

from index.collection import Collection
from index.growing import GrowingArray

SOUNDS = {name: ogg(tone(1.1, 250 + 60 * number, seed=number)) for number, name in enumerate("abc")}


@pytest.fixture
def short_of_memory(monkeypatch):
    """Return a function after which the next call of a method of index/ runs short of memory, once."""

    def shorten(where: type, name: str) -> None:
        real, calls = getattr(where, name), []

        def short(*given):
            calls.append(None)
            if len(calls) == 1:
                raise MemoryError
            return real(*given)

        monkeypatch.setattr(where, name, short)

    return shorten


def copied(ledger: Path) -> Path:
    """Return a copy of a ledger that is open."""
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(ledger.with_name("copy"))) as copy:
        source.backup(copy)
    return ledger.with_name("copy")


def refused(answer) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_memory"), answer.text
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(("where", "name"), [(GrowingArray, "append"), (Collection, "_publish")])
def test_an_upload_is_whole_or_not_there_and_the_next_try_finds_it(
    client, serve, settings, short_of_memory, where, name
):
    assert upload(client, SOUNDS["a"], track_id="a").status_code == 201
    tracks = client.get("/").json()["tracks"]
    short_of_memory(where, name)
    refused(upload(client, SOUNDS["b"], track_id="b"))
    assert client.get("/tracks/b").status_code == 404
    assert client.get("/").json()["tracks"] == tracks
    assert "b" not in seeded(client, "a", k=500)
    again = upload(client, SOUNDS["b"], track_id="b")
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")
    assert "b" in seeded(client, "a", k=500)
    restarted = serve(settings.model_copy(update={"ledger": copied(settings.ledger)}))
    assert restarted.get("/").json()["tracks"] == client.get("/").json()["tracks"] == tracks + 1


def test_another_upload_brings_what_had_no_room(client, short_of_memory):
    short_of_memory(Collection, "_publish")
    refused(upload(client, SOUNDS["a"], track_id="a"))
    assert upload(client, SOUNDS["b"], track_id="b").status_code == 201
    assert "a" in seeded(client, "b", k=500)
    first = client.get("/audience/a"), client.get("/audience/b")
    assert [answer.status_code for answer in first] == [200, 200]


def test_a_take_down_is_whole_or_not_done(client, short_of_memory):
    for name in "ab":
        upload(client, SOUNDS[name], track_id=name)
    short_of_memory(Collection, "_publish")
    refused(client.delete("/tracks/b"))
    assert "b" in seeded(client, "a", k=500)
    assert client.delete("/tracks/b").status_code == 404  # the ledger has it that it was removed
    assert "b" not in seeded(client, "a", k=500)
    assert upload(client, SOUNDS["b"], track_id="b").status_code == 201
