"""Conversion of weights between raymae's names and those of timm and of Audio-MAE's public code, and their loading.

raymae's names: `encoder.` before timm's names of the encoder's parameters, `encoder.pos_embed` (columns, rows, D) for
positions that aren't computed, `norm.` for the norm after the pooling (timm's fc_norm).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raymae.models.classifier import AudioClassifier
from raymae.models.patches import Grid

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]

AUDIO_MAE_GRID = (64, 8)
"""Columns and rows of Audio-MAE's 512 positions: 1,024 frames and 128 bands in patches of 16 x 16 (its section 4.1)."""

EMBEDDING = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
BLOCK = tuple(
    f"{layer}.{kind}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
NORMS = tuple(f"{norm}.{kind}" for norm in ("norm", "fc_norm") for kind in ("weight", "bias"))
NOT_ENCODER = ("decoder", "mask_token", "head.", "head_dist.")
"""Prefixes of names that are not loaded: Audio-MAE's decoder, heads of other classes."""


def blocks_of(state: State, prefix: str = "") -> int:
    """Number of blocks in a state dict."""
    inner = f"{prefix}blocks."
    return 1 + max((int(name[len(inner) :].split(".")[0]) for name in state if name.startswith(inner)), default=-1)


def own_names(state: State, n_rows: int) -> dict[str, Tensor]:
    """Rename the encoder of a state dict from timm's VisionTransformer's or Audio-MAE's names to raymae's.

    The class token's position is added to the class token.

    Args:
        state: pos_embed (1, 1 + L, D), patch_embed.proj, cls_token, blocks, norm or fc_norm; decoder and head are
            skipped, with a log line.
        n_rows: frequency rows of the patches: the L positions are a grid with this number of rows, unless they are
            Audio-MAE's.

    Raises:
        ValueError: a name is missing or unknown, or a shape doesn't fit such an encoder.
    """
    dropped = [name for name in state if name.startswith(NOT_ENCODER)]
    given = {name: value for name, value in state.items() if name not in set(dropped)}
    check_names(given)
    if dropped:
        log.info("skipped %d tensors of decoder and heads, the first is %s", len(dropped), dropped[0])
    positions, cls_token = given["pos_embed"].float(), given["cls_token"].float()
    grid = grid_of(positions, given["patch_embed.proj.weight"], n_rows)
    own = {f"encoder.{name}": value.float() for name, value in given.items() if name not in NORMS}
    own["encoder.cls_token"] = cls_token + positions[:, :1]
    own["encoder.pos_embed"] = positions[0, 1:].unflatten(0, grid)
    for kind in ("weight", "bias"):
        if f"fc_norm.{kind}" in given:
            own[f"norm.{kind}"] = given[f"fc_norm.{kind}"].float()
        if f"norm.{kind}" in given:
            own[f"encoder.norm.{kind}"] = given[f"norm.{kind}"].float()
    return {name: value.contiguous() for name, value in own.items()}


def check_names(state: State) -> None:
    """Raise ValueError unless the names are those of an encoder like raymae's."""
    blocks = [f"blocks.{block}.{name}" for block in range(max(1, blocks_of(state))) for name in BLOCK]
    wanted = [*EMBEDDING, *blocks]
    if not any(name in state for name in wanted):
        raise ValueError(
            f"unknown names: expected {', '.join(EMBEDDING)}, blocks.0.… as in timm or Audio-MAE; found "
            f"{', '.join(sorted(state)[:5]) or 'no tensor'}"
        )
    missing = [name for name in wanted if name not in state]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"missing: {missing[0]}{more}")
    unknown = sorted(set(state) - {*wanted, *NORMS})
    if unknown:
        raise ValueError(
            f"{unknown[0]} is not part of this encoder ({len(unknown)} such tensors): another architecture"
        )


def grid_of(positions: Tensor, projection: Tensor, n_rows: int) -> Grid:
    """Columns and rows of a table of positions (1, 1 + L, D), whose first position is the class token's."""
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[1] < 2:
        raise ValueError(f"pos_embed: found {tuple(positions.shape)}, expected (1, 1 + patches, embed_dim)")
    patches = positions.shape[1] - 1
    if patches == AUDIO_MAE_GRID[0] * AUDIO_MAE_GRID[1] and tuple(projection.shape[2:]) == (16, 16):
        return AUDIO_MAE_GRID
    if patches % n_rows:
        raise ValueError(
            f"pos_embed: found {tuple(positions.shape)}, {patches} patches, which is not a multiple of the "
            f"{n_rows} rows given by audio.n_mels and model.patch_size"
        )
    return patches // n_rows, n_rows


