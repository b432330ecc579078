"""What the console and the report say of a run."""

from __future__ import annotations

import sys

import pytest

from raymae.pipeline.console import headline, verdict_line
from raymae.pipeline.reports.report_facts import command, versions


def test_the_console_shows_the_first_table_without_its_figure() -> None:
    text = "# Title\n\n**verdict**\n\n## Scores\n\n| a |\n\nNote.\n\n![b](b.png)\n\n## Others\n\n| c |\n"
    assert headline(text) == "## Scores\n\n| a |\n\nNote.\n"


def test_the_verdict_is_one_line_with_the_note() -> None:
    result = {"verdict": {"sentence": "A is behind B."}, "note": "synthetic"}
    assert verdict_line(result) == "A is behind B. (synthetic)"
    assert verdict_line(result | {"note": None}) == "A is behind B."


def test_the_command_is_given_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", "small", "--data.tables", "my clips.csv", "--storage"])
    assert command() == "python jobs/evaluate.py small --data.tables 'my clips.csv' --storage"
    sys.argv.append("s3://me:secret@host/runs?token=abc")
    assert command().endswith("'s3://***@host/runs?token=***'")


def test_versions_are_named() -> None:
    assert {"python", "torch", "numpy"} <= set(versions())
