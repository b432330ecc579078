"""Decoders of the masked autoencoder: Transformer blocks or convolutions over the tokens of all patches."""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import ModelConfig
from raymae.models.encoder import call_block, key_mask
from raymae.models.patches import Grid
from raymae.models.precision import full_precision

WINDOW = 4
"""Patches along each side of a window (Audio-MAE, section 3)."""
SHIFT = 2
"""Patches by which every second block's windows are shifted, along time only."""
KERNEL = 3
"""Patches along each side of a convolution (EAT, decoder_kernel)."""
MAX_LOGIT_SCALE = math.log(100)
"""Upper limit of the learned log scale (Swin V2, section 3.3: the temperature stays above 0.01)."""


class GlobalDecoder(nn.Module):
    """Transformer blocks with global attention over the class token and all patches."""

    takes_positions = True
    """As `ConvDecoder.takes_positions`."""
    checkpointed = False
    """As `Encoder.checkpointed`."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        width, heads = model.decoder_embed_dim, model.decoder_num_heads
        self.blocks = nn.ModuleList(
            Block(width, heads, model.mlp_ratio, qkv_bias=True) for _ in range(model.decoder_depth)
        )

    def forward(self, tokens: Tensor, grid: Grid, valid: Tensor | None) -> Tensor:
        """(B, 1 + L, D) -> (B, L, D); nothing attends to a patch that isn't in `valid` (B, L), None meaning all."""
        attn_mask = key_mask(valid)
        for block in self.blocks:
            tokens = call_block(block, self.checkpointed, tokens, attn_mask)
        return tokens[:, 1:]


class LocalDecoder(nn.Module):
    """Blocks of window attention as in Swin V2 (Liu et al. 2022), as in Audio-MAE's decoder.

    The class token belongs to no window and is left out.
    """

    takes_positions = True
    """As `ConvDecoder.takes_positions`."""
    checkpointed = False
    """As `Encoder.checkpointed`."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(model.decoder_embed_dim, model.decoder_num_heads, model.mlp_ratio)
            for _ in range(model.decoder_depth)
        )

    def forward(self, tokens: Tensor, grid: Grid, valid: Tensor | None) -> Tensor:
        """(B, 1 + L, D) -> (B, L, D); nothing attends to a patch that isn't in `valid` (B, L), None meaning all."""
        patches = tokens[:, 1:].contiguous().unflatten(1, grid)  # laid out as between the blocks, for the compiler
        shifts = (0, SHIFT)
        allowed = [window_mask(valid, len(tokens), grid, shift, tokens.device) for shift in shifts]
        for i, block in enumerate(self.blocks):
            patches = call_block(block, self.checkpointed, patches, shifts[i % 2], allowed[i % 2])
        return patches.flatten(1, 2)


class ConvDecoder(nn.Module):
    """Grouped convolutions over the grid of patches, as in data2vec 2.0 (Baevski et al. 2022, section 3.2) and EAT.

    The class token is left out, and no positions are added. Patches that aren't valid are zero in every layer, as those
    beyond the edges are: so padding changes nothing.
    """

    takes_positions = False
    """Whether tokens come with the embeddings of their places."""
    checkpointed = False
    """As `Encoder.checkpointed`."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(model.decoder_embed_dim, model.decoder_num_heads) for _ in range(model.decoder_depth)
        )

    def forward(self, tokens: Tensor, grid: Grid, valid: Tensor | None) -> Tensor:
        """(B, 1 + L, D) -> (B, L, D); nothing depends on a patch that isn't in `valid` (B, L), None meaning all."""
        patches = tokens[:, 1:].float().contiguous().unflatten(1, grid)  # the residual stream, also under autocast
        used = None if valid is None else valid.unflatten(1, grid)[..., None]
        patches = patches if used is None else patches * used
        for block in self.blocks:
            patches = call_block(block, self.checkpointed, patches, used)
        return patches.flatten(1, 2)


DECODERS: dict[str, type[GlobalDecoder] | type[LocalDecoder] | type[ConvDecoder]] = {
    "local": LocalDecoder,
    "global": GlobalDecoder,
    "light": GlobalDecoder,
    "conv": ConvDecoder,
}


class ConvBlock(nn.Module):
    """A grouped convolution, layer norm without weights, GELU, and the residual."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=groups)

    def forward(self, x: Tensor, used: Tensor | None) -> Tensor:
        """(B, T, F, D) -> (B, T, F, D), zero where not `used` (B, T, F, 1)."""
        changed = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + functional.gelu(functional.layer_norm(changed, changed.shape[3:]))
        return x if used is None else x * used


class WindowBlock(nn.Module):
    """Attention within windows and an MLP, each followed by its norm (res-post-norm); initialised as the identity."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, num_heads)
        self.norm1 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = LayerNorm(dim)
        for norm in (self.norm1, self.norm2):
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor, shift: int, allowed: Tensor | None) -> Tensor:
        """(B, T, F, D) -> (B, T, F, D); `allowed` is the `window_mask` of the same shift."""
        attended = from_windows(self.attn(to_windows(x, shift), allowed), (x.shape[1], x.shape[2]), shift)
        x = x + self.norm1(attended)
        return x + self.norm2(self.mlp(x))


