"""A training step reads nothing back from its device: on the meta device, on a fake GPU, and operation by operation.

There is no GPU in these tests. On the meta device a tensor has no values, so that whatever needs one raises. Under
`FakeTensorMode` everything lies on a fake GPU, where a tensor on the wrong device raises, too. The optimiser's fused
kernel has neither: whole steps run on the CPU under a mode that raises at the operations that read values back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from raymae.config import AugmentConfig, Config, ConsistencyConfig, ModelConfig
from raymae.features.store import FeatureStore
from raymae.models.encoder import EncoderBlock
from raymae.training import optim, parallel, step
from raymae.training.batches.transfer import DeviceBatch, Transfer
from raymae.training.feeder import plan_passes, prepare
from raymae.training.optim import Ema, adamw
from raymae.training.run_stage import build_task
from raymae.training.step import PreparedStep, TrainStep
from raymae.training.tasks.base import Task
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips, write_tone
from tests.support.training import EAT, EVERYTHING, RESPONSES, TINY, make_spec, train

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")
"""Operations whose result the host has to wait for."""
STRONG = AugmentConfig(eq_p=0.5, mixstyle_p=0.5, freq_mask_param=8, time_mask_param=8)
FINETUNE = replace(
    TINY.finetune,
    drop_path=0.2,
    pool="row_stats",
    subtract_band_mean=True,
    with_raw=True,
    segment_seconds=0.3,
    clip_grad_norm=1.0,
    mixing_group=4,
    augment=replace(TINY.finetune.augment, mixup_p=0.7, mixstyle_p=0.5),
)


def pretraining(**model: Any) -> Config:
    train = replace(TINY.pretrain, augment=EVERYTHING, clip_grad_norm=1.0, ema_decay=0.9, micro_batch_size=8)
    return replace(TINY, model=replace(TINY.model, **model), pretrain=train)


LATENT: dict[str, Any] = {
    "name": "latent",
    "masks_per_clip": 2,
    "latent": replace(ModelConfig().latent, teacher_view="other"),
}
KINDS: dict[str, tuple[str, Config]] = {
    "local": ("pretrain", pretraining(decoder="local")),
    "global": ("pretrain", pretraining(decoder="global")),
    "light": ("pretrain", pretraining(decoder="light")),
    "latent": ("pretrain", pretraining(**LATENT)),
    "eat": ("pretrain", replace(pretraining(), model=EAT.model)),
    "finetune": ("finetune", replace(TINY, finetune=FINETUNE)),
    **{
        method: (
            "consistency",
            replace(
                TINY, finetune=FINETUNE, consistency=ConsistencyConfig(method=method, teacher=teacher, strong=STRONG)
            ),
        )
        for method, teacher in {"freematch": "self", "softmatch": "ema"}.items()
    },
}
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Clips of many lengths."""
    folder = tmp_path_factory.mktemp("mixed")
    clips = write_clips(folder, 60)
    for index, path in enumerate(clips["path"].to_pylist()):
        write_tone(Path(path), 300 + 9 * index, seconds=0.2 + 0.06 * (index % 8), seed=index)
    return make_store(folder / "store", clips)


def prepared_on(device: str, store: FeatureStore, folder: Path, kind: str) -> tuple[Task, PreparedStep]:
    """A task and its first step's batches on a device."""
    name, config = KINDS[kind]
    spec = make_spec(store, folder, name, config, responses=RESPONSES)
    task = build_task(spec)
    number, groups = next(BareSession(store, spec.artifact).groups(task.order, 0))
    passes = plan_passes(task, task.order, 1, sharded=False)
    return task, prepare(task, number, groups, passes, Transfer(torch.device(device)))


def to_device(model: nn.Module, device: str) -> nn.Module:
    """Every tensor of a model on a device without copying values, tables of positions included."""
    for module in model.modules():
        if hasattr(module, "tables"):
            module.tables.clear()  # type: ignore[operator]
    return model.to(device)


def make_step(task: Task, device: str, optimizer: Any = None) -> TrainStep:
    """The step of a task whose model lies on a device."""
    model = to_device(task.model, device)
    ema = Ema(model, 0.9)
    task.averaged = ema.model
    statistics = parallel.RunningStatistics(model, task.order.slots, range(task.order.slots))
    made = optimizer or adamw(task.parameter_groups(), task.config)
    return TrainStep(task, model, model, made, statistics, torch.device(device), ema)


class NoReads(TorchDispatchMode):
    """Raises at an operation whose result the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        if name in READS:
            raise AssertionError(f"read back by {name}")
        return func(*args, **(kwargs or {}))


class Nothing(torch.optim.Optimizer):
    """An optimiser that leaves the weights as they are: the fused kernel doesn't run on the meta device."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:
        """Do nothing."""


