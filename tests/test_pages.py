"""The Markdown pages: their links, the files that they name, and their commands with every option."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from raymae.cli.arguments import Settings
from raymae.cli.artifacts import SUBCOMMANDS as ARTIFACTS
from raymae.cli.benchmark import PARTS, part_of
from raymae.cli.jobs import JOBS
from raymae.cli.mistakes import by_name, name_of
from raymae.cli.options import options_of
from raymae.config.recipes import RECIPES
from tests.support.paths import ROOT

FOLDERS = (".github", "jobs", "raymae", "tests")
"""Folders of the repository whose pages are tested, beside those at its top."""
PAGES = sorted([*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))])
README = ROOT / "README.md"
MOST_LINES = 250
"""Of README.md."""
MARKED = {"run": "jobs/pipeline.py synthetic", "test": "-m pytest"}
"""What the marked commands of README.md run; CI takes the second one from there."""
SUBCOMMANDS = {"artifacts": ARTIFACTS, "benchmark": {name: part_of(name) for name in [*PARTS, "all"]}}
"""The jobs that take a subcommand in place of a recipe."""
PLACEHOLDER = re.compile(r"[…<>*]")

page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", without_code(page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures within the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", without_code(page.read_text()))
    return [target for pair in found for target in pair if target and not re.match(r"\w+:", target)]


def code_spans(page: Path) -> list[str]:
    """The code spans in the text of a page."""
    return re.findall(r"`([^`]+)`", without_code(page.read_text()))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every `python jobs/<name>.py …` and `raymae <name> …` of a page: the job and its arguments, no placeholders."""
    text = re.sub(r"\s*\\\n\s*|\n\s+(?=--)", " ", page.read_text())
    found = re.findall(r"python \S*jobs/(\w+)\.py([^\n`]*)", text)
    found += [one for one in re.findall(r"(?<!\S)`?raymae (\w+)([^\n`]*)", text) if one[0] in JOBS and "--" in one[1]]
    return [(job, [word for word in re.split(r" [#&|]", rest)[0].split() if word != "…"]) for job, rest in found]


@cache
def config_options() -> list[str]:
    """Every option of a job that takes a recipe."""
    return list(by_name(options_of(Settings())))


def subcommand_options(part: type) -> set[str]:
    """The options of a subcommand; of a section its name."""
    return {item.name.replace("_", "-") for item in fields(part)}


@page_of
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(file), f"{target}: the page has no such heading"


@page_of
def test_files_that_are_named_exist(page: Path) -> None:
    for span in code_spans(page):
        name = span.split()[0]
        if re.match(rf"({'|'.join(map(re.escape, FOLDERS))})/", name) and not PLACEHOLDER.search(name):
            assert (ROOT / name).exists(), f"`{name}` doesn't exist"


@page_of
def test_commands_name_jobs_recipes_and_options(page: Path) -> None:
    for job, arguments in commands(page):
        shown = f"jobs/{job}.py {' '.join(arguments)}"
        assert (ROOT / f"jobs/{job}.py").is_file(), shown
        first = arguments[0] if arguments and not arguments[0].startswith("-") else None
        if job in SUBCOMMANDS:
            assert first is None or first in SUBCOMMANDS[job], shown
            known = subcommand_options(SUBCOMMANDS[job][first]) if first else set()
            options = [word for word in arguments if word.startswith("--")]
            assert all(option[2:].partition(".")[0] in known for option in options), shown
        else:
            assert first is None or first in RECIPES, shown
            options = [name_of(word) for word in arguments if word.startswith("--")]
            assert set(options) <= {*config_options(), "help"}, f"{shown}: an option of this command doesn't exist"


@page_of
def test_options_in_the_text_exist(page: Path) -> None:
    known = {*config_options(), "help", "completion", "faults", "s3"}.union(
        *(subcommand_options(part) for parts in SUBCOMMANDS.values() for part in parts.values())
    )
    for span in code_spans(page):
        words = span.split() if span.startswith("--") else []
        for name in [word[2:].split("=")[0] for word in words if word.startswith("--")]:
            section = name.removesuffix("*").removesuffix("…")
            assert name in known or (section != name and any(one.startswith(section) for one in known)), f"--{name}"


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("marker", MARKED)
def test_readme_has_the_marked_command(marker: str) -> None:
    (command,) = re.findall(rf"^<!-- {marker} -->\n```sh\n(.+)\n```$", README.read_text(), re.MULTILINE)
    assert MARKED[marker] in command


def test_readme_lists_every_job_and_package() -> None:
    text = README.read_text()
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert set(re.findall(r"^\| \[`(\w+)`\]\(jobs/README\.md#\w+\)", text, re.MULTILINE)) == jobs
    packages = {path.parent.name for path in (ROOT / "raymae").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE)) == packages
