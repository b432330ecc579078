"""What a command line knows of a job: its purpose, examples, own settings, and what it calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymae.config import Config

CONSOLE = "raymae"
"""The command that has every job as a subcommand."""
FLAGS = ("-h", "--help")
"""What asks for help."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A job with subcommands of its own."""

    name: str
    purpose: str
    """A sentence."""
    examples: tuple[str, ...]
    """Arguments of commands that show its use."""
    run: Callable[[Command, list[str]], None]
    """Runs it with the arguments of a command line; imports what it needs when it is called."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that takes a recipe and settings."""

    name: str
    purpose: str
    """A sentence."""
    examples: tuple[str, ...]
    """Arguments of commands that show its use."""
    own: tuple[str, ...]
    """The settings that its help shows first: paths, or sections as "pretrain.*"."""
    run: Callable[[Config], dict[str, Any]]
    """Maps the settings to what `--json` writes; imports what it needs when it is called."""


def called(name: str) -> str:
    """A job as this process was called: "raymae pretrain", or "python jobs/pretrain.py"."""
    script = Path(sys.argv[0])
    return f"python jobs/{name}.py" if script.suffix == ".py" and script.stem == name else f"{CONSOLE} {name}"