@each
def test_a_step_runs_on_tensors_without_values(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    task, prepared = prepared_on("meta", store, tmp_path, kind)
    made = make_step(task, "meta", Nothing(task.parameter_groups()))
    made.run(prepared, 0.5)
    assert all(value.device.type == "meta" and value.ndim == 0 for value in made.metrics.values())
    assert all(one.grad is not None for one in made.parameters)


@each
def test_a_whole_step_reads_nothing_back(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    task, prepared = prepared_on("cpu", store, tmp_path, kind)
    made = make_step(task, "cpu")
    with NoReads():
        made.run(prepared, 0.5)
    assert made.read()["loss"] > 0


def read_in_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    real = EncoderBlock.forward

    def forward(self: EncoderBlock, x: Tensor, *more: Any) -> Tensor:
        return real(self, x, *more) * (1 + 0 * x.sum().item())

    monkeypatch.setattr(EncoderBlock, "forward", forward)


def read_in_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    real = optim.clip_gradients

    def clip(*arguments: Any) -> Tensor:
        norm = real(*arguments)
        return norm * (1 + 0 * norm.item())

    monkeypatch.setattr(step, "clip_gradients", clip)


def read_in_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.AdamW.step

    def update(self: torch.optim.AdamW, *arguments: Any) -> Any:
        first = self.param_groups[0]["params"][0]
        return real(self, *arguments) if bool(first.grad.isfinite().all()) else None

    monkeypatch.setattr(torch.optim.AdamW, "step", update)


def read_in_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TrainStep._backward

    def backward(self: TrainStep, *arguments: Any) -> dict[str, Tensor]:
        found = real(self, *arguments)
        return {name: value * (1 + 0 * value.item()) for name, value in found.items()}

    monkeypatch.setattr(TrainStep, "_backward", backward)


@pytest.mark.parametrize("plant", [read_in_forward, read_in_clipping, read_in_the_optimiser, read_in_the_metrics])
def test_a_read_is_noticed_wherever_it_is(
    plant: Any, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, prepared = prepared_on("cpu", store, tmp_path, "light")
    made = make_step(task, "cpu")
    plant(monkeypatch)
    with NoReads(), pytest.raises(AssertionError, match="read back by _local_scalar_dense"):
        made.run(prepared, 0.5)


# A fake GPU --------------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts copies between the host and the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != found.device:
            self.count += 1
        return found


@contextmanager
def fake_gpu() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@each
def test_a_forward_pass_lies_wholly_on_the_gpu(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """Two copies for a pass, clips and everything else, and none while it computes."""
    name, config = KINDS[kind]
    spec = make_spec(store, tmp_path, name, config, responses=RESPONSES)
    task = build_task(spec)
    _, groups = next(BareSession(store, spec.artifact).groups(task.order, 0))
    passes = plan_passes(task, task.order, 1, sharded=False)
    clips = passes.clips(groups)
    transfer = Transfer(torch.device("cuda"))
    packed = [transfer.pack(task.prepare(one, transfer)[0]) for one in clips]
    with fake_gpu():
        model = to_device(task.model, "cuda")
        task.averaged = Ema(model, 0.9).model
        with Copies() as sending:
            batches = [transfer.send(one) for one in packed]
        totals = {one: torch.ones((), device="cuda") for one in task.counted}
        with Copies() as computing:
            for batch in batches:
                loss, metrics = task.training_step(model, batch.arrived(), totals)
        assert {value.device.type for value in (loss, *metrics.values())} == {"cuda"}
    assert (sending.count, computing.count) == (2 * len(batches), 0)


def shapes(batch: DeviceBatch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (
        ("log_mel", tuple(batch.log_mel.shape)),
        *sorted((name, tuple(value.shape)) for name, value in batch.drawn.items()),
    )


@pytest.mark.parametrize("kind", ["local", "finetune", "freematch"])
def test_compiled_blocks_see_one_set_of_shapes(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """Over 50 passes of clips of many lengths, of a rank whose groups don't fill its passes."""
    name, config = KINDS[kind]
    config = replace(
        config, **{section: replace(getattr(config, section), compile=True) for section in ("pretrain", "finetune")}
    )
    spec = make_spec(store, tmp_path, name, config, responses=RESPONSES)
    task = build_task(spec)
    passes = replace(plan_passes(task, task.order, 1, sharded=False), most=3, largest=4)
    found = set()
    steps = BareSession(store, spec.artifact).groups(task.order, 0)
    while len(found) < 2 and (one := next(steps, None)) is not None and one[0] < 25:
        for batch in prepare(task, *one, passes, Transfer(torch.device("cpu"))).batches:
            found.add(shapes(batch))
    assert len(found) == 1


GRAPHS = {"local": 2, "global": 2, "latent": 3, "eat": 3, "finetune": 1, "freematch": 2, "softmatch": 1}
"""Graphs of all blocks: one for the encoder's and one for the decoder's, and one more for a pass without a gradient."""


@pytest.mark.parametrize("kind", GRAPHS)
def test_blocks_are_compiled_once(
    store: FeatureStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All blocks of an encoder share a graph, over a whole run on mixed clips with validation; without the generator of
    machine code, which takes minutes."""
    from torch._dynamo.utils import counters

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **more: compiled(self, backend="eager", **more))
    name, config = KINDS[kind]
    sections = {
        section: replace(getattr(config, section), epochs=4, compile=True) for section in ("pretrain", "finetune")
    }
    torch._dynamo.reset()
    counters.clear()
    train(make_spec(store, tmp_path, name, replace(config, **sections), responses=RESPONSES))
    assert counters["stats"]["unique_graphs"] == GRAPHS[kind]
    assert not counters["graph_break"]
    assert "can't be compiled" not in caplog.text
