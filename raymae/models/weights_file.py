"""Read and write weights as safetensors."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as save_tensors
from torch import Tensor, nn


def read_weights(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError for NaN and infinite values, and for what is no such file."""
    return finite(load_tensors(content))


def load_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, also those that are not finite; ValueError where it is no such file."""
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"no safetensors: {error}") from None


def finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights themselves; ValueError names a tensor with NaN or infinite values: every answer would be NaN."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has NaN or infinite values")
    return weights


def load_weights(model: nn.Module, content: bytes) -> None:
    """Load safetensors into a model, strictly."""
    model.load_state_dict(read_weights(content))


def save_weights(model: nn.Module) -> bytes:
    """A model's weights as safetensors."""
    return bytes(save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}))
