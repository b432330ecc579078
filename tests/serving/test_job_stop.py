"""jobs/serve.py on a cluster, as a job that `ray job stop` ends: nothing of it is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.serving.test_http_on_ray import free_port, listeners
from tests.support.audio_files import encoded
from tests.support.nodes import RAY, ROOT, Nodes, wait_until
from tests.support.serving import ask, write_small_classifier

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def answers(port: int) -> bool:
    """Whether somebody classifies recordings at a port."""
    try:
        return ask(port, encoded())[0] == 200
    except OSError:
        return False


def test_a_stopped_job_serves_no_longer(tmp_path: Path) -> None:
    folder, port = write_small_classifier(tmp_path / "classifier"), free_port()
    with Nodes(tmp_path, cpus=(2,)) as nodes:

        def job(*words: str) -> str:
            command = [RAY, "job", words[0], "--address", nodes.job_server, *words[1:]]
            done = subprocess.run(command, cwd=ROOT, env=nodes.environment, capture_output=True, text=True, timeout=240)
            return done.stdout + done.stderr

        command = (
            "python",
            str(ROOT / "jobs/serve.py"),
            "small",
            "--serve.model",
            folder.url,
            "--serve.port",
            str(port),
        )
        for _ in range(2):  # what the first leaves behind must not hinder the second
            name = f"serve-{_}"
            job("submit", "--no-wait", "--submission-id", name, "--", *command)
            wait_until(lambda: answers(port), job("logs", name))
            job("stop", name)
            wait_until(lambda: not listeners(port), "the end of the server", 60)
