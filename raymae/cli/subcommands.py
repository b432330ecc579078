"""The subcommands of a job, and the jobs as subcommands of `raymae`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymae.cli.help import command_help, list_of_jobs, show
from raymae.cli.job import CONSOLE, FLAGS, Command, Job, called
from raymae.cli.main import start
from raymae.cli.mistakes import refuse
from raymae.config import nearest
from raymae.config.recipes import RECIPES

COMPLETION = "--completion"


def choose(
    command: Command, arguments: Sequence[str], subcommands: Mapping[str, str], renamed: Mapping[str, str]
) -> str:
    """The subcommand that a command line begins with; prints the help, or exits with a message, where there is none."""
    if not arguments or arguments[0] in FLAGS:
        show(command_help(command, subcommands))
    name = arguments[0]
    if name in renamed:
        refuse(f"the subcommand {name} is now called {renamed[name]}")
    if name not in subcommands:
        hint = nearest(name, subcommands)
        valid = ", ".join(subcommands)
        refuse(f"{called(command.name)} {name}: no such subcommand{hint}; valid: {valid}; it comes before all options")
    return name


def choose_job(jobs: Mapping[str, Job | Command], arguments: list[str]) -> None:
    """Run the job that a command line of `raymae` begins with."""
    if not arguments or arguments[0] in FLAGS:
        show(list_of_jobs(jobs))
    first, rest = arguments[0], arguments[1:]
    if first.partition("=")[0] == COMPLETION:
        from raymae.cli.completion import script

        show(script(jobs, first.partition("=")[2] or "".join(rest[:1])))
    name = first.replace("-", "_")
    if name not in jobs:
        hint = f" (a recipe comes behind the job: {CONSOLE} pipeline {first})" if first in RECIPES else ""
        refuse(f"unknown job {first!r}{hint or nearest(name, jobs)}; valid: {', '.join(jobs)}")
    start(jobs[name], rest)


def first_line(doc: str | None) -> str:
    """The first sentence of a docstring, in one line."""
    return " ".join((doc or "").split("\n\n")[0].split())
