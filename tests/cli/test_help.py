"""What the jobs say of themselves: their help, the reference page, completion, and how little is imported for it."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
import tyro

from raymae.cli import artifacts, benchmark
from raymae.cli.arguments import Settings, parse
from raymae.cli.completion import script
from raymae.cli.help import markdown
from raymae.cli.job import Job
from raymae.cli.jobs import JOBS
from raymae.cli.options import options_of
from raymae.cli.subcommands import choose_job
from raymae.config.recipes import RECIPES
from tests.support.paths import ROOT

MOST_LINES = 80
HEAVY = {"torch", "ray", "mlflow", "pandas", "sklearn", "numba"}
PAGE = ROOT / "jobs/options.md"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `raymae` prints to a question for help."""
    with pytest.raises(SystemExit) as end:
        choose_job(JOBS, list(words))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_every_script_is_a_job_and_every_job_has_a_script() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_shows_purpose_examples_and_its_own_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    text, job = capsys.readouterr().out, JOBS[name]
    assert len(text.splitlines()) <= MOST_LINES
    assert " ".join(text.split()).startswith(job.purpose)
    assert len(job.examples) >= 3
    assert all(f"python jobs/{name}.py {example}" in text for example in job.examples)
    if isinstance(job, Job):
        assert all(recipe in text for recipe in RECIPES)
        for pattern in job.own:
            assert f"--{pattern.removesuffix('*').replace('_', '-')}" in text, pattern
    monkeypatch.setattr(sys, "argv", ["/usr/bin/raymae"])
    assert f"raymae {name} {job.examples[0]}" in said(capsys, name, "-h")


@pytest.mark.parametrize("name", JOBS)
def test_the_examples_in_the_help_are_valid(name: str) -> None:
    job = JOBS[name]
    for example in job.examples:
        first, *rest = example.split()
        if isinstance(job, Job):
            parse([first, *rest])
        else:
            part: Any = benchmark.part_of(first) if name == "benchmark" else artifacts.SUBCOMMANDS[first]
            tyro.cli(part, args=rest)


@pytest.mark.parametrize("arguments", [["--help", "all"], ["small", "--help", "all"], ["--seed", "3", "--help=all"]])
def test_help_all_documents_every_field(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"\W", "", said(capsys, "pipeline", *arguments))
    for option in options_of(Settings()):
        assert re.sub(r"\W", "", option.name) in text, option
    trees = [ast.parse(path.read_text()) for path in (ROOT / "raymae" / "config").glob("*.py")]
    sections = (one for tree in trees for one in tree.body if isinstance(one, ast.ClassDef))
    for node in (one for one in sections if one.name.endswith("Config")):
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                words = re.sub(r"\W", "", str(doc.value.value))
                assert words in text or field.target.id == "recipe", f"{node.name}.{field.target.id}"  # type: ignore


def test_every_setting_is_documented() -> None:
    assert [one.path for one in options_of(Settings()) if not one.doc] == []


@pytest.mark.parametrize(
    ("topic", "shown", "hidden"),
    [
        ("pseudo-label", "--pseudo-label.coverage", "--pretrain.epochs"),
        ("finetune", "--finetune.augment.eq-p", "--pretrain.augment.eq-p"),
        ("pretrain.augment", "--pretrain.augment.eq-p", "--pretrain.epochs"),
        ("model.mask-ratio", "REMOVED", "--model.depth"),
    ],
)
def test_help_of_a_section_or_an_option(
    topic: str, shown: str, hidden: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "pretrain", "--help", topic)
    assert shown in text
    assert hidden not in text


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--pretrain.epochs FLOAT (default 250)" in said(capsys, "pretrain", "small", "--help", "pretrain")


def test_help_of_an_unknown_section_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        choose_job(JOBS, ["pretrain", "--help", "finetun"])
    assert end.value.code == 2
    assert "--help finetun: no such section or option (did you mean finetune?)" in capsys.readouterr().err


def test_the_reference_page_is_what_its_command_writes() -> None:
    assert PAGE.read_text() == markdown(), "write it anew: python -m raymae.cli.help > jobs/options.md"


def test_raymae_lists_the_jobs_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(said(capsys, "--help").split())
    assert all(f" {name} {job.purpose}" in text for name, job in JOBS.items())
    assert said(capsys) == said(capsys, "-h")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretain small", "unknown job 'pretain' (did you mean pretrain?)"),
        ("small --data.tables a.csv", "a recipe comes behind the job: raymae pipeline small"),
        ("artifacts list", "raymae artifacts list: no such subcommand (did you mean ls?); valid: ls, verify"),
        ("artifacts seen", "the subcommand seen is now called trained-on"),
        ("benchmark frontend", "no such subcommand (did you mean front-end?)"),
        ("--completion", "--completion needs the name of the shell, bash or zsh"),
    ],
)
def test_a_wrong_job_or_subcommand(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        choose_job(JOBS, words.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


ANSWERS = """
import runpy, sys
for script in sys.argv[1:]:
    for words, status in (["--help"], 0), (["--pretrain.epoch", "3"], 2), (["smal"], 2), (["small", "--seed", "x"], 2):
        sys.argv = [script, *words]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert end.code == status, (script, words, end.code)
        else:
            raise AssertionError((script, words))
print("imported:", *sys.modules)
"""


def test_an_answer_imports_nothing_heavy() -> None:
    """Help and the answers to wrong command lines of every job, in one process."""
    scripts = [str(ROOT / f"jobs/{name}.py") for name in JOBS]
    done = subprocess.run([sys.executable, "-c", ANSWERS, *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = done.stdout.splitlines()[-1].split()
    assert "raymae.cli.help" in imported
    assert not HEAVY & set(imported)


BASH = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=($WORDS); [ "${WORDS% }" = "$WORDS" ] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_raymae; echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("raymae pre", "prepare pretrain predict"),
        ("raymae pretrain s", "synthetic small"),
        ("raymae pretrain small --model.mask-b", "--model.mask-block --model.mask-block-surplus"),
        ("raymae pretrain small --data.no-ch", "--data.no-check"),
        ("raymae pretrain small --model.decoder ", "local global light conv"),
        ("raymae pretrain --help pseudo", "pseudo-label"),
        ("raymae pretrain small --seed ", ""),
        ("raymae artifacts ", ""),
    ],
)
def test_bash_completes_jobs_recipes_options_and_choices(words: str, found: str) -> None:
    done = subprocess.run(
        ["bash", "-euc", BASH], env={**os.environ, "SCRIPT": script(JOBS, "bash"), "WORDS": words},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stderr, done.stdout.split()) == ("", found.split())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_reads_the_script() -> None:
    subprocess.run(["zsh", "-fec", f"{script(JOBS, 'zsh')}; whence _raymae"], check=True)


WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes inherit that it is ignored
from raymae.cli import main as cli
from tests.support.jobs import job_of
cli.start(job_of(lambda config: (print("it runs", flush=True), time.sleep(60))), sys.argv[1:])
"""


def test_a_job_begins_with_a_line_and_ends_at_ctrl_c_with_the_command_that_resumes() -> None:
    command = [sys.executable, "-c", WAITING, "small", "--storage", "my runs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdout.readline() == "pretrain small: storage my runs\n"
        assert process.stdout.readline() == "it runs\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines() == [
        "interrupted; what is finished is kept, and this resumes the rest: raymae pretrain small --storage 'my runs'"
    ]
