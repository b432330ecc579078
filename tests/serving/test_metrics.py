"""Counts for Prometheus: of all replicas together, also those of one that has died."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from raymae.serving.http import metrics
from raymae.serving.http.metrics import STALE_SECONDS, Board, Totals
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.serving import Held, ask, serving, until, write_small_classifier

LIMITS = ServeConfig(max_mb=1, queue=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_small_classifier(tmp_path_factory.mktemp("classifier"))


def read(port: int) -> dict[tuple[str, ...], float]:
    """The values at /metrics by name and the values of their labels."""
    status, text, headers = ask(port, path="/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_responses_are_counted_by_status_and_answers_timed(folder: Any) -> None:
    with serving(Predictor(folder, threads=1), LIMITS) as (port, _):
        for _ in range(3):
            assert ask(port, encoded(n_samples=2 * TINY_AUDIO.n_samples))[0] == 200
        ask(port, b"<html>")
        ask(port, bytes(1_000_001))
        ask(port, path="/nowhere-17")
        ask(port, path="/health", host="attacker.example")
        found = read(port)
    responses = {key[1:]: value for key, value in found.items() if key[0] == "raymae_http_responses_total"}
    assert responses == {
        ("POST", "/", "200"): 3,
        ("POST", "/", "400"): 1,
        ("POST", "/", "413"): 1,
        ("GET", "other", "404"): 1,
        ("GET", "/health", "403"): 1,
    }
    assert found["raymae_windows_total",] == 6
    assert found["raymae_request_seconds_count",] == found["raymae_request_seconds_bucket", "+Inf"] == 3
    assert 0 < found["raymae_request_seconds_sum",] < 60
    steps = [value for (name, *_), value in found.items() if name == "raymae_request_seconds_bucket"]
    assert steps == sorted(steps)


def test_internal_errors_are_counted(folder: Any) -> None:
    class Broken(Predictor):
        def of_clips(self, clips: Any) -> Any:
            raise RuntimeError

    with serving(Broken(folder, threads=1), LIMITS) as (port, _):
        ask(port, encoded())
        assert read(port)["raymae_http_responses_total", "POST", "/", "500"] == 1


def test_the_queue_and_what_it_refuses(folder: Any) -> None:
    held = Held(folder)
    held.network.clear()
    with serving(held, LIMITS) as (port, service), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, port, encoded()) for _ in range(2)]
        until(lambda: service.ongoing == 2)
        assert ask(port, encoded())[0] == 503
        found = read(port)
        held.network.set()
        assert [one.result()[0] for one in asked] == [200, 200]
        assert read(port)["raymae_queue_length",] == 0
    assert found["raymae_queue_length",] == 2
    assert found["raymae_http_responses_total", "POST", "/", "503"] == 1


@pytest.fixture
def two(folder: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Ports of two replicas that share a board."""
    monkeypatch.setattr(metrics, "SHARE_SECONDS", 0.05)
    board = Board()

    async def report(*what: Any) -> Totals:
        await asyncio.sleep(0.01)
        return board.report(*what)

    with ExitStack() as stack:
        predictor = Predictor(folder, threads=1)
        yield [stack.enter_context(serving(predictor, LIMITS, report))[0] for _ in range(2)]


def test_either_replica_reports_what_both_have_counted(two: list[int]) -> None:
    body = encoded()
    for number, port in enumerate((two[0], two[0], two[1])):
        assert ask(port, body)[0] == 200, number

    def counted(port: int) -> float:
        return read(port).get(("raymae_http_responses_total", "POST", "/", "200"), 0)

    for port in two:
        until(lambda port=port: counted(port) == 3)  # type: ignore[misc]
    assert ask(two[1], body)[0] == 200
    assert counted(two[1]) == 4, "its own are of now"
    for _ in range(3):
        until(lambda: counted(two[0]) == 4)
        assert read(two[0])["raymae_windows_total",] == read(two[1])["raymae_windows_total",]


def test_a_dead_replica_keeps_its_counts_and_loses_its_queue() -> None:
    now = [0.0]
    board = Board(lambda: now[0])
    board.report("first", Counter({("windows",): 5}), 2)
    assert board.report("second", Counter({("windows",): 7}), 1).queue == 3
    now[0] = STALE_SECONDS
    found = board.report("second", Counter({("windows",): 8}), 1)
    assert (found.counts["windows",], found.queue) == (13, 1)


def test_a_long_request_keeps_reporting(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the queue of a replica that works on one would count as empty."""
    monkeypatch.setattr(metrics, "SHARE_SECONDS", 0.01)
    monkeypatch.setattr(metrics, "REPEAT_SECONDS", 0.01)
    reports: list[int] = []
    board = Board()

    async def report(*what: Any) -> Totals:
        reports.append(what[2])
        return board.report(*what)

    held = Held(folder)
    held.network.clear()
    with serving(held, LIMITS, report) as (port, service), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, port, encoded())
        until(lambda: reports.count(1) > 5)
        held.network.set()
        assert asked.result()[0] == 200
        until(lambda: reports[-1] == 0 and service.metrics._sharing is not None and service.metrics._sharing.done())
