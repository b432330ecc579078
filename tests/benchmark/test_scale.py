"""`benchmark scale`: its parts at tiny sizes, and the simulation of a worker that waits."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from raymae.benchmark.harness import s3_server
from raymae.benchmark.scale import scale
from raymae.benchmark.scale.scale import Scale
from raymae.benchmark.scale.simulation import Storage, Worker, wait_share

STORAGE = Storage(latency=0.025, rate=90e6, request_bytes=2.3e6, requests=4.7, cpu_seconds=0.001)


def test_the_parts_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "AudioConfig", lambda: scale.TINY)
    small = Scale(clips=64, rounds=4, former_windows=2, processes=2, windows=8, late_every=100, late_rounds=4)
    result = small.run()
    assert len(result.rows) == 10
    values = result.values
    assert values["reading"]["clips"] == 4 * 512
    assert values["reading"]["requests"] >= 64
    assert 0 <= values["paced"]["wait_share"] <= 1
    assert values["many"]["windows"] == 2 * 8
    assert not values["many"]["torch"]
    assert all(row.ratio >= 0 or row.what.startswith(("throughput", "CPU")) for row in result.rows)


def test_a_worker_waits_for_what_isn_t_ahead() -> None:
    worker = Worker(windows=16, ahead=16, round_seconds=0.4)
    assert wait_share(STORAGE, worker) < 0.01
    assert wait_share(replace(STORAGE, latency=1.0), worker) > 0.5
    one_connection = wait_share(replace(STORAGE, connections=1), worker)
    assert one_connection == pytest.approx(1 - 0.4 / (16 * 5 * (0.025 + 2.3 / 90)), abs=0.1)
    late = replace(STORAGE, late_every=1000)
    assert wait_share(late, replace(worker, ahead=64)) < 0.01 < wait_share(late, worker) < 0.2


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moto", None)
    with pytest.raises(ValueError, match=r"moto.*'raymae\[test\]'"), s3_server.s3_process():
        pass
