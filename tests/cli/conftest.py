"""What the tests of the command line share."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymae.cluster import connect
from tests.support.paths import ROOT

Run = Callable[..., tuple[Any, str]]


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    log = logging.getLogger("raymae")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a job that has to end at once, before Ray, MLflow or the plan; returns exit status and message."""
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    for name in ("raymae.tracking.tracker", "raymae.pipeline.plan.estimate"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)

    def call(job: Any, *arguments: str) -> tuple[Any, str]:
        script = ROOT / "jobs" / f"{job}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        printed = capsys.readouterr()
        assert printed.out.count("\n") <= 1  # the line with which a job begins
        return (1, end.value.code) if isinstance(end.value.code, str) else (end.value.code, printed.err.rstrip("\n"))

    return call
