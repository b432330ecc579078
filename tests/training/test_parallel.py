"""Several processes on gloo compute the same as one: with the whole model on each (DDP) or shares of it (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.distributed.tensor import DTensor

from raymae import training
from raymae.config import AugmentConfig, ComputeConfig, ConsistencyConfig
from raymae.features.store import FeatureStore
from raymae.storage.commits import complete
from raymae.storage.events import read_events
from raymae.training import parallel
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec
from raymae.training.state.checkpoint import load_commit
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession, GroupSession, Session
from tests.support.audio_files import make_store, write_clips, write_tone
from tests.support.training import EAT, TINY, make_spec

Found = dict[str, dict[str, Any]]

STEPS = 3
CUT = 2
MORE: dict[int, dict[str, ComputeConfig]] = {
    5: {"ddp": ComputeConfig(), "fsdp": ComputeConfig(parallel="fsdp")},
    4: {"mesh": ComputeConfig(parallel="fsdp", fsdp_replicas=2)},
    3: {"ddp": ComputeConfig(), "fsdp": ComputeConfig(parallel="fsdp")},
}
"""By number of workers what the first step's gradients are compared for; two are followed on."""
MORE_KINDS = ("pretrain", "finetune", "consistency")
"""In float32, for both modes: bfloat16 rounds the sums of passes of other sizes differently."""
PASSES = (2, 6, 16)
"""Micro-batch sizes."""
COMMON = {
    "clip_grad_norm": 0.05,
    "ema_decay": 0.9,
    "warmup_epochs": 0,
    "mixing_group": 2,
    "micro_batch_size": 4,
    "global_batch_size": 16,
}
MIXED = replace(TINY.finetune.augment, mixup_p=0.5, mixstyle_p=0.5)
CONFIG = replace(
    TINY,
    pretrain=replace(TINY.pretrain, **COMMON),
    finetune=replace(TINY.finetune, layer_decay=0.8, drop_path=0.3, epochs=3, augment=MIXED, **COMMON),
)
"""Eight mixing groups a step, which two workers share as four each in two passes, and five as one or two; everything
enabled that draws, mixes or averages."""
BF16 = replace(
    CONFIG, model=replace(CONFIG.model, decoder="local"), pretrain=replace(CONFIG.pretrain, precision="bf16")
)
PLAIN = replace(CONFIG, finetune=replace(CONFIG.finetune, augment=TINY.finetune.augment))
"""Without MixStyle, with which a batch norm's rounding errors grow a hundred thousand times in so small batches."""
STRONG = AugmentConfig(eq_p=0.5, freq_mask_param=8)
PAIRED = replace(CONFIG, consistency=ConsistencyConfig(method="softmatch", teacher="ema", ratio=1, strong=STRONG))
KINDS: dict[str, dict[str, Any]] = {
    "pretrain": {"kind": "pretrain", "config": CONFIG},
    "bf16": {"kind": "pretrain", "config": BF16},
    "eat": {"kind": "pretrain", "config": replace(CONFIG, model=EAT.model)},
    "finetune": {"kind": "finetune", "config": CONFIG},
    "cnn": {"kind": "finetune", "config": PLAIN, "cnn": "test_resnet"},
    "consistency": {"kind": "consistency", "config": PAIRED},
}
MODES = {"ddp": tuple(KINDS), "fsdp": ("bf16", "eat", "cnn", "consistency")}
"""What is compared step by step; plain pre-training and fine-tuning are sharded as whole stages."""


