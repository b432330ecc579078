"""The ViT encoder of pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.layers import Attention, LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from raymae.config import AudioConfig, ModelConfig
from raymae.models.masking import Kept
from raymae.models.patches import (
    Grid,
    Patches,
    Positions,
    check_shape,
    fit_positions,
    grid_size,
    patchify,
    valid_patches,
)


def init_weights(module: nn.Module) -> None:
    """Initialise a Linear as MAE: Xavier uniform, bias 0 (He et al. 2022, appendix A.1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def select(tokens: Tensor, ids: Tensor) -> Tensor:
    """(B, N, D) tokens and (B, K) ids -> (B, K, D)."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


def key_mask(attend: Tensor | None) -> Tensor | None:
    """(B, N) bool -> attention mask (B, 1, 1, 1 + N) in which every query also attends to the class token in front."""
    return None if attend is None else functional.pad(attend, (1, 0), value=True)[:, None, None]


class EncoderBlock(Block):
    """timm's block, whose stochastic depth is drawn outside: timm's draws from the device's global generator."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); `drop` (B, 2) are the factors of attention and MLP, 0 where one is dropped."""
        x, changed = self.parts(x, attn_mask, drop)
        return x + changed

    def parts(self, x: Tensor, attn_mask: Tensor | None, drop: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two summands (B, N, D) of the output: the tokens after attention, and the MLP's output."""
        attended = self.attn(self.norm1(x), attn_mask=attn_mask)
        x = x + (attended if drop is None else attended * drop[:, :1, None].to(attended.dtype))
        changed = self.mlp(self.norm2(x))
        return x, changed if drop is None else changed * drop[:, 1:, None].to(changed.dtype)


def call_block(block: Callable[..., Tensor], checkpointed: bool, *args: Any) -> Tensor:
    """Call a block; if it is `checkpointed`, its activations are computed again in the backward pass and not kept."""
    if checkpointed and torch.is_grad_enabled():
        # a block draws nothing, so that there is no random state to keep
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
    return block(*args)


class PatchEmbed(nn.Module):
    """Linear projection of patches, with timm's parameter names and shapes."""

    def __init__(self, patch_size: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, K, p) -> (B, K, D): the convolution, computed only for the given patches."""
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Vision Transformer over the kept patches of a log-mel of any length, with a class token.

    Parameters are named as in timm's VisionTransformer. Positions are computed and not part of the state_dict, unless
    loaded weights include a table `pos_embed` (columns, rows, D): it becomes part of the model, is never trained, is
    used as it is for a grid of its size and fitted to others (`fit_positions`).

    Args:
        audio: the front end, whose silence pads the input.
        model: the sizes.
        depth: number of blocks; the default is the model's.
    """

    pos_embed: Tensor | None
    block_type: type[Block] = EncoderBlock
    """The class of its blocks."""
    checkpointed = False
    """Whether activations within blocks are computed again in the backward pass (`call_block`)."""

    def __init__(self, audio: AudioConfig, model: ModelConfig, *, depth: int | None = None) -> None:
        super().__init__()
        self.silence, self.n_mels = audio.silence, audio.n_mels
        self.patch_size = model.patch_size
        self.positions = Positions(model.embed_dim)
        self.register_buffer("pos_embed", None)
        self.patch_embed = PatchEmbed(model.patch_size, model.embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, model.embed_dim))
        self.blocks = nn.ModuleList(
            self.block_type(model.embed_dim, model.num_heads, model.mlp_ratio, qkv_bias=True)
            for _ in range(model.depth if depth is None else depth)
        )
        self.norm: nn.Module = LayerNorm(model.embed_dim)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(init_weights)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the positions that the weights were trained with: their table, or computed ones without it."""
        if f"{prefix}cls_token" in state_dict:
            self.pos_embed = None
            table = state_dict.get(f"{prefix}pos_embed")
            if table is not None and table.ndim == 3 and table.shape[2] == self.positions.dim:
                self.pos_embed = torch.empty_like(table, device=self.cls_token.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def position_table(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions (L, D) of a grid of L patches."""
        if self.pos_embed is None:
            return self.positions(grid, device)
        return fit_positions(self.pos_embed, grid)

    def patchify(self, log_mel: Tensor) -> Patches:
        """(B, T, F) -> patches; ValueError for another number of bands than the front end's."""
        check_shape(log_mel, self.n_mels)
        grid = grid_size(log_mel.shape[1], log_mel.shape[2], self.patch_size)
        return Patches(patchify(log_mel, self.patch_size, self.silence), grid)

    def valid(self, patches: Patches, valid_frames: Tensor) -> Tensor:
        """(B, L) bool: the patches that contain sound, by the frames (B,) of each clip before padding."""
        return valid_patches(patches.values, self.patch_size, patches.grid[1], valid_frames)

    def forward(self, patches: Patches, kept: Kept, drop: Tensor | None = None) -> Tensor:
        """Normalised tokens (B, 1 + K, D) of the class token and the kept patches.

        Args:
            drop: (B, depth, 2), the factors of stochastic depth (`EncoderBlock`); None without it.
        """
        return self.norm(self.layer_outputs(patches, kept, drop)[-1])

    def layer_outputs(self, patches: Patches, kept: Kept, drop: Tensor | None = None) -> list[Tensor]:
        """Outputs of all blocks in order, (B, 1 + K, D) each, not normalised."""
        tokens, attn_mask = self.embed(patches, kept)
        outputs = []
        for number, block in enumerate(self.blocks):
            own = None if drop is None else drop[:, number]
            tokens = call_block(block, self.checkpointed, tokens, attn_mask, own)
            outputs.append(tokens)
        return outputs

    def embed(self, patches: Patches, kept: Kept) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, 1 + K, D) that the first block gets, of the class token and the kept patches, and their mask."""
        positions = self.position_table(patches.grid, patches.values.device)
        # gathered before the projection, so that removed patches cost nothing
        tokens = self.patch_embed(select(patches.values, kept.ids)) + functional.embedding(kept.ids, positions)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens, key_mask(kept.attend)


Precision = Literal["fp32", "bf16", "fp16"]


def choose_attention(model: nn.Module, device: torch.device, precision: Precision) -> None:
    """Enable fused attention, except on CPUs in reduced precision, where its backward pass takes half of a step.

    There plain matrix products use the processor's bfloat16 units: a step of the recipe `small` takes 0.25 s instead of
    0.46 s on an AMD EPYC with AVX512-BF16; in float32 it takes 0.70 s with either.
    """
    fused = device.type != "cpu" or precision == "fp32"
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = fused  # type: ignore[misc]  # Final only for TorchScript