def timm_names(encoder: State, positions: Tensor) -> dict[str, Tensor]:
    """Rename the state of an `Encoder`, with its positions (L, D) on some grid, to timm's VisionTransformer's names."""
    state = {name: value for name, value in encoder.items() if name != "pos_embed"}
    return {**state, "pos_embed": torch.cat([torch.zeros_like(positions[:1]), positions])[None]}


def misfits(own: State, given: State) -> list[str]:
    """Tensors of `own` that are missing in `given` or have another shape there, with the shapes."""
    missing = [f"{name} is missing, expected {tuple(value.shape)}" for name, value in own.items() if name not in given]
    shared = [name for name in own if name in given]
    return missing + [
        f"{name}: found {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        for name in shared
        if own[name].shape != given[name].shape
    ]


def encoder_weights(model: nn.Module, given: State) -> dict[str, Tensor]:
    """Select the weights for the encoder of a new model from weights in raymae's names.

    The given weights may have more blocks than the model (see `finetune.layer`) and a final norm that the model doesn't
    have. If the model has a final norm and they don't, their norm after the pooling is used. Everything else has to
    fit. A position table among them is included.

    Raises:
        ValueError: weights are missing, unknown or of another shape; the message has their names and shapes.
    """
    own = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
    weights = {name: value for name, value in given.items() if name.startswith("encoder.")}
    for kind in ("weight", "bias"):
        if f"encoder.norm.{kind}" in own and f"norm.{kind}" in given:
            weights.setdefault(f"encoder.norm.{kind}", given[f"norm.{kind}"])
    spare = ("encoder.blocks.", "encoder.norm.", "encoder.pos_embed")
    wrong = misfits(own, weights)
    wrong += [f"{name} is unknown" for name in weights if name not in own and not name.startswith(spare)]
    if blocks_of(weights, "encoder.") < blocks_of(own, "encoder."):
        found, needed = blocks_of(weights, "encoder."), blocks_of(own, "encoder.")
        wrong.insert(0, f"found {found} blocks, expected {needed} (model.depth, or finetune.layer)")
    table = weights.get("encoder.pos_embed")
    width = own["encoder.cls_token"].shape[2]
    if table is not None and (table.ndim != 3 or table.shape[2] != width):
        wrong.append(f"encoder.pos_embed: found {tuple(table.shape)}, expected (columns, rows, {width})")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"the encoder doesn't fit the settings of model: {'; '.join(wrong[:5])}{more}")
    taken = {name: weights[name] for name in own}
    return taken if table is None else {**taken, "encoder.pos_embed": table}


def load_encoder(classifier: AudioClassifier, given: State) -> None:
    """Load the encoder (see `encoder_weights`) and, if both use mean pooling, the norm after it."""
    weights = encoder_weights(classifier, given)
    if classifier.finetune.pool == "mean":
        weights |= {name: given[name] for name in ("norm.weight", "norm.bias") if name in given}
    classifier.load_state_dict(weights, strict=False)


def pretrained_weights(model: nn.Module, given: State) -> dict[str, Tensor]:
    """Select the weights for a new pre-training model: the encoder (`encoder_weights`) and, if it fits, the rest.

    Otherwise the rest is initialised anew, with a log line, and a teacher (`models.latent`) is a copy of the encoder.
    """
    weights = encoder_weights(model, given)
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    wrong = misfits(rest, given)
    if not wrong:
        return weights | {name: given[name] for name in given if name in rest or name == "teacher.pos_embed"}
    log.info("only the encoder is loaded, the decoder is initialised anew: %s", wrong[0])
    if any(name.startswith("teacher.") for name in rest):
        weights |= {f"teacher.{name.removeprefix('encoder.')}": value for name, value in weights.items()}
    return weights


def load_pretrained(model: nn.Module, given: State) -> None:
    """Load the `pretrained_weights` into a new pre-training model."""
    model.load_state_dict(pretrained_weights(model, given), strict=False)