def steps(trainer: Trainer, count: int) -> None:
    with closing(trainer._steps()) as prepared:
        for _ in range(count):
            trainer._take(prepared, trainer.share_done())


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients of a step, unsharded."""
    return {n: parallel.full(p.grad).clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def snapshot(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """The weights and EMA weights of a run, unsharded."""
    weights = {name: parallel.full(value).clone() for name, value in trainer.model.state_dict().items()}
    average = {name: value.clone() for name, value in trainer.result_model.state_dict().items()}
    return {"weights": weights, "average": average}


def held(trainer: Trainer) -> float:
    """Share of weights, gradients, moments and EMA weights that this process holds."""
    parameters = list(trainer.model.parameters())
    tensors = parameters + [p.grad for p in parameters if p.grad is not None]
    tensors += [value for moments in trainer.optimizer.state.values() for value in moments.values() if value.ndim]
    tensors += list(trainer.ema.model.parameters()) if trainer.ema else []
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() for t in local) / sum(t.numel() for t in tensors)


def follow(spec: StageSpec, session: Session) -> dict[str, Any]:
    """The first step's gradients, and the state after the last step; with a checkpoint between."""
    trainer = Trainer.start(build_task(spec), session, spec.artifact)
    steps(trainer, 1)
    first = gradients(trainer)
    steps(trainer, CUT - 1)
    trainer._commit()
    trainer.committer.wait()
    at_commit = snapshot(trainer)
    steps(trainer, STEPS - CUT)
    shares = session.gather(held(trainer))
    return {"first": first, "commit": at_commit, "last": snapshot(trainer), "held": torch.tensor(shares)}


def resume(spec: StageSpec, session: Session) -> dict[str, Any]:
    """Train from the checkpoint to the last step."""
    trainer = Trainer.start(build_task(spec), session, spec.artifact)
    assert trainer.progress.step == CUT
    steps(trainer, STEPS - CUT)
    return snapshot(trainer)


def first_gradients(spec: StageSpec, session: Session) -> dict[str, Tensor]:
    """The gradients of the first step."""
    trainer = Trainer.start(build_task(spec), session, spec.artifact)
    steps(trainer, 1)
    return gradients(trainer)


@contextmanager
def group_of(rank: int, workers: int, root: Path) -> Iterator[None]:
    """A process group."""
    meeting, patience = f"file://{root / f'meet-{workers}'}", timedelta(minutes=1)
    torch.distributed.init_process_group("gloo", init_method=meeting, timeout=patience, rank=rank, world_size=workers)
    yield
    torch.distributed.destroy_process_group()


def work(rank: int, store: FeatureStore, root: Path) -> None:
    """One of some processes. The first two: whole stages sharded; all kinds in both modes, then resumed from a single
    process. All: the gradients of a step."""
    torch.set_num_threads(1)
    training.spec.CNN_GROUP = 8  # so that several workers have a part of a step
    for workers in (one for one in MORE if rank < one):
        with group_of(rank, workers, root):
            for mode, compute in MORE[workers].items():
                for name in MORE_KINDS:
                    spec = make_spec(store, root / f"{workers}{mode}" / name, **KINDS[name])
                    found = first_gradients(spec, GroupSession(store, spec.artifact, compute=compute))
                    if rank == 0:
                        torch.save(found, root / f"{workers}-{mode}-{name}.pt")
    if rank < 2:
        with group_of(rank, 2, root):
            two(rank, store, root)


def two(rank: int, store: FeatureStore, root: Path) -> None:
    """One of two processes."""
    for spec in stages(store, root / "two"):
        run_stage(spec, GroupSession(store, spec.artifact, compute=ComputeConfig(parallel="fsdp")))
    for mode, names in MODES.items():
        compute = ComputeConfig(parallel=mode)
        for name in names:
            more = KINDS[name]
            spec = make_spec(store, root / mode / name, **more)
            found = follow(spec, GroupSession(store, spec.artifact, compute=compute))
            spec = make_spec(store, root / "one" / name, **more)
            found["resumed from one"] = resume(spec, GroupSession(store, spec.artifact, compute=compute))
            torch.save(found, root / f"{mode}-{name}-{rank}.pt")


