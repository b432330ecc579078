"""Progress bars on a terminal and in a file."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from raymae.console import bars, screen


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 120 columns gets."""
    written = io.StringIO()
    shown = Console(file=written, force_terminal=True, width=120, highlight=False, soft_wrap=True, color_system=None)
    monkeypatch.setattr(bars, "console", lambda: shown)
    monkeypatch.setattr(screen, "console", lambda: shown)
    return written


def test_bars_move_on_a_terminal_and_leave_nothing(terminal: io.StringIO) -> None:
    with bars.bar("pretrain", 2000) as one, bars.bar("lengths", 10, "file") as two:
        one.move(500, {"loss": 0.51234, "lr": 0.001, "clips_per_second": 312.0})
        two.advance(3)
        bars._screen._progress.refresh()  # type: ignore[union-attr]
        said = terminal.getvalue()
    assert "500 of 2,000 clips" in said
    assert "loss 0.512, lr 0.001, 312 clips/s" in said
    assert "3 of 10 files" in said
    assert bars._screen._progress is None
    assert terminal.getvalue().endswith("\x1b[2K\x1b[1A\x1b[2K\x1b[?25h\r")  # both lines are erased


def test_a_bar_of_unknown_length_says_what_is_waited_for(terminal: io.StringIO) -> None:
    with bars.bar("starting workers", 0):
        bars._screen._progress.refresh()  # type: ignore[union-attr]
    assert "starting workers" in terminal.getvalue()


def test_lines_in_a_file_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(bars.time, "monotonic", lambda: now)
    with bars.bar("pretrain", 1000, done=100) as shown:
        for done in range(110, 1001, 10):
            now += 1
            shown.move(done, {"loss": 1.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 90 // bars.LINE_SECONDS
    assert lines[0] == "pretrain: 400 of 1,000 clips (40 %), loss 1.5, 10 clips/s, 60 s left"
    assert all(
        re.fullmatch(r"pretrain: [\d,]+ of 1,000 clips \(\d+ %\), loss 1.5, 10 clips/s, \d+ s left", x) for x in lines
    )


def test_a_short_task_says_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.bar("predict", 3, "file") as shown:
        shown.advance(3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "5 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (1e6, "277.8 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert bars.duration(seconds) == said
