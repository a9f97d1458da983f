"""A store that keeps silent: who waits for it, who is told at once, and when all may ask again."""

import time
from contextlib import contextmanager

import pytest

from service.ledger import silence as module
from service.ledger.ledger import LedgerError
from service.ledger.silence import Silence


@pytest.fixture
def silence(monkeypatch):
    """One that has just been silent."""
    monkeypatch.setattr(module, "SLOW_S", 0.02)
    monkeypatch.setattr(module, "PAUSE_S", 0.1)
    silence = Silence()
    fail(silence, 0.03)
    assert silence.lasts
    return silence


def fail(silence: Silence, seconds: float) -> None:
    """Ask, and hear nothing for so long."""

    @silence.endured(False)
    def ask() -> None:
        time.sleep(seconds)
        raise LedgerError("nothing came", code="ledger_unwritable")

    with pytest.raises(LedgerError, match="nothing came"):
        ask()


@contextmanager
def refused(silence: Silence, *, patient: bool = False):
    """Whoever asks now is told at once, and asks nothing."""
    asked = []
    with pytest.raises(LedgerError, match="nothing came"), silence.endured(patient):
        asked.append("asked")
    assert asked == []
    yield


def test_whoever_has_the_turn_is_the_only_one_who_waits(silence):
    time.sleep(0.12)
    with silence.endured(False), refused(silence), refused(silence, patient=True):
        pass
    assert not silence.lasts  # it was heard
    with silence.endured(False), silence.endured(False):
        pass


def test_patient_callers_need_no_pause_and_others_do(silence):
    with refused(silence), silence.endured(True), refused(silence):
        pass
    assert not silence.lasts


def test_a_turn_is_given_back_however_it_ends(silence):
    for wrong in (KeyError, KeyboardInterrupt):
        fail_again = Silence()
        fail(fail_again, 0.03)
        with pytest.raises(wrong), fail_again.endured(True):
            raise wrong
        with fail_again.endured(False):
            pass
    time.sleep(0.12)
    fail(silence, 0.03)  # still silent: the next one has to wait its time
    with refused(silence):
        time.sleep(0.12)
    with silence.endured(False):
        pass


def test_a_quick_failure_is_no_silence(silence):
    time.sleep(0.12)
    fail(silence, 0)
    assert not silence.lasts
    fail(silence, 0)
    fail(silence, 0)
