"""Profiling some steps writes a trace and a table and changes no result."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load

from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.training.profiling import FOLDER, SKIPPED_STEPS
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

SHORT = replace(TINY, pretrain=replace(TINY.pretrain, epochs=2.5, warmup_epochs=1))


def test_writes_trace_and_table_and_changes_no_weights(store: FeatureStore, tmp_path: Path) -> None:
    weights = {}
    for steps in (0, 2):
        spec = make_spec(
            store, tmp_path / str(steps), config=replace(SHORT, compute=ComputeConfig(profile_steps=steps))
        )
        run_stage(spec, BareSession(store, spec.artifact))
        weights[steps] = load(spec.artifact.read_bytes("model.safetensors"))
        assert (spec.artifact / FOLDER).names() == (["operations.txt", "trace.json.gz"] if steps else [])
    assert all((value == weights[2][name]).all() for name, value in weights[0].items())
    table = (spec.artifact / FOLDER).read_bytes("operations.txt").decode()
    assert table.startswith("2 steps\n")
    assert "aten::addmm" in table
    trace = json.loads(gzip.decompress((spec.artifact / FOLDER).read_bytes("trace.json.gz")))
    steps_seen = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")}
    assert len(steps_seen) == 2


def test_warns_if_the_stage_is_too_short(store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = replace(SHORT.pretrain, epochs=0.5, warmup_epochs=0.1)
    spec = make_spec(store, tmp_path, config=replace(SHORT, pretrain=train, compute=ComputeConfig(profile_steps=2)))
    assert spec.order().steps < SKIPPED_STEPS
    run_stage(spec, BareSession(store, spec.artifact))
    assert "no profile: it begins after 5 steps, and the run had fewer" in caplog.text
    assert (spec.artifact / FOLDER).names() == []


def test_the_number_of_steps_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"compute\.profile_steps = -1 must not be negative"):
        ComputeConfig(profile_steps=-1)
