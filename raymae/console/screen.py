"""What jobs print: styled on a terminal and in a notebook, the same words without style in a file or in CI."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
SHADES = {"dim": "2", "bold": "1", "yellow": "33", "bold red": "1;31"}
"""The styles that are used, as ANSI's codes."""


@cache
def console() -> Console:
    """The terminal, notebook or file that standard output is; rich looks at NO_COLOR and FORCE_COLOR."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def is_live() -> bool:
    """Whether somebody watches, so that lines may move."""
    return console().is_jupyter or (console().is_terminal and not console().is_dumb_terminal)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style, where the stream (standard output by default) is a terminal with colours."""
    stream = stream or sys.stdout
    coloured = console().color_system is not None and not console().no_color and stream.isatty()
    return f"\033[{SHADES[style]}m{text}\033[0m" if coloured else text


def print_markdown(text: str) -> None:
    """Print Markdown: laid out on a terminal, as it is elsewhere."""
    if not is_live():
        print(text)
        return
    from rich.markdown import Markdown

    console().print(Markdown(text), soft_wrap=False)


def print_rows(rows: Sequence[Sequence[str]], style_of: Callable[[Sequence[str]], str | None]) -> None:
    """Print rows whose columns are aligned, each in the style that `style_of` gives it, indented by two blanks."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        style = style_of(row)
        print(f"  {styled(text, style) if style else text}")


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes log lines to standard error as it is at that moment, so that they appear above progress bars."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, coloured by its level."""
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line, coloured on a terminal."""
        text, style = super().format(record), LEVEL_STYLES.get(record.levelno)
        return styled(text, style, sys.__stderr__) if style and sys.__stderr__ else text
