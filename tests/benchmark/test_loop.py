"""`benchmark loop`: both sides run the same stage, and only the timed steps are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymae.benchmark.speed import loop
from raymae.benchmark.speed.loop import Loop, Run, check_equal, median, run_bare, train_bare
from raymae.config.recipes import SMALL_MODEL
from raymae.storage.events import write_event
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec
from tests.support.killed import kill

TINY = Loop(steps=3, before=2, after=1, threads=1, model=replace(SMALL_MODEL, embed_dim=24, depth=1, decoder_depth=1))


def test_rate_covers_the_timed_steps(tmp_path: Path) -> None:
    spec = TINY.spec(Folder(str(tmp_path)))
    assert spec.order().steps == 6
    times = [10.0, 12.0, 13.0, 14.0, 16.0, 50.0]

    def train(spec: StageSpec) -> None:
        for step, time in enumerate(times, start=1):
            write_event(spec.artifact, {"step": step, "time": time, "metrics": {"data_wait_share": step / 10}})

    found = TINY.measure(spec, train)
    assert found.rate == pytest.approx(3 * 64 / 4)
    assert found.data_wait_share == pytest.approx(0.4)
    assert found.cpu >= 0


def test_failed_run_ends_the_watch_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "run_bare", kill)
    with pytest.raises(RuntimeError, match="status -9"):
        TINY.measure(TINY.spec(Folder(str(tmp_path))), train_bare)


def test_median_of_each_field() -> None:
    runs = [Run(1.0, 0.3, 5.0, 0.1, 9.0), Run(2.0, 0.1, 4.0, 0.3, 7.0), Run(3.0, 0.2, 6.0, 0.2, 8.0)]
    assert median(runs) == Run(2.0, 0.2, 5.0, 0.2, 8.0)


def test_zero_steps_raise() -> None:
    with pytest.raises(ValueError, match="--before"):
        replace(TINY, before=0).run()


def test_sides_are_measured_and_compared(tmp_path: Path) -> None:
    root = Folder(str(tmp_path))
    short = replace(TINY, steps=1, before=1)
    spec = short.spec(root)
    one, other = (replace(spec, artifact=root / name) for name in ("one", "other"))
    for found in (short.measure(one, run_bare), short.measure(other, run_bare)):
        assert found.rate > 0
        assert found.cpu > 0
        assert found.start_seconds > 0
        assert 0 <= found.data_wait_share <= 1
    check_equal(one.artifact, other.artifact)
    result = one.artifact.result()
    one.artifact.write_bytes("model.safetensors", b"other")
    with pytest.raises(ValueError, match="both sides"):
        check_equal(one.artifact, other.artifact)
    one.artifact.finish(result | {"trail": "other"})
    with pytest.raises(ValueError, match="both sides"):
        check_equal(one.artifact, other.artifact)
