"""Three hosts with links of their own, of which one is cut under a training and mended: nothing is lost or repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Hosts, why_not
from tests.support.job_run import assert_as_undisturbed, new_run
from tests.support.nodes import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head and two hosts with room for one training worker each."""
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def test_a_cut_link_under_a_training(hosts: Hosts, tmp_path: Path) -> None:
    run = new_run(hosts, tmp_path)
    job = run.submit("cut")
    run.on(20)
    lost = hosts.nodes[1]
    hosts.cut(3)
    wait_until(lambda: "workers: 1, 2 before" in run.log, "the smaller group", 300)
    run.on(20)
    hosts.mend(3)
    wait_until(lambda: lost.poll() is not None, "the end of the node that was given up", 120)
    hosts.kill(lost)  # what is left of it; a service would start it again
    hosts.add()
    with run.undisturbed(tmp_path / "alone") as alone:
        wait_until(lambda: "workers: 2, 1 before" in run.log, "the larger group", 300)
        run.on(0)
    assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)
