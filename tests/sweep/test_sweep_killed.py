"""A sweep whose driver is killed: the same command runs the remaining trials alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from raymae.storage.folder import Folder
from raymae.sweep.results import read_records
from tests.support.audio_files import write_clips, write_table
from tests.support.paths import ROOT

PATIENCE = 280


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.fault
def test_a_killed_sweep_resumes(tmp_path: Path, ray_cluster: None) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 60))
    storage, found = tmp_path / "storage", tmp_path / "result.json"
    fields = {
        "--storage": storage,
        "--json": found,
        "--data.dataset": "table",
        "--data.tables": table,
        "--pretrain.epochs": 2,
        "--pretrain.warmup-epochs": 1,
        "--pretrain.probe-clips": 0,
        "--finetune.epochs": 8,
        "--finetune.warmup-epochs": 1,
        "--finetune.head-epochs": 1,
        "--compute.address": ray.get_runtime_context().gcs_address,
        "--compute.torch-threads": 1,
    }
    space = ["--sweep.space", "model.mask_ratio=0.6,0.8", "pseudo_label.coverage=0.3,0.7"]
    words = [str(word) for pair in fields.items() for word in pair]
    command = [sys.executable, str(ROOT / "jobs/sweep.py"), "synthetic", *words, *space, "--sweep.stopping", "none"]

    log = tmp_path / "first.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + PATIENCE
    while not (before := list(storage.glob("sweeps/synthetic-*/trials/*.json"))):
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = list(storage.glob("sweeps/synthetic-*/trials/*.json"))
    assert 1 <= len(before) < 4
    times = {path: path.stat().st_mtime_ns for path in before}

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(before)} recorded earlier, {4 - len(before)} to run" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == times, "a finished trial was run again"
    records = read_records(Folder(str(before[0].parents[1])))
    assert [record.status for record in records.values()] == ["finished"] * 4
    counts = {stage: len(list(storage.glob(f"artifacts/{stage}/*"))) for stage in ("prepare", "pretrain", "finetune")}
    assert counts == {"prepare": 1, "pretrain": 2, "finetune": 2}
    result = json.loads(found.read_text())
    assert len(result["trials"]) == 4
    assert result["best"]["score"] == max(record.score for record in records.values() if record.score is not None)
