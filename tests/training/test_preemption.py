"""Announced preemption of a node: a checkpoint at once, another in time, at which the run stops."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.storage.commits import latest_step
from raymae.training.guards import preemption
from raymae.training.guards.preemption import MARGIN_SECONDS, Preemption
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec, train


@given(ahead=st.floats(-1e3, 1e6), cost=st.floats(0, 1e3))
def test_checkpoints_at_the_announcement_and_before_the_end(ahead: float, cost: float) -> None:
    one, end = Preemption(), time.time() + ahead
    assert one.poll(None, cost) == (False, False)
    urgent, leave = one.poll(end, cost)
    assert urgent
    assert leave or ahead > MARGIN_SECONDS + 2 * cost
    assert one.poll(end, cost)[0] == one.poll(end, cost)[1]
    assert one.poll(float("inf"), cost) == (False, False)


class Announced(BareSession):
    """A process that finds, at its first poll, that it has some seconds left."""

    left = 3600.0

    def preemption_time(self) -> float | None:
        return time.time() + self.left


class Doomed(Announced):
    left = MARGIN_SECONDS


class Grown(BareSession):
    """A process that others could join."""

    def can_grow(self) -> bool:
        return True


OFTEN = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1.5, commit_minutes=1e-9))
"""A checkpoint after each step."""


@pytest.fixture(scope="module")
def whole(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a run that isn't disturbed."""
    torch.set_num_threads(1)
    return train(make_spec(store, tmp_path_factory.mktemp("whole"), config=OFTEN))


@pytest.mark.parametrize(("kind", "ended"), [(Announced, True), (Doomed, False), (Grown, False)])
def test_stops_at_a_checkpoint_and_resumes_exactly(
    store: FeatureStore,
    whole: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BareSession],
    ended: bool,
) -> None:
    monkeypatch.setattr(preemption, "POLL_SECONDS", 0.0)
    spec = make_spec(store, tmp_path, config=OFTEN)
    assert run_stage(spec, kind(store, spec.artifact)) == ended
    if not ended:
        assert latest_step(spec.artifact) == 1
        assert run_stage(spec, BareSession(store, spec.artifact))
    last = load(spec.artifact.read_bytes("model.safetensors"))
    assert all((value == last[name]).all() for name, value in whole.items())


@pytest.mark.parametrize(("field", "value"), [("min_workers", 0), ("wait_minutes", 0.0)])
def test_wrong_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"compute.{field} = {value} must be"):
        ComputeConfig(**{field: value})  # type: ignore[arg-type]
