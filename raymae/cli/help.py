"""The help of the command line: of a job with its own settings, of a section, of everything, and as Markdown."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping

from raymae.cli.arguments import DEFAULT_RECIPE, Settings, base, divided, settings_of
from raymae.cli.job import CONSOLE, FLAGS, Command, Job, called
from raymae.cli.mistakes import by_name, meant, name_of, refuse
from raymae.cli.options import Option, options_of, sections_of
from raymae.config import nearest
from raymae.config.recipes import RECIPES

ALL = "all"
WIDEST = 120
"""Columns."""
NAME_WIDTH = 36
"""Columns of an option and its type in a list."""


def asked(arguments: list[str]) -> str | None:
    """What a command line asks the help about: a section, an option or "all", "" for the job; None for nothing."""
    for place, word in enumerate(arguments):
        flag, _, topic = word.partition("=")
        if flag in FLAGS:
            behind = arguments[place + 1 : place + 2]
            return topic or (behind[0] if behind and behind[0] not in FLAGS else "")
    return None


def job_help(job: Job, arguments: list[str]) -> str:
    """The answer to a command line with `--help`; exits with a message where there is no such topic."""
    topic = asked(arguments) or ""
    flag = next(place for place, word in enumerate(arguments) if word.partition("=")[0] in FLAGS)
    named, words = divided(arguments[:flag])
    name, recipe = base(named, words)
    settings = settings_of(recipe, words)
    options, sections = list(options_of(settings)), dict(sections_of(settings))
    if not topic:
        return overview(job, options, name)
    path = name_of(topic).replace("-", "_")
    found = [one for one in options if topic == ALL or path == one.path or one.path.startswith(f"{path}.")]
    if not found:
        known = [*map(dashed, sections), ALL]
        hint = nearest(name_of(topic), known) or meant(name_of(topic), list(by_name(options)))
        refuse(f"--help {topic}: no such section or option{hint}; sections: {', '.join(known)}")
    return "\n".join([f"Settings with the defaults of recipe {name}.", "", *full(found, sections)])


def overview(job: Job, options: list[Option], recipe: str) -> str:
    """A job's purpose, examples and own settings, a line for each."""
    width = columns()
    own = [one for pattern in job.own for one in options if matches(one, pattern)]
    sections = ", ".join(dict.fromkeys(dashed(one.section.partition(".")[0]) for one in options if one.section))
    recipes = ", ".join(RECIPES)
    return "\n".join(
        [
            *wrapped(job.purpose),
            "",
            f"usage: {called(job.name)} [RECIPE] [--OPTION VALUE …]",
            *wrapped(f"recipes: {recipes} (default {DEFAULT_RECIPE})"),
            "",
            "Examples:",
            *(f"  {called(job.name)} {example}" for example in job.examples),
            "",
            f"Its settings (defaults of recipe {recipe}):",
            *(line(one, width) for one in dict.fromkeys(own)),
            "",
            *wrapped(f"More: --help SECTION for one of {sections}; --help all for everything."),
        ]
    )


def command_help(command: Command, subcommands: Mapping[str, str]) -> str:
    """The help of a job with subcommands: what each does, in a line."""
    width = max(map(len, subcommands)) + 2
    return "\n".join(
        [
            *wrapped(command.purpose),
            "",
            f"usage: {called(command.name)} SUBCOMMAND [--OPTION VALUE …]",
            "",
            "Examples:",
            *(f"  {called(command.name)} {example}" for example in command.examples),
            "",
            "Subcommands (each has its own --help):",
            *(one for name, does in subcommands.items() for one in listed(f"  {name:{width}s}", does)),
        ]
    )


def dashed(section: str) -> str:
    """The path of a section as its options are typed: pseudo-label."""
    return section.replace("_", "-")


def matches(option: Option, pattern: str) -> bool:
    """Whether a pattern of `Job.own` names an option."""
    return option.path == pattern or (pattern.endswith(".*") and option.section == pattern[:-2])


