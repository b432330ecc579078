"""The first pass is tried: halved where memory is short, run eagerly where it can't be compiled; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymae.config import AugmentConfig, Config, ConsistencyConfig
from raymae.features.store import FeatureStore
from raymae.training import trial
from raymae.training.batches.transfer import Transfer
from raymae.training.feeder import plan_passes
from raymae.training.run_stage import build_task
from raymae.training.tasks.base import TrainingError
from raymae.training.tasks.pretrain import PretrainTask
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec, train

CPU = torch.device("cpu")
SHORT = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, mixing_group=4, probe_clips=0))
"""Steps of 16 clips in four mixing groups."""


def micro(clips: int, config: Config = SHORT) -> Config:
    return replace(config, pretrain=replace(config.pretrain, micro_batch_size=clips))


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials on the CPU, too."""
    monkeypatch.setattr(trial, "is_needed", lambda *_: True)


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A memory that passes of more clips don't fit into."""
    real = PretrainTask.training_step

    def step(self: PretrainTask, model: Any, batch: Any, totals: Any) -> Any:
        if len(batch.log_mel) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee the documentation")
        return real(self, model, batch, totals)

    monkeypatch.setattr(PretrainTask, "training_step", step)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.usefixtures("tried")
def test_a_pass_that_does_not_fit_is_halved_once_and_changes_no_result(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, half = (train(make_spec(store, tmp_path / str(clips), config=micro(clips))) for clips in (16, 8))
    assert not caplog.messages
    limit(monkeypatch, 8)
    halved = train(make_spec(store, tmp_path / "halved", config=micro(16)))
    (line,) = caplog.messages
    assert line.startswith("pretrain: a forward pass of 16 clips doesn't fit into the GPU's memory: ")
    assert " with 8, " in line
    assert same(halved, half)
    for name, value in whole.items():
        torch.testing.assert_close(halved[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(("first", "most", "last"), [(16, 7, 8), (4, 3, 4)])
def test_what_does_not_fit_even_then_ends_the_stage(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, most: int, last: int
) -> None:
    limit(monkeypatch, most)
    with pytest.raises(TrainingError) as error:
        train(make_spec(store, tmp_path, config=micro(first)))
    message = str(error.value)
    assert message.startswith(
        f"a forward pass of {last} clips doesn't fit into the GPU's memory: OutOfMemoryError: CUDA out of memory. "
        "Tried to allocate 9 GiB. "
    )
    assert all(way in message for way in ("micro_batch_size", "activation_checkpointing", "fsdp"))


STRONG = AugmentConfig(eq_p=0.5, freq_mask_param=8)
CONFIGS: dict[str, Config] = {
    "pretrain": SHORT,
    "fp16": replace(SHORT, pretrain=replace(SHORT.pretrain, precision="fp16")),
    "consistency": replace(
        TINY,
        finetune=replace(TINY.finetune, mixing_group=4, micro_batch_size=4),
        consistency=ConsistencyConfig(method="freematch", epochs=2, ratio=2, strong=STRONG),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trial_changes_nothing(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = {}
    for needed in (False, True):
        monkeypatch.setattr(trial, "is_needed", lambda *_, needed=needed: needed)
        kind = name if name == "consistency" else "pretrain"
        found[needed] = train(make_spec(store, tmp_path / str(needed), kind, CONFIGS[name]))
    assert same(found[True], found[False])


class Among(BareSession):
    """One of two workers; the other one's trials have these outcomes."""

    world_size = 2

    def __init__(self, *settings: Any, others: list[Any]) -> None:
        super().__init__(*settings)
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others.pop(0)]


SHORT_OF_MEMORY = ("memory", "OutOfMemoryError: CUDA out of memory")
BROKEN = ("other", "ValueError: a shard is damaged")


def outcome(store: FeatureStore, folder: Path, others: list[Any], config: Config = SHORT) -> tuple[int, Among]:
    """Groups of a pass after the trials of two workers, of which the other's have some outcomes."""
    spec = make_spec(store, folder, config=config)
    task, alone = build_task(spec), BareSession(store, spec.artifact)
    trainer = Trainer.start(task, alone, spec.artifact)
    session = Among(store, spec.artifact, others=others)
    _, groups = next(session.groups(task.order, 0))
    passes = plan_passes(task, task.order, 2, sharded=False)
    assert (len(groups), passes.size) == (2, 2)
    return trial.passes_that_fit(trainer.step, session, groups, passes, Transfer(CPU)).size, session


def test_all_workers_decide_the_same(store: FeatureStore, tmp_path: Path) -> None:
    assert outcome(store, tmp_path, [None])[0] == 2
    size, session = outcome(store, tmp_path, [SHORT_OF_MEMORY, None])
    assert (size, session.others) == (1, [])
    with pytest.raises(TrainingError, match="a forward pass of 4 clips doesn't fit"):
        outcome(store, tmp_path, [SHORT_OF_MEMORY] * 2)
    with pytest.raises(TrainingError, match="another worker's first forward pass failed: ValueError: a shard is dam"):
        outcome(store, tmp_path, [BROKEN])


@pytest.mark.usefixtures("tried")
def test_an_error_of_another_kind_is_raised_as_it_is(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(PretrainTask, "training_step", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train(make_spec(store, tmp_path, config=SHORT))


@pytest.fixture
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile finds no compiler."""
    real = nn.Module.compile

    def broken(module: Any, inputs: Any) -> None:
        raise RuntimeError("no C++ compiler is found")

    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: real(self, backend=broken))
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.usefixtures("without_a_compiler")
def test_a_model_that_cannot_be_compiled_runs_eagerly(
    store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = replace(SHORT, pretrain=replace(SHORT.pretrain, compile=True))
    found = train(make_spec(store, tmp_path / "compiled", config=compiled))
    (line,) = [message for message in caplog.messages if message.startswith("pretrain: ")]
    assert line.startswith("pretrain: the model can't be compiled, and runs uncompiled: BackendCompilerFailed: ")
    assert "no C++ compiler is found" in line
    assert "\n" not in line
    for name, value in train(make_spec(store, tmp_path / "eager", config=SHORT)).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_only_a_gpu_and_a_compiler_need_a_trial() -> None:
    plain, normed = nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2))
    assert not trial.is_needed(plain, CPU, compiled=False)
    assert trial.is_needed(plain, CPU, compiled=True)
    assert trial.is_needed(plain, torch.device("cuda"), compiled=False)
    assert not trial.is_needed(normed, torch.device("cuda"), compiled=True), "it would count the pass"
