"""Bytes of the activations that Transformer blocks keep for the backward pass, by arithmetic on their structure.

In the tables N are tokens of width D in h heads, and H values in the hidden layer of an MLP; L are all patches of a
clip. A number is 4 bytes in float32, and c in the type that autocast computes in: 2 in bf16 and fp16, 4 in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymae.config import ModelConfig

Device = Literal["cpu", "cuda"]

FLOAT = 4
BIAS_WIDTH = 384
"""Hidden values of the MLP of position biases (raymae.models.decoder.WindowAttention)."""
ALIGNED = 32
"""Multiple to which CUDA's attention with a bias pads the queries in its float32 sums."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How numbers are stored, and attention is computed."""

    device: Device
    precision: Literal["fp32", "bf16", "fp16"]

    @property
    def cast(self) -> int:
        """Bytes of a number in the type of autocast (c)."""
        return FLOAT if self.precision == "fp32" else 2

    @property
    def copy(self) -> int:
        """Bytes of autocast's copy of a weight, which the backward pass needs; none in fp32."""
        return 0 if self.precision == "fp32" else self.cast

    @property
    def norm_input(self) -> int:
        """Bytes of a number in the input of a norm after a linear layer: CUDA's autocast makes it float32."""
        return self.cast if self.device == "cpu" else FLOAT

    @property
    def fused(self) -> bool:
        """Whether attention keeps no matrix of tokens x tokens, see `raymae.models.choose_attention`."""
        return self.device == "cuda" or self.precision == "fp32"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes of a part of a model, per clip and, where it says so, once for all clips."""

    kept: float = 0.0
    """From its forward to its backward pass."""
    forward: float = 0.0
    """For a moment of the forward pass, beside what it and the parts before it keep."""
    backward: float = 0.0
    """For a moment of the backward pass."""
    kept_once: float = 0.0
    """As `kept`, for any number of clips."""
    copies: float = 0.0
    """For any number of clips, until the forward pass ends, and again in its own backward pass."""


@dataclass(frozen=True, kw_only=True)
class Block(Piece):
    """A Transformer block; `backward` are the gradients that its backward pass holds at once."""

    input: float
    again: float
    """What has to be computed again if the input alone is kept."""


def checkpointed(block: Block) -> Piece:
    """A block that keeps its input, and computes the rest again in its backward pass."""
    backward = block.again + block.backward
    return Piece(kept=block.input, forward=block.again, backward=backward, copies=block.kept_once)


def block_products(width: int, model: ModelConfig) -> int:
    """Weights of a block's matrix products, of which autocast makes copies: qkv, projection, fc1 and fc2."""
    return 4 * width**2 + 2 * width * int(width * model.mlp_ratio)


def transformer_block(tokens: int, width: int, heads: int, model: ModelConfig, numbers: Numbers) -> Block:
    """timm's Block, of encoder and global decoder, over N tokens:

        inputs of both norms   8 N D     the residual stream, which stays float32 beside autocast's results
        both norms             16 N      mean and deviation of every token
        inputs of qkv and fc1  2 c N D   the norms' outputs, cast; in fp32 themselves
        queries, keys, values  3 c N D   one tensor, or in unfused attention three
        result of attention    c N D     also the projection's input
        fused attention        4 h N     logarithms of the sums over the keys, from which the weights are found again
        unfused attention      c h N²    the weights after the softmax
        before the GELU        c N H
        after the GELU         c N H     input of fc2

    Sums and the results of projection and fc2 keep nothing, stochastic depth but its two factors, which are not
    counted. In the backward pass of fc2 there are three gradients: that of the residual stream (4 N D), its cast or
    product with a factor (c N D), and that of the hidden layer (c N H).
    """
    cast, values, hidden = numbers.cast, tokens * width, tokens * int(width * model.mlp_ratio)
    attention = FLOAT * heads * tokens if numbers.fused else cast * heads * tokens**2
    again = FLOAT * values + 16 * tokens + 6 * cast * values + attention + 2 * cast * hidden
    return Block(
        input=FLOAT * values,
        again=again,
        kept=FLOAT * values + again,
        kept_once=numbers.copy * block_products(width, model),
        backward=(FLOAT + cast) * values + cast * hidden,
    )