class WindowAttention(nn.Module):
    """Scaled cosine attention with a learned bias of the log-spaced offset of two patches (Swin V2, section 3.3)."""

    offsets: Tensor

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.logit_scale = nn.Parameter(torch.full((num_heads,), math.log(10)))
        self.bias_mlp = Mlp(2, 384, num_heads, act_layer=nn.ReLU)
        self.register_buffer("offsets", log_offsets(), persistent=False)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        """(N, W, D) windows of W patches -> (N, W, D); `allowed` (N, 1, W, W) bool, None meaning all."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()[:, None, None]
        bias = self.bias_mlp(self.offsets).permute(2, 0, 1)[None]
        if allowed is not None:
            bias = bias.masked_fill(~allowed, -torch.inf)
        attend = attend_plainly if x.device.type == "cpu" else attend_fused
        return self.proj(attend(qkv, scale, bias).transpose(1, 2).flatten(2))


def attend_fused(qkv: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Cosine attention by torch's fused kernels: queries, keys and values (3, N, H, W, d) -> (N, H, W, d).

    Args:
        scale: (H, 1, 1), of the cosines.
        bias: (N or 1, H, W, W), added to them.
    """
    q, k, v = qkv
    # in float32: float16 would round the epsilon against padding of zero length to zero
    q, k = functional.normalize(q.float(), dim=-1) * scale, functional.normalize(k.float(), dim=-1)
    return functional.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=bias.to(q.dtype), scale=1.0)


def attend_plainly(qkv: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`attend_fused` for CPUs, which have no fused kernel for a learned bias.

    Scaling the W x W logits instead of the vectors, and copying only once, halves the overhead of attention beside its
    matrix products.
    """
    with full_precision(qkv):
        q, k, v = qkv.float().contiguous()
        lengths_q, lengths_k = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
        logits = torch.addcmul(bias.float(), q @ k.mT, scale / lengths_q / lengths_k.mT)
        return logits.softmax(-1) @ v


def log_offsets() -> Tensor:
    """(W, W, 2): sign(d) log(1 + |d|) of the offset d in (time, frequency) between two patches of a window."""
    side = torch.arange(WINDOW, dtype=torch.float32)
    places = torch.cartesian_prod(side, side)
    offsets = places[:, None] - places[None]
    return offsets.sign() * offsets.abs().log1p()


def window_padding(grid: Grid, shift: int) -> tuple[int, int, int, int]:
    """Patches to pad (before and after the rows, before and after the columns) to whole windows.

    Windows shifted by `shift` begin that many patches later; the columns before them get a window of their own.
    """
    before = -shift % WINDOW
    return 0, -grid[1] % WINDOW, before, -(grid[0] + before) % WINDOW


def to_windows(x: Tensor, shift: int) -> Tensor:
    """(B, T, F, D) -> (B x windows, W, D), zero-padded."""
    padding = window_padding((x.shape[1], x.shape[2]), shift)
    if any(padding):
        x = functional.pad(x, (0, 0, *padding))
    batch, columns, rows, dim = x.shape
    x = x.view(batch, columns // WINDOW, WINDOW, rows // WINDOW, WINDOW, dim).transpose(2, 3)
    return x.reshape(-1, WINDOW * WINDOW, dim)


def from_windows(windows: Tensor, grid: Grid, shift: int) -> Tensor:
    """(B x windows, W, D) -> (B, T, F, D): the inverse of `to_windows`."""
    _, after_rows, before, after = window_padding(grid, shift)
    across, down = (grid[0] + before + after) // WINDOW, (grid[1] + after_rows) // WINDOW
    x = windows.view(-1, across, down, WINDOW, WINDOW, windows.shape[2]).transpose(2, 3)
    x = x.reshape(-1, across * WINDOW, down * WINDOW, windows.shape[2])
    return x[:, before : before + grid[0], : grid[1]]


def window_mask(valid: Tensor | None, batch: int, grid: Grid, shift: int, device: torch.device) -> Tensor | None:
    """(B x windows, 1, W, W) bool: the keys that a query attends to; None without padding and invalid patches.

    Each patch also attends to itself, so that the result for a window of padding only is finite.
    """
    if valid is None and not any(window_padding(grid, shift)):
        return None
    if valid is None:
        valid = torch.ones(batch, grid[0] * grid[1], dtype=torch.bool, device=device)
    keys = to_windows(valid.view(-1, *grid, 1), shift)[:, None, None, :, 0]
    return keys | torch.eye(WINDOW * WINDOW, dtype=torch.bool, device=device)
