"""Ray that doesn't start, or doesn't answer, ends the job in one line, soon and not in silence."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raymae.cluster import connect
from raymae.cluster.connect import start_ray
from raymae.config import ComputeConfig


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """What each call of `ray.init` does, in order, and returns as the dashboard's address; no Ray is started."""
    calls: list[Callable[[], Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(dashboard_url=calls.pop(0)()))
    yield calls
    assert not calls


def fail() -> None:
    raise RuntimeError("The current node timed out during startup.\nThis could happen because\nof many things")


def test_a_second_try_is_made(init: list[Callable[[], Any]], caplog: pytest.LogCaptureFixture) -> None:
    init += [fail, lambda: "127.0.0.1:8265"]
    assert start_ray(ComputeConfig()) == "127.0.0.1:8265", "the dashboard's address"
    expected = "Ray doesn't start (The current node timed out during startup.); trying once more"
    assert caplog.messages == [expected]


def test_after_two_tries_one_line_names_the_logs(init: list[Callable[[], Any]]) -> None:
    init += [fail, fail]
    with pytest.raises(
        ConnectionError, match=r"^Ray doesn't start .* startup\.; its logs: /.*session_latest/logs$"
    ) as error:
        start_ray(ComputeConfig())
    assert "\n" not in str(error.value)


def test_a_long_start_says_so(
    init: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(connect, "TELL_SECONDS", 0.05)
    init.append(lambda: time.sleep(0.5))
    start_ray(ComputeConfig())
    assert sum("starting Ray for " in line and "session_latest/logs" in line for line in caplog.messages) >= 2


@pytest.fixture
def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_stale_address_is_named_at_once(
    init: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch, closed_port: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_port)
    with pytest.raises(ConnectionError, match=rf"^RAY_ADDRESS = {closed_port} doesn't answer .* unset RAY_ADDRESS to"):
        start_ray(ComputeConfig())
    with pytest.raises(
        ConnectionError, match=rf"^compute\.address = ray://{closed_port} doesn't answer .* leave compute"
    ):
        start_ray(ComputeConfig(address=f"ray://{closed_port}"))


def test_an_address_that_never_answers_is_given_up_in_time(
    init: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect.ANSWER_SECONDS == 20
    monkeypatch.setattr(connect, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: time.sleep(timeout) or fail_to_connect())
    with pytest.raises(ConnectionError, match="doesn't answer"):
        start_ray(ComputeConfig(address="10.255.255.1:6379"))


def fail_to_connect() -> None:
    raise TimeoutError("timed out")


def test_a_cluster_that_answers_and_cannot_be_joined_is_named(init: list[Callable[[], Any]]) -> None:
    init.append(fail)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            ConnectionError, match=rf"^the Ray of compute\.address = {address} can't be joined: The current"
        ):
            start_ray(ComputeConfig(address=address))


@pytest.mark.parametrize("address", ["auto", "local", None])
def test_ray_finds_its_own_clusters(init: list[Callable[[], Any]], address: str | None) -> None:
    init.append(lambda: None)
    start_ray(ComputeConfig(address=address))
