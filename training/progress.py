"""What a long run says while it runs: a live bar with ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

Figure = float | int | str


class Stage:
    """One counted piece of work: `done` of `total` steps, with the latest figures by name."""

    def __init__(self, name: str, total: int, clock: Callable[[], float]) -> None:
        self.name = name
        self.total = max(total, 0)
        self.done = 0
        self.figures: dict[str, Figure] = {}
        self._clock = clock
        self._began = clock()

    def advance(self, n: int = 1, **figures: Figure) -> None:
        """Count `n` more steps and keep the given figures until newer ones replace them."""
        self.done += n
        self.figures.update(figures)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the mean pace so far; None before the first step."""
        if not self.done:
            return None
        return self.elapsed_s / self.done * max(self.total - self.done, 0)

    def line(self) -> str:
        """Name, count, share, figures and time left, e.g. "stage 2: 30/60 (50 %), loss 3.2, 1:05 left"."""
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        eta = self.eta_s
        left = [] if eta is None or self.done >= self.total else [f"{clock_text(eta)} left"]
        return ", ".join([f"{self.name}: {self.done}/{self.total}{share}", *self._figures(), *left])

    def closing_line(self) -> str:
        """As `line`, with the time the stage took."""
        return ", ".join([f"{self.name}: {self.done} of {self.total} done", *self._figures()]) + (
            f", took {clock_text(self.elapsed_s)}"
        )

    def figures_text(self) -> str:
        """The figures as one string."""
        return ", ".join(self._figures())

    def _figures(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {_number(value)}" for name, value in self.figures.items()]


class Progress:
    """Shows stages and messages on `stream` (standard error by default).

    On a terminal a stage is a rich bar; otherwise at most one line every `interval_s` seconds, and one at its
    end.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._interval_s = interval_s
        self._clock = clock
        self._console = Console(file=self._stream, highlight=False)
        self._last_line = float("-inf")

    def say(self, text: str) -> None:
        """Print one line (above the bar, on a terminal)."""
        self._console.print(text, markup=False, soft_wrap=True)
        self._stream.flush()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Show a stage of `total` steps while the block runs; the block calls `advance`."""
        if self._console.is_terminal:
            yield from self._bar(name, total)
        else:
            yield from self._lines(name, total)

    def _lines(self, name: str, total: int) -> Iterator[Stage]:
        stage = _LineStage(name, total, self._clock, self._line_due)
        try:
            yield stage
        finally:
            self.say(stage.closing_line())

    def _line_due(self, stage: Stage) -> None:
        now = self._clock()
        if now - self._last_line >= self._interval_s and stage.done < stage.total:
            self._last_line = now
            self.say(stage.line())

    def _bar(self, name: str, total: int) -> Iterator[Stage]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=total, figures="", eta="")

            def show(stage: Stage) -> None:
                eta = "" if stage.eta_s is None else f"{clock_text(stage.eta_s)} left"
                bar.update(task, completed=stage.done, figures=stage.figures_text(), eta=eta)

            stage = _LineStage(name, total, self._clock, show)
            try:
                yield stage
            finally:
                bar.stop()
                self.say(stage.closing_line())


class _LineStage(Stage):
    """A stage that shows itself whenever it advances."""

    def __init__(self, name: str, total: int, clock: Callable[[], float], show: Callable[[Stage], None]) -> None:
        super().__init__(name, total, clock)
        self._show = show

    def advance(self, n: int = 1, **figures: Figure) -> None:
        """Count, then show."""
        super().advance(n, **figures)
        self._show(self)


class Silent(Progress):
    """Progress that says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage nobody sees."""
        yield Stage(name, total, self._clock)


def clock_text(seconds: float) -> str:
    """65 -> "1:05", 3700 -> "1:01:40"."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _number(value: Figure) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
