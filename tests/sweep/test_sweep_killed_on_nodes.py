"""A sweep whose trials have two workers each, on three nodes: kills of its driver and of a node change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymae.benchmark.scale.recovery import training_workers
from raymae.storage.folder import Folder
from raymae.sweep.results import read_records
from tests.support.audio_files import write_clips, write_table
from tests.support.nodes import Nodes, wait_until
from tests.support.paths import ROOT

PATIENCE = 480
KEYS = ("changes", "score", "status")


CONTENDED = {"--sweep.cpus-per-worker": 1.5, "--sweep.max-concurrent": 2}
"""On two nodes of two CPUs there is room for one trial of two such workers: if each of two trials got one of them, both
would wait for ever."""


def command(folder: Path, name: str, address: str, more: dict[str, float]) -> list[str]:
    """A sweep of four points whose trainings take seconds."""
    fields = {
        "--storage": folder / name,
        "--json": folder / f"{name}.json",
        "--data.dataset": "table",
        "--data.tables": folder / "metadata.csv",
        "--pretrain.epochs": 2,
        "--pretrain.warmup-epochs": 1,
        "--pretrain.probe-clips": 0,
        "--finetune.epochs": 12,
        "--finetune.warmup-epochs": 1,
        "--finetune.head-epochs": 1,
        "--compute.address": address,
        "--sweep.workers-per-trial": 2,
        "--sweep.stopping": "none",
        **more,
    }
    words = [str(word) for pair in fields.items() for word in pair]
    space = ["--sweep.space", "model.mask_ratio=0.6,0.8", "pseudo_label.coverage=0.3,0.7"]
    return [sys.executable, str(ROOT / "jobs/sweep.py"), "synthetic", *words, *space]


def table_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [{key: one[key] for key in KEYS} for one in json.loads((folder / f"{name}.json").read_text())["trials"]]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.fault
def test_kills_of_driver_and_node_change_no_score(tmp_path: Path) -> None:
    write_table(tmp_path, write_clips(tmp_path, 60))
    storage = tmp_path / "killed"

    def start(nodes: Nodes, name: str, log: Path, **more: float) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            words = command(tmp_path, name, nodes.address, more)
            return subprocess.Popen(words, cwd=ROOT, env=nodes.environment, stdout=output, stderr=subprocess.STDOUT)

    with Nodes(tmp_path, cpus=(2, 2, 2)) as nodes:
        log = tmp_path / "first.log"
        driver = start(nodes, "killed", log)
        wait_until(lambda: list(storage.glob("artifacts/pretrain/*/done.json")), "a pre-training", PATIENCE)
        assert driver.poll() is None, log.read_text()[-3000:]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        done = {path: path.stat().st_mtime_ns for path in storage.glob("artifacts/*/*/done.json")}

        log = tmp_path / "second.log"
        driver = start(nodes, "killed", log)
        wait_until(lambda: list(storage.glob("artifacts/finetune/*/events")), "a fine-tuning", PATIENCE)
        busy = next((one for one in nodes.nodes if training_workers(one.pid)), nodes.nodes[0])
        nodes.kill(busy)
        assert driver.wait(PATIENCE) == 0, log.read_text()[-3000:]
        assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished stage was run again"

    with Nodes(tmp_path, cpus=(2, 2)) as nodes:
        log = tmp_path / "undisturbed.log"
        assert start(nodes, "undisturbed", log, **CONTENDED).wait(PATIENCE) == 0, log.read_text()[-3000:]
    assert table_of(tmp_path, "killed") == table_of(tmp_path, "undisturbed")
    folder = next((storage / "sweeps").iterdir())
    assert [one.status for one in read_records(Folder(str(folder))).values()] == ["finished"] * 4
    counts = {stage: len(list(storage.glob(f"artifacts/{stage}/*"))) for stage in ("prepare", "pretrain", "finetune")}
    assert counts["prepare"] == 1
    assert counts["pretrain"] == 2
