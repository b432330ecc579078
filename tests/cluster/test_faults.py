"""A cluster of real nodes whose processes are killed: only the steps after the last checkpoint are lost.

A pre-training, submitted as a job, survives it and has the result of an uninterrupted run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.scale.recovery import title
from tests.support.job_run import Run, ask, assert_as_undisturbed, new_run
from tests.support.nodes import Nodes, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two nodes, each with room for one training worker, that require a token."""
    with Nodes(tmp_path_factory.mktemp("nodes"), token=True) as found:
        yield found


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Run:
    """The run, before its first step."""
    return new_run(nodes, tmp_path_factory.mktemp("run"))


def driver_of(job: subprocess.Popen[bytes], nodes: Nodes) -> int:
    """The process of a job's driver, which the head runs."""
    for pid in process_tree(nodes.head.pid):
        words = title(pid).split(b"\0")
        if words[0].endswith(b"python") and b"jobs/pretrain.py" in words:
            return pid
    raise LookupError("the job has no driver")


def test_a_run_survives_the_loss_of_a_worker_a_node_and_its_driver(run: Run, nodes: Nodes, tmp_path: Path) -> None:
    job = run.submit("first")
    run.on(20)
    stranger = ask(nodes, "list", RAY_AUTH_MODE="disabled")
    assert stranger.returncode != 0
    assert "token" in stranger.stderr.lower()

    os.kill(nodes.training_workers()[0], signal.SIGKILL)  # another replaces it
    run.on(20)
    nodes.kill(nodes.nodes[1])  # nothing replaces it: one worker resumes, once it is given up
    with run.undisturbed(tmp_path) as alone:
        run.on(20)
        os.kill(driver_of(job, nodes), signal.SIGKILL)
        assert job.wait(120) == 1
        run.on(0)
        nodes.add()
        job = run.submit("second")
        wait_until(lambda: len(nodes.training_workers()) == 2, "the second worker")
        assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)


def test_a_run_leaves_a_draining_node_and_can_be_stopped(run: Run, nodes: Nodes, tmp_path: Path) -> None:
    job = run.submit("third")
    run.on(20)
    nodes.drain(nodes.nodes[1], seconds=12)
    wait_until(lambda: "workers: 1, 2 before" in run.log, "the preemption", 300)
    nodes.kill(nodes.nodes[1])
    run.on(1)
    with nodes.training_halted():
        nodes.add()  # both resume from a checkpoint
    wait_until(lambda: "workers: 2, 1 before" in run.log, "the second worker", 300)
    run.on(20)

    assert ask(nodes, "stop", "third").returncode == 0
    job.wait(120)  # not a failure, to the client
    assert "was stopped" in ask(nodes, "status", "third").stdout
    run.on(0)
    with run.undisturbed(tmp_path) as alone:
        job = run.submit("fourth")
        assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)
