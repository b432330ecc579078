"""The memory of a training step by arithmetic, against what torch keeps."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig, PretrainConfig
from raymae.models import MODELS, AudioClassifier, MaskedAutoencoder, choose_attention, kept_tokens, mae
from raymae.models.masking import Masking, kept_count
from raymae.models.patches import Patches, patchify
from raymae.pipeline.dry_run.memory import Memory, finetune_memory, micro_batch_that_fits, pretrain_memory

AUDIO = AudioConfig(n_mels=80, clip_seconds=3.0)
GRID = 12, 5
"""Its patches, which don't fill whole windows."""
MODEL = ModelConfig(
    embed_dim=96, depth=4, num_heads=3, decoder_embed_dim=64, decoder_depth=4, decoder_num_heads=4, mask_ratio=0.5
)
CLASSES, CLIPS = 10, 16
SEGMENTS = FinetuneConfig(pool="row_stats", subtract_band_mean=True, with_raw=True, segment_seconds=1.0)

CASES: dict[str, ModelConfig | FinetuneConfig] = {
    "local": MODEL,
    "global": replace(MODEL, decoder="global"),
    "light": replace(MODEL, decoder="light", decoder_depth=1, norm_target=True, masks_per_clip=3),
    "latent": replace(MODEL, decoder="light", name="latent", masks_per_clip=2),
    "mean": FinetuneConfig(),
    "cls": FinetuneConfig(pool="cls", layer=3, ema_decay=0.9),
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


def build(case: str, checkpointing: str) -> nn.Module:
    """The network in training mode; with checkpointing it keeps of every block the input alone."""
    config = CASES[case]
    if isinstance(config, ModelConfig):
        network: nn.Module = MODELS[config.name](AUDIO, config)
    else:
        network = AudioClassifier(AUDIO, MODEL, config, CLASSES)
    for blocks in (module for module in network.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks if checkpointing == "blocks" else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return network.train()


def loss_of(network: nn.Module, log_mel: Tensor) -> Tensor:
    """The loss of a training step."""
    if isinstance(network, MaskedAutoencoder):
        return network(log_mel).loss
    return functional.cross_entropy(network(log_mel), torch.zeros(len(log_mel), dtype=torch.long))


def loss_of_sizes(network: nn.Module, log_mel: Tensor) -> Tensor:
    """The loss by tensors without values, of which a mask can't be drawn: each patch kept is the first."""
    batch, patches = len(log_mel), GRID[0] * GRID[1]
    ids = torch.zeros(batch, patches, dtype=torch.int64, device="cuda")
    values = Patches(patchify(log_mel, MODEL.patch_size, 0.0), GRID, torch.ones(batch, patches, dtype=torch.bool))
    if isinstance(network, AudioClassifier):
        kept = kept_count(GRID[0], 0.2) * kept_count(GRID[1], 0.2)
        masking = Masking(torch.ones(batch, patches, device="cuda"), ids[:, :kept].clone(), ids, None)
        return network.classify(values, masking).float().logsumexp(1).sum()
    assert isinstance(network, MaskedAutoencoder)
    ids_keep = ids[:, : kept_tokens(GRID, network.config)].clone()
    masking = Masking(torch.ones(batch, patches, device="cuda"), ids_keep, ids, None)
    prediction = network.forward_decoder(network.forward_encoder(values, masking), values, masking)
    return network.forward_loss(values, prediction, masking.mask)[0]


# Measurements -------------------------------------------------------------------------------------------------------


def predict(case: str, precision: str, device: str, checkpointing: str) -> Memory:
    config = CASES[case]
    if isinstance(config, ModelConfig):
        return pretrain_memory(AUDIO, config, PretrainConfig(precision=precision), device, checkpointing)
    return finetune_memory(AUDIO, MODEL, replace(config, precision=precision), CLASSES, device, checkpointing)


def measure(network: nn.Module, precision: str) -> tuple[int, int]:
    """Bytes kept for the backward pass on the CPU, and the most that a step needs beside weights and gradients."""
    choose_attention(network, torch.device("cpu"), precision)
    log_mel = torch.randn(CLIPS, AUDIO.n_frames, AUDIO.n_mels)
    loss_of(network, log_mel[:1]).backward()  # makes the tables of positions, and the gradients to add to
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    storages = Storages([log_mel, *network.parameters(), *network.buffers(), *gradients])
    with storages:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            loss = loss_of(network, log_mel)
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


def measure_on_cuda(case: str, precision: str, checkpointing: str) -> int:
    """Bytes kept for the backward pass on a GPU, by tensors that have a size and no values: it takes no GPU."""
    with torch.device("meta"):
        network = build(case, checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cuda")
        log_mel = torch.empty(CLIPS, AUDIO.n_frames, AUDIO.n_mels, device="cuda")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", precision == "bf16")
        with Storages([log_mel, *network.parameters(), *network.buffers()]) as storages:
            loss = loss_of_sizes(network, log_mel)
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
        assert loss.requires_grad
        return storages.bytes


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_is_what_torch_needs(case: str, precision: str, checkpointing: str) -> None:
    network, found = build(case, checkpointing), predict(case, precision, "cpu", checkpointing)
    kept, peak = measure(network, precision)
    assert found.kept(CLIPS) == nearly(kept)
    assert found.peak(CLIPS) - found.state == within_a_tenth(peak)
    numbers = sum(value.numel() for value in network.parameters())
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    copies = 2 if case == "cls" else 1  # with an EMA
    assert found.state == 4 * (copies * numbers + 3 * trained)


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["local", "global", "mean"])
def test_predicted_memory_is_that_of_a_gpu(
    case: str, precision: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention_on_cuda)
    monkeypatch.setattr(mae, "unless_all", lambda mask, device: None)  # all patches are valid
    kept = measure_on_cuda(case, precision, checkpointing)
    assert predict(case, precision, "cuda", checkpointing).kept(CLIPS) == nearly(kept)


@given(st.sampled_from(list(CASES)), st.floats(0.001, 100))
def test_the_largest_power_of_two_fits(case: str, gigabytes: float) -> None:
    found, room = predict(case, "bf16", "cuda", "none"), 0.9e9 * gigabytes
    clips = micro_batch_that_fits(found, gigabytes)
    assert clips.bit_count() <= 1
    assert clips == 0 or found.peak(clips) <= room
    assert found.peak(max(1, 2 * clips)) > room