def stages(store: FeatureStore, root: Path) -> list[StageSpec]:
    """Pre-training and fine-tuning from it, with a checkpoint after each step."""
    config = replace(
        CONFIG,
        pretrain=replace(CONFIG.pretrain, epochs=0.5, report_steps=1, commit_minutes=1e-6, probe_clips=0),
        finetune=replace(CONFIG.finetune, epochs=1, report_steps=1, commit_minutes=1e-6, ema_decay=None),
    )
    pretrained = make_spec(store, root / "pretrain", config=config)
    return [
        pretrained,
        make_spec(store, root / "finetune", "finetune", config=config, encoder=pretrained.artifact),
    ]


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Clips of many lengths: micro-batches with different numbers of patches."""
    folder = tmp_path_factory.mktemp("odd")
    clips = write_clips(folder, 120)
    for index, path in enumerate(clips["path"].to_pylist()):
        write_tone(Path(path), 300 + 9 * index, seconds=0.2 + 0.06 * (index % 8), seed=index)
    return make_store(folder / "store", clips)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and two write."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def found(odd_store: FeatureStore, root: Path) -> Found:
    """What one process and two in both modes found, by mode and kind."""
    torch.set_num_threads(1)
    group, training.spec.CNN_GROUP = training.spec.CNN_GROUP, 8
    result = {}
    for name, more in KINDS.items():
        spec = make_spec(odd_store, root / "one" / name, **more)
        result[f"one-{name}"] = follow(spec, BareSession(odd_store, spec.artifact))
        result[f"one-{name}"]["files"] = load_commit(spec.artifact, complete(spec.artifact)[-1])[0]
    # rank 0 in this process, which has imported everything
    context = torch.multiprocessing.get_context("spawn")
    others = [context.Process(target=work, args=(rank, odd_store, root)) for rank in range(1, max(MORE))]
    for other in others:
        other.start()
    work(0, odd_store, root)
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    for mode, names in MODES.items():
        for name in names:
            more = KINDS[name]
            two, theirs = (torch.load(root / f"{mode}-{name}-{rank}.pt", weights_only=True) for rank in range(2))
            assert_same(two, theirs)
            spec = make_spec(odd_store, root / mode / name, **more)
            two["files"] = load_commit(spec.artifact, complete(spec.artifact)[-1])[0]
            two["resumed by one"] = resume(spec, BareSession(odd_store, spec.artifact))
            result[f"{mode}-{name}"] = two
    training.spec.CNN_GROUP = group
    return result


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    else:
        assert torch.equal(one, other)


def distances(kind: str, found: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """The distance of each tensor from the true one, as a share of its norm.

    AdamW takes steps of the learning rate's size for any gradient, even one that is only rounding error. That is so for
    the keys' biases, which cancel in the softmax: they are left out. It is so for many weights of a CNN, between its
    batch norms: it is compared as one vector.
    """
    assert found.keys() == true.keys()
    pairs = {name: (found[name].double(), true[name].double()) for name in true}
    if kind == "cnn":
        pairs = {"all": tuple(torch.cat([pair[i].flatten() for pair in pairs.values()]) for i in range(2))}
    pairs |= {
        name: tuple(torch.cat([value.chunk(3)[0], value.chunk(3)[2]]) for value in pair)
        for name, pair in pairs.items()
        if name.endswith("attn.qkv.bias")
    }
    # some gradients are 0 at first, of what comes before a norm that is initialised with 0
    return {name: float((mine - other).norm() / other.norm().clamp(min=1e-30)) for name, (mine, other) in pairs.items()}


def assert_near(kind: str, found: dict[str, Tensor], true: dict[str, Tensor], limit: float = 1e-5) -> None:
    """Gradients that differ by rounding. The biases behind a new head are left out: where classes are balanced the
    clips' gradients cancel, and rounding is all that is left of them."""
    cancelled = ("norm.bias", "head.bias", "classifier.norm.bias", "classifier.head.bias")
    shares = {name: value for name, value in distances(kind, found, true).items() if name not in cancelled}
    assert max(shares.values()) < limit, max(shares, key=lambda name: shares[name])


each = pytest.mark.parametrize(("mode", "kind"), [(mode, kind) for mode, kinds in MODES.items() for kind in kinds])


@each
def test_two_workers_have_the_gradients_of_one(found: Found, mode: str, kind: str) -> None:
    two, one = found[f"{mode}-{kind}"]["first"], found[f"one-{kind}"]["first"]
    assert len(one) > 10
    # sharded convolutions can't be channels_last: their kernels round otherwise, and then a ReLU lets a value through
    assert_near(kind, two, one, 1e-2 if (mode, kind) == ("fsdp", "cnn") else 1e-5)