def window_block(grid: tuple[int, int], shift: int, model: ModelConfig, numbers: Numbers) -> Block:
    """A block of the local decoder. Padded to whole windows of W = 16 patches, the L patches are M:

        windows                c M D     input of qkv: a copy, window by window
        cosine attention       see `window_attention`
        projection             c M D     its input, which on CUDA is the result of attention
        first norm             c M D     its input, the projection's result; under CUDA's autocast 4 L D, in float32
        input of the MLP       c L D     cast; in fp32 the residual stream itself
        before and after GELU  2 c L H
        second norm            c L D     its input, fc2's result; under CUDA's autocast 4 L D
        both norms             16 L      mean and deviation of every patch
        position biases        c W² 384  once for all clips: the hidden layer of their MLP, for every two places

    The norms come last, so that none keeps the residual stream: the block's input (4 L D) is only kept to compute the
    block again. The masks that are then kept with it, one of each shift for all blocks, are not counted.
    """
    from raymae.models.decoder import WINDOW, window_padding

    left, right, before, after = window_padding(grid, shift)
    padded = (grid[0] + before + after) * (grid[1] + left + right)
    patches, width, cast = grid[0] * grid[1], model.decoder_embed_dim, numbers.cast
    values, hidden = patches * width, patches * int(width * model.mlp_ratio)
    first = cast * padded * width if numbers.norm_input == cast else FLOAT * values
    attention = window_attention(padded, WINDOW**2, padded > patches, model, numbers)
    norms = first + numbers.norm_input * values + 16 * patches
    kept = 2 * cast * padded * width + attention + norms + cast * values + 2 * cast * hidden
    return Block(
        input=FLOAT * values,
        again=kept,
        kept=kept,
        kept_once=numbers.copy * block_products(width, model) + cast * WINDOW**4 * BIAS_WIDTH,
        backward=(FLOAT + cast) * values + cast * hidden,
    )


def window_attention(padded: int, keys: int, masked: bool, model: ModelConfig, numbers: Numbers) -> float:
    """Scaled cosine attention of M patches, each to the W of its window. On CUDA:

        lengths                16 M h         float32 norms of queries and keys, before and after their lower limit
        unit queries           4 M D          float32, for the gradient of the learned scale
        input of the kernel    3 c M D        queries, keys, values
        before the norms       8 M D          queries and keys in float32; in fp32 they are qkv's result
        sums                   4 h M 32 / W   the kernel pads the 16 queries of a window to 32
        masked windows         c h M W + M W  the position biases with every window's mask, and that mask

    On CPUs, in float32 whatever the precision:

        q, k, v                12 M D
        lengths                20 M h         as above, and the scaled inverse of the queries'
        logits                 12 h M W       cosines, their scale, and the weights after the softmax
        masked windows         M W            the mask
    """
    width, heads, cast = model.decoder_embed_dim, model.decoder_num_heads, numbers.cast
    mask = padded * keys if masked else 0
    if numbers.device == "cpu":
        return padded * (3 * FLOAT * width + 5 * FLOAT * heads + 3 * FLOAT * heads * keys) + mask
    vectors = 3 * FLOAT + 3 * cast
    sums = FLOAT * heads * padded * ALIGNED / keys
    return padded * (4 * FLOAT * heads + vectors * width) + sums + mask * (1 + cast * heads)


def conv_weights(model: ModelConfig) -> int:
    """Weights of a convolution of the decoder."""
    from raymae.models.decoder import KERNEL

    return KERNEL**2 * model.decoder_embed_dim**2 // model.decoder_num_heads


def conv_block(patches: int, model: ModelConfig, numbers: Numbers) -> Block:
    """A layer of the convolutional decoder, over L patches without padding:

        input                  c L D     cast; in fp32 the residual stream itself
        norm                   c L D     its input, the convolution's result; under CUDA's autocast 4 L D
        its mean, deviation    8 L
        before the GELU        c L D     the norm's result; under CUDA's autocast 4 L D

    In the backward pass there are three gradients: that of the residual stream (4 L D), and those of the norm's result
    and its input.
    """
    values = patches * model.decoder_embed_dim
    again = (numbers.cast + 2 * numbers.norm_input) * values + 8 * patches
    return Block(
        input=FLOAT * values,
        again=again,
        kept=again,
        kept_once=numbers.copy * conv_weights(model),
        backward=(FLOAT + 2 * numbers.norm_input) * values,
    )


def decoder_blocks(grid: tuple[int, int], model: ModelConfig, numbers: Numbers) -> list[Block]:
    """The blocks of the decoder; every second one of a local decoder has shifted windows."""
    if model.decoder == "conv":
        return [conv_block(grid[0] * grid[1], model, numbers)] * model.decoder_depth
    if model.decoder != "local":
        tokens = grid[0] * grid[1] + 1
        block = transformer_block(tokens, model.decoder_embed_dim, model.decoder_num_heads, model, numbers)
        return [block] * model.decoder_depth
    from raymae.models.decoder import SHIFT

    pair = [window_block(grid, shift, model, numbers) for shift in (0, SHIFT)]
    return [pair[i % 2] for i in range(model.decoder_depth)]
