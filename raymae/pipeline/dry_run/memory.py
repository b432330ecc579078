"""Memory of a training step, by arithmetic on the structure of the models: the state of the weights, and what a step
computes and keeps for its backward pass.

It knows the settings alone, not the networks: what they are made of stands in the tables here and in `activations`,
whose letters these use; p are the values of a patch, and D' is the decoder's width. Counted are whole clips without
padding or silence, of one worker, without torch.compile. Beside it a GPU holds the CUDA context (about half a GB) and
what its allocator can't reuse; with ddp on several workers, buckets of the size of the gradients; and fine-tuning that
chooses by validation, a copy of the best weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig, PretrainConfig, TrainConfig
from raymae.pipeline.dry_run.activations import (
    BIAS_WIDTH,
    FLOAT,
    Block,
    Device,
    Numbers,
    Piece,
    block_products,
    checkpointed,
    conv_weights,
    decoder_blocks,
    transformer_block,
)

SPARE = 0.1
"""Share of the memory that is left to the CUDA context and to the allocator."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training step of one worker."""

    weights: float
    """All parameters in float32, the latent teacher's too."""
    gradients: float
    """Of the trained parameters, in float32: they add up over the micro-batches of a step. The one that is just being
    added, of a single weight, is not counted."""
    moments: float
    """AdamW's two, in float32."""
    average: float
    """The EMA of all parameters, where it is kept."""
    pieces: tuple[Piece, ...]
    """The parts of the model in the order of the forward pass."""

    @property
    def state(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.moments + self.average

    def kept(self, clips: int) -> float:
        """What the backward pass of `clips` needs when it begins."""
        return sum(piece.kept_once + clips * piece.kept for piece in self.pieces)

    def peak(self, clips: int) -> float:
        """Largest memory of a step with micro-batches of `clips`: in the forward or backward pass of one of the pieces,
        when those before it are kept, and those after it aren't yet or no more."""
        kept, copies, most = 0.0, 0.0, 0.0
        for piece in self.pieces:
            kept += piece.kept_once + clips * piece.kept
            copies += piece.copies
            most = max(most, kept + copies + clips * piece.forward, kept + piece.copies + clips * piece.backward)
        return self.state + most


def micro_batch_that_fits(found: Memory, gigabytes: float = 80) -> int:
    """The largest power of two of clips that fits with a tenth to spare; 0 if not even one does."""
    room, clips = gigabytes * 1e9 * (1 - SPARE), 1
    while found.peak(clips) <= room:
        clips *= 2
    return clips // 2


def pretrain_memory(
    audio: AudioConfig,
    model: ModelConfig,
    pretrain: PretrainConfig,
    device: Device = "cuda",
) -> Memory:
    """Memory of pre-training. Of every mask of a clip with K kept patches, N = K + 1, beside the blocks:

        gathered patches       c K p             input of the patch embedding, whose weight needs it
        encoder's norm         4 N D + 8 N       its input, and mean and deviation of every token
        decoder's embedding    c N D + c N D'    its input, and the tokens that are then spread over the grid
        places of the tokens   8 L               int64
        decoder's norm         4 L D' + 8 L      its input, mean and deviation
        prediction             c L D'            its input
        loss                   8 L t + 4 L       prediction and target in float32, and the mask; t = p, or D with
                                                 name = latent
        and in the forward     4 L t             the squared error
                               c L t             under autocast, the prediction before it becomes float32
                               4 L p             the patches, where they aren't the target themselves
        and in the backward    8 L t             the gradients of the squared error and of the prediction

    Autocast's copies of the weights (2 bytes each) are kept, too: the gradients of the products' inputs need them. Only
    the patch embedding's isn't, whose input has no gradient.
    """
    from raymae.features.augment import crop_frames
    from raymae.models import grid_size, kept_tokens

    numbers = Numbers(device=device, precision=pretrain.precision)
    grid = grid_size(crop_frames(pretrain.augment, audio), audio.n_mels, model.patch_size)
    patches, kept = grid[0] * grid[1], kept_tokens(grid, model)
    cast, tokens, width, narrow = numbers.cast, kept + 1, model.embed_dim, model.decoder_embed_dim
    loss = 2 * FLOAT * patches * target_size(model)
    others = model.name == "latent" or model.norm_target
    pieces = [
        Piece(kept=cast * kept * patch_values(model)),
        *encoder_blocks(tokens, model, numbers, model.depth, pretrain),
        Piece(
            kept=tokens * (FLOAT * width + 8 + cast * (width + narrow)) + 8 * patches,
            kept_once=numbers.copy * width * narrow,
        ),
        *kept_by(decoder_blocks(grid, model, numbers), pretrain),
        Piece(
            kept=patches * (FLOAT * narrow + 8 + cast * narrow + FLOAT) + loss,
            forward=loss / 2 + patches * (numbers.copy * target_size(model) + FLOAT * others * patch_values(model)),
            backward=loss,
            kept_once=numbers.copy * narrow * target_size(model),
        ),
    ]
    weights, trained = pretrain_parameters(model)
    return memory(weights, trained, pretrain.ema_decay, pieces, model.masks_per_clip, teacher(patches, model))


def finetune_memory(
    audio: AudioConfig,
    model: ModelConfig,
    finetune: FinetuneConfig,
    num_classes: int,
    device: Device = "cuda",
) -> Memory:
    """Memory of fine-tuning the encoder's classifier. Of every segment with K patches that the masks leave, N = K + 1,
    beside the blocks (`with_raw` doubles the segments of a clip):

        gathered patches       c K p             input of the patch embedding, whose weight needs it
        pool = cls             4 N D + 8 N       input of the norm, which comes before the pooling
        pool = mean            4 K               weights of the tokens
        pool = row_stats       4 K D + 8 K F     deviations from the means of F rows, and which patch is in which row
        and in the forward     4 L p             all patches of the input

    And of every clip, whose segments share the E values of the pooling:

        pool = mean            4 E               input of the norm, which comes after the pooling
        pool = row_stats       6 E               that input, and the standard deviations
        head                   c E               its input
    """
    from raymae.features.augment import crop_frames, segment_frames
    from raymae.models import grid_size
    from raymae.models.masking import kept_structured
    from raymae.models.pooling import segment_starts

    numbers, length = Numbers(device=device, precision=finetune.precision), segment_frames(finetune, audio)
    columns, n_rows = grid_size(length, audio.n_mels, model.patch_size)
    kept = kept_structured((columns, n_rows), finetune.time_mask_ratio, finetune.freq_mask_ratio)
    tokens, width, depth = kept + 1, model.embed_dim, finetune.layer or model.depth
    segments = len(segment_starts(crop_frames(finetune.augment, audio), length, model.patch_size[0]))
    pooled = width * (2 * n_rows if finetune.pool == "row_stats" else 1)
    of_segment, of_clip = {
        "mean": (FLOAT * kept, FLOAT * pooled),
        "cls": (tokens * (FLOAT * width + 8), 0),
        "row_stats": (kept * (FLOAT * width + 8 * n_rows), 6 * pooled),
    }[finetune.pool]
    head = pooled * (1 + finetune.with_raw) * num_classes
    pooling = of_segment + (of_clip + numbers.cast * pooled) / segments
    pieces = [
        Piece(kept=numbers.cast * kept * patch_values(model)),
        *encoder_blocks(tokens, model, numbers, depth, finetune),
        Piece(
            kept=pooling,
            forward=FLOAT * columns * n_rows * patch_values(model),
            kept_once=numbers.copy * head,
        ),
    ]
    weights = encoder_parameters(model, depth) + head + num_classes
    return memory(weights, weights, finetune.ema_decay, pieces, segments * (1 + finetune.with_raw))


def memory(
    weights: int, trained: int, ema_decay: float | None, pieces: Iterable[Piece], rows: int, *before: Piece
) -> Memory:
    """Put the parts together: numbers of all and of the trained parameters, pieces per row of the batch, of which a
    clip has `rows`, and pieces per clip before them."""
    whole = (
        replace(piece, kept=rows * piece.kept, forward=rows * piece.forward, backward=rows * piece.backward)
        for piece in pieces
    )
    return Memory(
        weights=FLOAT * weights,
        gradients=FLOAT * trained,
        moments=2 * FLOAT * trained,
        average=0 if ema_decay is None else FLOAT * weights,
        pieces=(*before, *whole),
    )


def encoder_blocks(
    tokens: int, model: ModelConfig, numbers: Numbers, depth: int, train: TrainConfig
) -> Sequence[Piece]:
    """The blocks of the encoder."""
    block = transformer_block(tokens, model.embed_dim, model.num_heads, model, numbers)
    return kept_by([block] * depth, train)


def kept_by(blocks: list[Block], train: TrainConfig) -> Sequence[Piece]:
    """The blocks with checkpointing or without."""
    return [checkpointed(block) for block in blocks] if train.activation_checkpointing else blocks


def teacher(patches: int, model: ModelConfig) -> Piece:
    """The latent teacher's pass without gradient, over before the student's begins: the outputs of all blocks (4 L D
    each) or, later, those of the upper ones, the same by patch, normalised, and stacked."""
    if model.name != "latent":
        return Piece()
    upper = model.latent.teacher_layers or -(-model.depth // 2)
    return Piece(forward=max(model.depth, 4 * upper) * FLOAT * (patches + 1) * model.embed_dim)


# Parameters --------------------------------------------------------------------------------------------------------


def patch_values(model: ModelConfig) -> int:
    """Values of a patch (p)."""
    return model.patch_size[0] * model.patch_size[1]


def target_size(model: ModelConfig) -> int:
    """Values that the decoder predicts for each patch."""
    return model.embed_dim if model.name == "latent" else patch_values(model)


def block_parameters(width: int, model: ModelConfig) -> int:
    """A block's weights: its products, their biases (5 D + H) and two norms (4 D)."""
    return block_products(width, model) + 9 * width + int(width * model.mlp_ratio)


def encoder_parameters(model: ModelConfig, depth: int) -> int:
    """Patch embedding with its bias, class token, blocks and norm."""
    width = model.embed_dim
    return width * (patch_values(model) + 1 + 1 + 2) + depth * block_parameters(width, model)


def pretrain_parameters(model: ModelConfig) -> tuple[int, int]:
    """All parameters in pre-training, and those that are trained."""
    width, narrow, heads = model.embed_dim, model.decoder_embed_dim, model.decoder_num_heads
    encoder, block = encoder_parameters(model, model.depth), block_parameters(narrow, model)
    if model.decoder == "conv":
        block = conv_weights(model) + narrow
    elif model.decoder == "local":  # the scale of every head, and the MLP of the position biases
        block += heads + (2 + 1) * BIAS_WIDTH + (BIAS_WIDTH + 1) * heads
    # embedding, mask token, norm, prediction
    frame = (width + 1) * narrow + narrow + 2 * narrow + (narrow + 1) * target_size(model)
    trained = encoder + model.decoder_depth * block + frame
    if model.name == "mae":
        return trained, trained
    if model.latent.clip_target == "tokens":
        trained += (width + 1) * width  # the clip's prediction; the teacher is another encoder
    return trained + encoder, trained
