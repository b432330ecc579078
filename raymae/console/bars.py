"""Progress bars: they move on a terminal and in a notebook; elsewhere a line now and then says the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymae.console.screen import console, is_live

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 30.0
"""Between two lines of a bar that can't move."""


class Bar:
    """The progress of some work, counted in units of a kind, with figures of it. A total of 0 isn't known yet."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._first, self._began = done, time.monotonic()

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        """So many more units are done."""
        self.move(self.done + count, figures)

    def move(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """So many units are done in all; `figures` are shown beside them."""
        self.done = done

    def close(self) -> None:
        """Take the bar away."""

    @property
    def amount(self) -> str:
        """What is done of how much."""
        return f"{self.done:,} of {self.total:,} {self.unit}s" if self.total else ""

    @property
    def left(self) -> str:
        """How long the rest will take; empty where it isn't known."""
        return f"{duration((self.total - self.done) / self.speed)} left" if self.speed else ""

    @property
    def speed(self) -> float | None:
        """Units a second since the bar began; None before the first."""
        done, seconds = self.done - self._first, time.monotonic() - self._began
        return done / seconds if done > 0 and seconds > 0 else None


class MovingBar(Bar):
    """A bar on a screen that is shared by all bars of the process."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        super().__init__(name, total, unit, done)
        self._progress = _screen.open()
        self._task: TaskID = self._progress.add_task(
            name, total=total or None, completed=done, amount=self.amount, figures="", left=self.left
        )

    def move(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Move the bar."""
        super().move(done, figures)
        said = ", ".join(told(figures, self))
        self._progress.update(self._task, completed=done, amount=self.amount, figures=said, left=self.left)

    def close(self) -> None:
        """Take the bar off the screen."""
        self._progress.remove_task(self._task)
        _screen.close()


class PrintedBar(Bar):
    """A line every half a minute."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        super().__init__(name, total, unit, done)
        self._next = self._began + LINE_SECONDS

    def move(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Print a line, if the last one is old."""
        super().move(done, figures)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            print(self.line(figures), flush=True)

    def line(self, figures: Mapping[str, float] | None = None) -> str:
        """The line: what is done, the figures, and how long the rest will take."""
        share = f"{self.amount} ({100 * self.done / max(1, self.total):.0f} %)"
        return f"{self.name}: {', '.join(filter(None, [share, *told(figures, self), self.left]))}"


def told(given: Mapping[str, float] | None, bar: Bar) -> list[str]:
    """Figures as text, with the units a second if they don't say it."""
    figures = given or {}
    rate = figures.get("clips_per_second", bar.speed)
    named = [f"{name} {value:.3g}" for name, value in figures.items() if name != "clips_per_second"]
    return [*named, *([f"{rate:,.0f} {bar.unit}s/s" if rate >= 10 else f"{rate:.1f} {bar.unit}s/s"] if rate else [])]


def duration(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Screen:
    """The lines at the bottom of the terminal in which bars move, while there are any."""

    def __init__(self) -> None:
        self._lock, self._bars = threading.Lock(), 0
        self._progress: Progress | None = None

    def open(self) -> Progress:
        """Get them for one more bar."""
        from rich.progress import BarColumn, Progress, TextColumn

        with self._lock:
            self._bars += 1
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("[bold]{task.description}"),
                    BarColumn(bar_width=24),
                    TextColumn("{task.fields[amount]}"),
                    TextColumn("[dim]{task.fields[figures]}"),
                    TextColumn("{task.fields[left]}"),
                    console=console(),
                    transient=True,
                )
                self._progress.start()
            return self._progress

    def close(self) -> None:
        """One bar less."""
        with self._lock:
            self._bars -= 1
            if not self._bars and self._progress:
                self._progress.stop()
                self._progress = None


_screen = _Screen()


@contextmanager
def bar(name: str, total: int, unit: str = "clip", done: int = 0) -> Iterator[Bar]:
    """A progress bar while the block runs, `done` of whose units were done before."""
    opened = open_bar(name, total, unit, done)
    try:
        yield opened
    finally:
        opened.close()


def open_bar(name: str, total: int, unit: str = "clip", done: int = 0) -> Bar:
    """A progress bar until it is closed."""
    return (MovingBar if is_live() else PrintedBar)(name, total, unit, done)
