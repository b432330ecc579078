"""Ray's real autoscaler, with nodes of this machine: a run asks for its nodes, waits for them, grows and shrinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.job_run import ask, assert_as_undisturbed, new_run
from tests.support.nodes import Autoscaled, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Autoscaled]:
    """A head that runs nothing, and an autoscaler for nodes with room for one training worker."""
    types = {"trainer": {"CPU": 2.0}, "accelerated": {"CPU": 1.0, "GPU": 1.0}}
    with Autoscaled(tmp_path_factory.mktemp("nodes"), types) as found:
        yield found


def test_a_run_grows_and_shrinks_with_its_nodes(nodes: Autoscaled, tmp_path: Path) -> None:
    run = new_run(nodes, tmp_path, compute__use_gpu=False)
    nodes.allow(trainer=0)
    job = run.submit("grows")
    wait_until(lambda: "waiting for room for 1 of 1 workers that decode audio" in run.log, "the line", 120)
    nodes.allow(trainer=2)
    run.on(20)
    assert len(nodes.training_workers()) == 2
    nodes.allow(trainer=1)  # one is taken away
    wait_until(lambda: "workers: 1, 2 before" in run.log, "the smaller group", 300)
    run.on(20)
    nodes.allow(trainer=2)  # the run asks for it all the time
    with run.undisturbed(tmp_path / "alone") as alone:
        wait_until(lambda: "workers: 2, 1 before" in run.log, "the larger group", 300)
        run.on(0)
    assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)


def test_a_job_waits_for_gpus_that_do_not_stand_yet(nodes: Autoscaled, tmp_path: Path) -> None:
    run = new_run(nodes, tmp_path)
    nodes.allow(trainer=2, accelerated=0)
    job = run.submit("waits")
    told = "waiting for room for 2 of 2 training workers (1 GPU each)"
    wait_until(lambda: told in run.log, "the line", 240)
    assert "the cluster can start nodes with GPUs" in run.log
    assert job.poll() is None
    assert ask(nodes, "stop", "waits").returncode == 0
    job.wait(120)


def test_no_node_can_hold_a_worker(nodes: Autoscaled, tmp_path: Path) -> None:
    run = new_run(nodes, tmp_path, compute__use_gpu=False, compute__cpus_per_worker=64)
    nodes.allow(trainer=2)
    assert run.submit("large").wait(300) == 1
    assert "can hold training workers of 64 CPUs each: ask for less, or add a type of nodes that can" in run.log
