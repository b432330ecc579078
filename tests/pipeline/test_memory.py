"""The memory of a training step by arithmetic, against what torch keeps."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raymae.config import AudioConfig, FinetuneConfig, LatentConfig, ModelConfig, PretrainConfig, TrainConfig
from raymae.models import MODELS, AudioClassifier, MaskedAutoencoder
from raymae.models.encoder import Precision
from raymae.models.masking import kept_of, masking_of
from raymae.pipeline.dry_run.activations import Device
from raymae.pipeline.dry_run.memory import Memory, finetune_memory, micro_batch_that_fits, pretrain_memory
from raymae.training.worker import prepare_model
from tests.support.masks import make_draws, tensors

AUDIO = AudioConfig(n_mels=80, clip_seconds=3.0)
"""12 x 5 patches, which don't fill whole windows."""
MODEL = ModelConfig(
    embed_dim=96, depth=4, num_heads=3, decoder_embed_dim=64, decoder_depth=4, decoder_num_heads=4, mask_ratio=0.5
)
EAT = LatentConfig(teacher_layers=4, targets="mlp", clip_target="patches")
CLASSES, CLIPS = 10, 16
SEGMENTS = FinetuneConfig(pool="row_stats", subtract_band_mean=True, with_raw=True, segment_seconds=1.0)

CASES: dict[str, ModelConfig | FinetuneConfig] = {
    "local": MODEL,
    "global": replace(MODEL, decoder="global"),
    "light": replace(MODEL, decoder="light", decoder_depth=1, norm_target=True, masks_per_clip=3),
    "latent": replace(MODEL, decoder="light", name="latent", masks_per_clip=2),
    "eat": replace(MODEL, decoder="conv", name="latent", masks_per_clip=2, latent=EAT),
    "mean": FinetuneConfig(),
    "cls": FinetuneConfig(pool="cls", layer=3, ema_decay=0.9, drop_path=0.0),
    "row_stats": SEGMENTS,
}
"""Models in pre-training, and classifiers by their pooling."""
nearly, within_a_tenth = partial(pytest.approx, rel=0.03), partial(pytest.approx, rel=0.1)


class Storages(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated while it is active, until they are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known and key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            weakref.finalize(storage, self._free, key)
            self.bytes += self.sizes[key]
            self.peak = max(self.peak, self.bytes)

    def _free(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


# The models: all calls of them are here -----------------------------------------------------------------------------


def settings(case: str, precision: Precision, checkpointing: bool) -> TrainConfig:
    """The section of the stage that trains a case."""
    config = CASES[case]
    train = PretrainConfig() if isinstance(config, ModelConfig) else config
    return replace(train, precision=precision, activation_checkpointing=checkpointing)


def build(case: str, train: TrainConfig, device: str) -> nn.Module:
    """The network as it is trained."""
    config = CASES[case]
    if isinstance(config, ModelConfig):
        network: nn.Module = MODELS[config.name](AUDIO, config)
    else:
        network = AudioClassifier(AUDIO, MODEL, config, CLASSES)
    prepare_model(network, torch.device(device), train)
    return network.train()


def make_inputs(network: nn.Module) -> dict[str, Tensor]:
    """What a step takes: clips without silence, their masks and the factors of stochastic depth."""
    log_mel = torch.randn(CLIPS, AUDIO.n_frames, AUDIO.n_mels)
    if isinstance(network, MaskedAutoencoder):
        patches, segments = network.patchify(log_mel), ()
    else:
        patches, _ = network.patchify(log_mel)
        segments = (patches.segments,)
    valid = np.ones((CLIPS, *segments, math.prod(patches.grid)), np.bool_)
    return {"log_mel": log_mel, **tensors(network.draw(valid, patches.grid, make_draws(CLIPS)))}


def loss_of(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of a training step."""
    log_mel = inputs["log_mel"]
    if isinstance(network, MaskedAutoencoder):
        output = network(log_mel, masking_of(inputs))
        return output.loss if output.clip_error is None else output.loss + output.clip_error.mean()
    logits = network(log_mel, None, kept_of(inputs), inputs.get("drop"))
    return functional.cross_entropy(logits, torch.zeros(CLIPS, dtype=torch.long, device=log_mel.device))


# Measurements -------------------------------------------------------------------------------------------------------


def predict(case: str, train: TrainConfig, device: Device) -> Memory:
    if isinstance(train, FinetuneConfig):
        return finetune_memory(AUDIO, MODEL, train, CLASSES, device)
    return pretrain_memory(AUDIO, CASES[case], train, device)


def measure(network: nn.Module, precision: Precision) -> tuple[int, int]:
    """Bytes kept for the backward pass on the CPU, and the most that a step needs beside weights and gradients."""
    inputs = make_inputs(network)
    loss_of(network, inputs).backward()  # makes the tables of positions, and the gradients to add to
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    storages = Storages([*inputs.values(), *network.parameters(), *network.buffers(), *gradients])
    with storages:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            loss = loss_of(network, inputs)
        kept = storages.bytes
        loss.backward()
    return kept, storages.peak


def attention_on_cuda(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
    """Attention by CUDA's kernels, which torch itself chooses only where there is a GPU."""
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (tensor.to(torch.bfloat16) for tensor in (q, k, v))
        attn_mask = None if attn_mask is None else attn_mask.to(torch.bfloat16)
    if attn_mask is None and q.dtype == torch.bfloat16:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = None if attn_mask is None else attn_mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, compute_log_sumexp=True)[0]


def measure_on_cuda(case: str, train: TrainConfig) -> int:
    """Bytes kept for the backward pass on a GPU, by tensors that have a size and no values: it takes no GPU."""
    with torch.device("meta"):
        network = build(case, train, "cuda")
    drawn = make_inputs(network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cuda")
        inputs = {name: torch.empty_like(value, device="cuda") for name, value in drawn.items()}
        loss_of(network, inputs)  # makes the tables of positions
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", train.precision == "bf16")
        with Storages([*inputs.values(), *network.parameters(), *network.buffers()]) as storages:
            loss = loss_of(network, inputs)
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
        assert loss.requires_grad
        return storages.bytes


checkpointed_or_not = pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])


@checkpointed_or_not
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_is_what_torch_needs(case: str, precision: Precision, checkpointing: bool) -> None:
    train = settings(case, precision, checkpointing)
    network, found = build(case, train, "cpu"), predict(case, train, "cpu")
    kept, peak = measure(network, precision)
    assert found.kept(CLIPS) == nearly(kept)
    assert found.peak(CLIPS) - found.state == within_a_tenth(peak)
    numbers = sum(value.numel() for value in network.parameters())
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    copies = 2 if case == "cls" else 1  # with an EMA
    assert found.state == 4 * (copies * numbers + 3 * trained)


@checkpointed_or_not
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["local", "global", "eat", "mean"])
def test_predicted_memory_is_that_of_a_gpu(
    case: str, precision: Precision, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention_on_cuda)
    train = settings(case, precision, checkpointing)
    assert predict(case, train, "cuda").kept(CLIPS) == nearly(measure_on_cuda(case, train))


@given(st.sampled_from(list(CASES)), st.floats(0.001, 100))
def test_the_largest_power_of_two_fits(case: str, gigabytes: float) -> None:
    found, room = predict(case, settings(case, "bf16", False), "cuda"), 0.9e9 * gigabytes
    clips = micro_batch_that_fits(found, gigabytes)
    assert clips.bit_count() <= 1
    assert clips == 0 or found.peak(clips) <= room
    assert found.peak(max(1, 2 * clips)) > room
