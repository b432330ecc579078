"""What is written, measured or noted beside a training takes none of its steps' time and can't end it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raymae.features.store import FeatureStore
from raymae.storage import events
from raymae.storage.events import EventWriter, read_events, write_event
from raymae.storage.folder import EVENTS, Folder
from raymae.training import profiling, run_stage
from raymae.training.guards import watchdog
from raymae.training.profiling import device_use
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

SHORT = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, report_steps=1, probe_clips=0))


@dataclass(frozen=True)
class Slow(Folder):
    """Notes the thread of each write, and takes its time for events, or refuses them."""

    seconds: float = 0.0
    refuses: bool = False

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, slowly or not at all."""
        threads.setdefault(name.split("/")[0], set()).add(threading.current_thread().name)
        if name.startswith(EVENTS):
            time.sleep(self.seconds)
            if self.refuses:
                raise PermissionError("the storage says no")
        super().write_bytes(name, content)


threads: dict[str, set[str]] = {}


@pytest.fixture(autouse=True)
def _clear() -> None:
    threads.clear()
    torch.set_num_threads(1)


def test_no_step_waits_for_an_event(store: FeatureStore, tmp_path: Path) -> None:
    spec = replace(make_spec(store, tmp_path, config=SHORT), artifact=Slow(str(tmp_path), seconds=0.05))
    assert run_stage.run_stage(spec, BareSession(store, spec.artifact))
    assert threading.main_thread().name not in threads[EVENTS]
    found = read_events(spec.artifact)
    assert [event["step"] for event in found] == list(range(1, spec.order().steps + 1))


def test_events_that_cannot_be_written_end_nothing(
    store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(make_spec(store, tmp_path, config=SHORT), artifact=Slow(str(tmp_path), refuses=True))
    assert run_stage.run_stage(spec, BareSession(store, spec.artifact))
    assert spec.artifact.is_done()
    assert "the event of step 1 can't be written: the storage says no" in caplog.text


def test_events_are_written_in_their_order_and_all_of_them(tmp_path: Path) -> None:
    writer = EventWriter(Folder(str(tmp_path)))
    for step in range(200):
        writer.write({"step": step, "time": 0.0, "metrics": {}})
    writer.so_far()()
    assert [event["step"] for event in read_events(Folder(str(tmp_path)))] == list(range(200))
    EventWriter(Folder(str(tmp_path))).so_far()()


def test_many_events_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    for step in range(40):
        write_event(folder, {"step": step, "time": 0.0, "metrics": {}})
    at_once, most, lock = [0], [0], threading.Lock()
    real = Folder.read_json

    def read(self: Folder, name: str, checked: bool = False) -> Any:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        with lock:
            at_once[0] -= 1
        return real(self, name, checked)

    monkeypatch.setattr(Folder, "read_json", read)
    assert [event["step"] for event in read_events(folder, after=3)] == list(range(4, 40))
    assert 1 < most[0] <= events.READERS


def test_the_watchdog_is_patient_while_a_stage_finishes(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation takes less than the limit, all of them together more."""
    beats: list[int] = []
    spec = make_spec(store, tmp_path, config=SHORT)
    real = watchdog.Watchdog.beat
    monkeypatch.setattr(watchdog.Watchdog, "beat", lambda self, step: (beats.append(step), real(self, step))[-1])
    assert run_stage.run_stage(spec, BareSession(store, spec.artifact))
    last = spec.order().steps
    assert beats.count(last) >= 7
    assert beats == sorted(beats)


def test_a_gpu_whose_use_cannot_be_asked_for_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(device: object) -> int:
        raise RuntimeError("NVML: not supported")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    monkeypatch.setattr(profiling, "find_spec", lambda name: object())
    device = torch.device("cuda:7")
    assert [device_use(device) for _ in range(2)] == [{"gpu_memory_gb": 1.0}] * 2
    assert caplog.messages == ["the use of cuda:7 isn't reported: NVML: not supported"]