@pytest.mark.parametrize(("workers", "mode"), [(workers, mode) for workers, modes in MORE.items() for mode in modes])
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_more_workers_have_the_gradients_of_one(found: Found, root: Path, workers: int, mode: str, kind: str) -> None:
    """Workers with one group or two, which FSDP2 gives a pass of weight 0; also sharded in two groups of two."""
    several = torch.load(root / f"{workers}-{mode}-{kind}.pt", weights_only=True)
    assert_near(kind, several, found[f"one-{kind}"]["first"])


@pytest.mark.parametrize("size", PASSES)
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_the_micro_batch_changes_no_gradient(
    found: Found, odd_store: FeatureStore, tmp_path: Path, kind: str, size: int
) -> None:
    config = KINDS[kind]["config"]
    changed = {name: replace(getattr(config, name), micro_batch_size=size) for name in ("pretrain", "finetune")}
    spec = make_spec(odd_store, tmp_path, kind, replace(config, **changed))
    mine = first_gradients(spec, BareSession(odd_store, spec.artifact))
    assert_near(kind, mine, found[f"one-{kind}"]["first"])


@each
@pytest.mark.parametrize("part", ["weights", "average"])
def test_two_workers_have_the_weights_of_one_after_some_steps(found: Found, mode: str, kind: str, part: str) -> None:
    two, one = found[f"{mode}-{kind}"]["last"][part], found[f"one-{kind}"]["last"][part]
    # a new classifier's head is near 0, and with it the encoder's gradients are near AdamW's epsilon
    assert max(distances(kind, two, one).values()) < {"pretrain": 1e-5, "bf16": 1e-5, "eat": 1e-5, "cnn": 1e-2}.get(
        kind, 1e-4
    )


@each
def test_a_checkpoint_is_plain_and_unsharded(found: Found, mode: str, kind: str) -> None:
    two, one = found[f"{mode}-{kind}"], found[f"one-{kind}"]
    assert_same(two["files"]["model"], two["commit"]["weights"])
    assert_same({n: v for n, v in two["files"]["ema"].items() if n != "__updates__"}, two["commit"]["average"])
    for part, tensors in one["files"].items():
        assert {n: v.shape for n, v in tensors.items()} == {n: v.shape for n, v in two["files"][part].items()}


@each
def test_one_worker_resumes_from_two_and_two_from_one(found: Found, mode: str, kind: str) -> None:
    two, one = found[f"{mode}-{kind}"], found[f"one-{kind}"]
    near = 1e-3 if kind == "cnn" else 1e-5
    assert max(distances(kind, two["resumed by one"]["weights"], two["last"]["weights"]).values()) < near
    assert max(distances(kind, two["resumed from one"]["weights"], one["last"]["weights"]).values()) < near


@pytest.mark.parametrize("kind", MODES["fsdp"])
def test_a_sharded_worker_holds_its_share(found: Found, kind: str) -> None:
    assert found[f"ddp-{kind}"]["held"].tolist() == [1, 1]
    assert found[f"fsdp-{kind}"]["held"].sum() == pytest.approx(1)
    assert found[f"fsdp-{kind}"]["held"].max() < 0.55


def test_one_worker_is_plain() -> None:
    model = torch.nn.Linear(2, 2)
    wrapped = parallel.wrap(model, torch.device("cpu"), "fsdp")
    assert wrapped is model
    assert not isinstance(model.weight, DTensor)
    assert parallel.gather("x") == ["x"]


def test_whole_stages_train_sharded(odd_store: FeatureStore, root: Path, found: Found, tmp_path: Path) -> None:
    for two, alone in zip(stages(odd_store, root / "two"), stages(odd_store, tmp_path), strict=True):
        run_stage(alone, BareSession(odd_store, alone.artifact))
        mine, theirs = (read_events(spec.artifact) for spec in (two, alone))
        assert [event["step"] for event in mine] == [event["step"] for event in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert one["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], rel=1e-4)
        weights = [load_tensors(spec.artifact.read_bytes("model.safetensors")) for spec in (two, alone)]
        assert max(distances("", *weights).values()) < 1e-3
    assert two.artifact.result()["workers"] == 2
    assert "val/macro_accuracy" in two.artifact.result()["metrics"]