def line(option: Option, width: int) -> str:
    """An option in one line: its name, type, default and the first sentence of its documentation."""
    kind = option.metavar if len(option.metavar) + len(option.name) < NAME_WIDTH - 3 else ""
    head = f"  {f'{option.name} {kind}':{NAME_WIDTH}s}"
    default = f" ({option.shown_default})" if option.shown_default else ""
    sentence = re.split(r"(?<=\w\w)[.;:] ", option.doc)[0].rstrip(".")
    if sentence in option.choices:  # its documentation explains one choice after the other
        sentence = ", ".join(option.choices)
    return head + shortened(sentence, width - len(head) - len(default)) + shortened(default, max(12, width - len(head)))


def shortened(text: str, width: int) -> str:
    """A text cut to a width."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def full(options: Iterable[Option], sections: Mapping[str, str]) -> list[str]:
    """Options with their whole documentation, under the headings of their sections."""
    lines, before = list[str](), None
    for option in options:
        if option.section != before:
            before = option.section
            doc = sections.get(option.section, "options that belong to no section")
            lines += [f"{dashed(option.section) or 'general'}: {doc}", ""]
        lines += wrapped(head(option), "  ", "      ")
        lines += [*wrapped(option.doc, "      ", "      "), ""]
    return lines


def head(option: Option) -> str:
    """An option with its type and default."""
    name = f"{option.name}, {option.off}" if option.is_switch else f"{option.name} {option.metavar}"
    return f"{name} (default {option.shown_default})" if option.shown_default else name


def columns() -> int:
    """The width to write in."""
    return max(80, min(WIDEST, shutil.get_terminal_size().columns))


def list_of_jobs(jobs: Mapping[str, Job | Command]) -> str:
    """The help of the command that has every job as a subcommand."""
    width = max(map(len, jobs)) + 2
    names = (line for name, job in jobs.items() for line in listed(f"  {name:{width}s}", job.purpose))
    return "\n".join(
        [
            "Masked autoencoders for acoustic scenes, trained on Ray.",
            "",
            f"usage: {CONSOLE} JOB [RECIPE] [--OPTION VALUE …]",
            "",
            *names,
            "",
            f"{CONSOLE} JOB --help documents a job.",
            f"source <({CONSOLE} --completion bash) completes its words in bash; zsh likewise.",
        ]
    )


def wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    """A text in lines, the first and the others indented; names of options stay whole."""
    return textwrap.wrap(text, columns(), initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def listed(start: str, text: str) -> list[str]:
    """A text behind the start of its first line, indented as far."""
    return wrapped(text, start, " " * len(start))


# As Markdown --------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """Every option of every section with its type, default and documentation: `jobs/options.md`."""
    settings = Settings()
    sections = {"": "Options that belong to no section."} | dict(sections_of(settings))
    lines = [
        "# Options",
        "",
        "Every setting of the jobs that take a recipe, by section, with the defaults that a recipe may replace. The "
        "same is printed by `--help SECTION` and `--help all`.",
        "",
        "This page is written by `python -m raymae.cli.help > jobs/options.md`.",
    ]
    for section, doc in sections.items():
        lines += ["", f"## {section or 'general'}", "", escaped(doc), ""]
        lines += [item(one) for one in options_of(settings) if one.section == section]
    return "\n".join(lines) + "\n"


def item(option: Option) -> str:
    """An option as an item of a list."""
    name = f"`{option.name}`, `{option.off}`" if option.is_switch else f"`{option.name} {option.metavar}`"
    default = f" (default `{option.shown_default}`)" if option.shown_default else ""
    return f"- {name}{default}: {escaped(option.doc)}"


def escaped(text: str) -> str:
    """Text in which Markdown finds no emphasis and no HTML."""
    return re.sub(r"(`[^`]*`)|([*<])", lambda found: found[1] or f"\\{found[2]}", text)


def show(text: str) -> None:
    """Print a help and end; a pager that is closed early is no error."""
    try:
        sys.stdout.write(text.rstrip() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()
    sys.exit(0)


if __name__ == "__main__":
    sys.stdout.write(markdown())
