"""Progress on a terminal and elsewhere."""

import io

import pytest

from training.progress import Progress, Silent, clock_text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_intervals() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, interval_s=3.0, clock=clock)
    with progress.stage("decode audio", 10) as stage:
        for _ in range(10):
            clock.now += 1.0
            stage.advance(1, unreadable=0, gain=0.123456)
    assert out.getvalue().splitlines() == [
        "decode audio: 1/10 (10 %), unreadable 0, gain 0.1235, 0:09 left",
        "decode audio: 4/10 (40 %), unreadable 0, gain 0.1235, 0:06 left",
        "decode audio: 7/10 (70 %), unreadable 0, gain 0.1235, 0:03 left",
        "decode audio: 10 of 10 done, unreadable 0, gain 0.1235, took 0:10",
    ]


def test_a_stage_that_fails_says_how_far_it_came() -> None:
    out = io.StringIO()
    progress = Progress(out, clock=Clock())

    def half() -> None:
        with progress.stage("encode", 4) as stage:
            stage.advance(2)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert out.getvalue().splitlines()[-1] == "encode: 2 of 4 done, took 0:00"


def test_text_is_printed_as_it_is() -> None:
    out = io.StringIO()
    text = "[bold]not markup[/] " + "long " * 50
    Progress(out).say(text)
    assert out.getvalue() == text + "\n"


def test_a_terminal_gets_a_bar_with_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    clock, out = Clock(), Terminal()
    with Progress(out, clock=clock).stage("LARP stage 1/3", 4) as stage:
        clock.now += 30.0
        stage.advance(1, epoch="1/2", loss=3.25)
    shown = out.getvalue()
    for part in ("LARP stage 1/3", "1/4", "epoch 1/2, loss 3.25", "1:30 left", "\x1b["):
        assert part in shown
    assert shown.rstrip().endswith("LARP stage 1/3: 1 of 4 done, epoch 1/2, loss 3.25, took 0:30")


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.say("nothing")
    with progress.stage("nothing", 2) as stage:
        stage.advance(1, loss=1.0)
    assert (stage.done, stage.figures) == (1, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3700, "1:01:40"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
