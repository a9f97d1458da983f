"""A small run of `make chaos` for each ledger; and that its oracle sees what it is there to see."""

import itertools
import random

import pytest

from tests.chaos import sounds
from tests.chaos.model import RELEASED, Event, Model, admitted
from tests.chaos.plan import Upload, plan
from tests.chaos.report import failures, summary
from tests.chaos.run import Run

OPERATIONS, KILLS = 200, 3
ONE, OTHER = (Upload("t", sound, f'{{"genres": ["group0000"], "title": "{sound} group0000"}}') for sound in (1, 2))


@pytest.mark.parametrize("ledger", ["sqlite", "redis"])
def test_nothing_acknowledged_is_lost_or_there_twice(ledger, releases, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with Run(tmp_path / "run", releases, ledger, seed, OPERATIONS, KILLS) as run:
        report = run.run()
    print(summary(report))
    assert not report.model.wrong, failures(report)
    assert report.signals >= KILLS
    assert report.counts["201"] > OPERATIONS / 4
    assert report.compared > 50


def test_a_seed_is_a_plan():
    one, same, other = (plan(seed, 500, 20, True, ["t1", "t2"], 2.0) for seed in (7, 7, 8))
    assert one == same
    assert one.operations != other.operations
    assert one.kills != other.kills
    assert sum(1 + len(kill.starting) for kill in one.kills) == 20


def test_recordings_are_the_same_for_a_number_and_differ_between_numbers():
    numbers = [0, 1, 2, 9, sounds.WHOLE, 5000]
    assert all(sounds.recording(n) == sounds.recording(n) for n in numbers)
    assert len({sounds.sha256(n) for n in numbers}) == len(numbers)


def event(began: float, ended: float, asked: str, answer: str | None, upload: Upload | None = None, **more) -> Event:
    return Event("t", asked, 0, "", upload, began=began, ended=ended, answer=answer, **more)


LATER = float("inf")


@pytest.mark.parametrize(
    ("events", "states"),
    [
        pytest.param([event(0, 1, "put", "created", ONE)], {ONE}, id="what is acknowledged is there"),
        pytest.param([event(0, LATER, "put", None, ONE)], {ONE, None}, id="what is not may be"),
        pytest.param(
            [event(0, 1, "put", "created", ONE), event(2, 3, "drop", "removed")], {None}, id="what is gone is gone"
        ),
        pytest.param(
            [event(0, 2, "put", None, ONE), event(3, 4, "drop", "unknown_track")], {None}, id="not after it can be"
        ),
        pytest.param(
            [event(0, LATER, "put", None, ONE), event(3, 4, "drop", "unknown_track")], {ONE, None}, id="later it can"
        ),
        pytest.param(
            [event(0, 5, "put", "created", ONE), event(1, 4, "drop", "removed")], {None}, id="at once, in one order"
        ),
        pytest.param(
            [event(0, 5, "put", "created", ONE), event(1, 4, "drop", "unknown_track")], {ONE}, id="or in the other"
        ),
        pytest.param(
            [event(0, 5, "put", "created", ONE), event(1, 4, "put", "track_exists", OTHER)], {ONE}, id="one is first"
        ),
        pytest.param(
            [event(0, 5, "put", "created", ONE), event(1, 4, "put", "created", ONE)], set(), id="not both are"
        ),
        pytest.param(
            [event(0, 1, "put", "created", ONE), event(2, 3, "put", "created", OTHER)], set(), id="a conflict unseen"
        ),
        pytest.param(
            [event(0, 1, "put", "created", ONE), event(2, 3, "look", "seen", seen=None)], set(), id="lost to a reader"
        ),
        pytest.param(
            [event(0, 1, "put", "created", ONE), event(2, LATER, "put", None, OTHER, replace=True)],
            {ONE, OTHER},
            id="replaced or not",
        ),
        pytest.param(
            [event(0, 1, "put", "created", ONE), event(2, LATER, "put", None, OTHER)], {ONE}, id="never without replace"
        ),
    ],
)
def test_admitted_states(events, states):
    for order in itertools.permutations(events):
        assert admitted({None}, list(order)) == states


def test_what_is_lost_comes_back_or_is_another_is_said_with_its_history():
    told = {"track_id": "t", "title": "1 group0000", "genres": ["group0000"], "duration_s": sounds.seconds(1)}
    empty = dict.fromkeys(["artist", "album", "release_date", "explicit", "language", "isrc"])
    document = empty | told | {"attributes": {}}
    for answered, shown in ((True, None), (False, None), (True, document | {"duration_s": 9.0})):
        model = Model(reads_lag=False)
        put = model.ask(Event("t", "put", 0, "operation 7", ONE))
        model.answered(put, "created")
        if not answered:
            model.answered(model.ask(Event("t", "drop", 0, "operation 8")), "removed")
        model.settle()
        assert model.observe("t", document if answered else None, "a service") == (ONE if answered else None)
        assert not model.wrong
        model.observe("t", shown if answered else document, "a service")
        assert model.wrong
        assert "operation 7" in model.story("t")


def test_a_connection_that_broke_though_nobody_was_killed_is_said():
    model = Model(reads_lag=False)
    model.released("t")
    model.unanswered(model.ask(Event("t", "drop", 0, "operation 7")))
    assert model.settle() == {"t"}
    assert len(model.wrong) == 1
    assert model.states("t") == {RELEASED, None}
    model.unanswered(model.ask(Event("t", "drop", 0, "operation 8")))
    model.died(0)
    model.settle()
    assert len(model.wrong) == 1
