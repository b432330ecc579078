"""Costs of training: useful FLOPs, rates, and sizes and durations as text. The benchmark's plan uses them too."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig

UNIT_SECONDS = 10.0
"""Rates are in clips of this length; other lengths are counted by their seconds of audio."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Throughput of one core and one GPU. The defaults were measured by jobs/benchmark.py on an AMD EPYC."""

    prepare_clips: float = 119.0
    """Ten-second clips per second and core, 24-bit 44.1 kHz WAV to log-mel (`prepare`)."""
    decode_clips: float = 209.0
    """The same to a waveform at the front end's rate, without its log-mel: 5.7 ms of CPU time for 10.0 ms (WAV; FLAC:
    9.5 for 13.9 ms)."""
    ingest_mb: float = 454.0
    """MB per second and core from the feature store to batches (`ingest` from a disk, `scale` from object storage)."""
    gpu_clips: float = 1370.0
    """Ten-second clips per second and GPU: pre-training of ViT-B on an H200 at 45 % of its bf16 peak."""
    parameters: float = 136.3e6
    """Of the model in training: ViT-B with the decoder of the paper."""
    gpu_batch: float = 128
    """Ten-second clips per step and GPU."""

    def featurizing(self, prepare_clips: float) -> Rates:
        """These rates of a core that makes log-mels of so many clips a second; decoding alone keeps its share."""
        decode_clips = self.decode_clips * prepare_clips / self.prepare_clips
        return replace(self, prepare_clips=prepare_clips, decode_clips=decode_clips)


def size(gigabytes: float) -> str:
    """Gigabytes in a few digits."""
    return f"{gigabytes:,.1f} GB" if gigabytes < 1000 else f"{gigabytes / 1000:,.1f} TB"


def duration(hours: float) -> str:
    """Hours in a few digits."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


VIT_B = ModelConfig()
"""Encoder and local decoder of Audio-MAE."""

WINDOW_PATCHES = 16
"""Patches that a patch of the local decoder attends to (raymae.models.decoder.WINDOW squared)."""

KERNEL_PATCHES = 9
"""Patches that a convolution of the decoder reads (raymae.models.decoder.KERNEL squared)."""


def useful_flops(model: ModelConfig, n_frames: int, n_mels: int) -> float:
    """FLOPs that a training step needs per clip: 2 per multiply-add, 3 x the forward pass for forward and backward.

    With L patches of p values of which K are kept, N = K + 1 tokens, width D and r = mlp_ratio, a forward pass takes
    these multiply-adds (D' is the decoder's width):

        patch embedding of the kept patches   K p D
        encoder, a block                      N D² (4 + 2 r) + 2 N² D     (qkv, projection, MLP; attention)
        decoder's embedding                   N D D'
        local decoder, a block                L D'² (4 + 2 r) + 2 L 16 D'   (windows of 16 patches)
        global or light decoder, a block      (L + 1) D'² (4 + 2 r) + 2 (L + 1)² D'
        conv decoder, a layer                 L 9 D'² / groups              (convolutions over 3 x 3 patches)
        prediction of all patches             L D' p

    Padding of windows, norms, activations, position biases (once a step, not a clip) and the optimiser don't count.
    ViT-B with 16 local blocks of 512 and 102 of 512 patches kept: 210 GFLOP.
    """
    from raymae.models import grid_size, kept_tokens

    grid = grid_size(n_frames, n_mels, model.patch_size)
    patches, kept = grid[0] * grid[1], kept_tokens(grid, model)
    values = model.patch_size[0] * model.patch_size[1]
    width, narrow = model.embed_dim, model.decoder_embed_dim
    forward = (
        kept * values * width
        + model.depth * block_products(kept + 1, kept + 1, width, model)
        + (kept + 1) * width * narrow
        + model.decoder_depth * decoder_products(patches, model)
        + patches * narrow * values
    )
    return 3 * 2 * forward


def decoder_products(patches: int, model: ModelConfig) -> float:
    """Multiply-adds of a block of the decoder over all patches of a clip, as in `useful_flops`."""
    narrow = model.decoder_embed_dim
    if model.decoder == "conv":
        return patches * KERNEL_PATCHES * narrow**2 / model.decoder_num_heads
    if model.decoder == "local":
        return block_products(patches, WINDOW_PATCHES, narrow, model)
    return block_products(patches + 1, patches + 1, narrow, model)


def finetune_flops(model: ModelConfig, finetune: FinetuneConfig, n_frames: int, n_mels: int) -> float:
    """FLOPs of a step of fine-tuning per clip, as `useful_flops` counts: patch embedding and blocks on the patches that
    the structured mask leaves. The head doesn't count."""
    from raymae.models import grid_size
    from raymae.models.masking import kept_count

    columns, rows = grid_size(n_frames, n_mels, model.patch_size)
    kept = kept_count(columns, finetune.time_mask_ratio) * kept_count(rows, finetune.freq_mask_ratio)
    values = model.patch_size[0] * model.patch_size[1]
    blocks = (finetune.layer or model.depth) * block_products(kept + 1, kept + 1, model.embed_dim, model)
    return 3 * 2 * (kept * values * model.embed_dim + blocks)


def classifier_flops(audio: AudioConfig, model: ModelConfig, finetune: FinetuneConfig) -> float:
    """FLOPs of a step of fine-tuning per clip: `finetune_flops` of all its segments, raw and without the band mean."""
    from raymae.models.pooling import segment_starts

    frames = audio.frames_of(finetune.augment.crop_seconds)
    length = min(frames, audio.frames_of(finetune.segment_seconds))
    segments = len(segment_starts(frames, length, model.patch_size[0]))
    return finetune_flops(model, finetune, length, audio.n_mels) * segments * (2 if finetune.with_raw else 1)


def cnn_flops(audio: AudioConfig, finetune: FinetuneConfig, cnn: str, classes: int) -> float:
    """FLOPs of a step of the CNN baseline per clip: 3 x its convolutions and products, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from raymae.models import Cnn

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Cnn(audio, finetune, classes, cnn).eval()
        network(torch.zeros(1, audio.frames_of(finetune.augment.crop_seconds), audio.n_mels))
    return 3 * counter.get_total_flops()


def block_products(tokens: int, keys: int, dim: int, model: ModelConfig) -> float:
    """Multiply-adds of a Transformer block: each of `tokens` attends to `keys`."""
    return tokens * dim**2 * (4 + 2 * model.mlp_ratio) + 2 * tokens * keys * dim
