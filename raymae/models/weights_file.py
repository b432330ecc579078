"""Read and write weights as safetensors."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as save_tensors
from torch import Tensor, nn


def read_weights(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; ValueError for another format and for NaN or infinite values."""
    return finite(load_tensors(content))


def load_tensors(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, also non-finite ones; ValueError for another format."""
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from None


def finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights; ValueError names a tensor with NaN or infinite values, which would make every output NaN."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has NaN or infinite values")
    return weights


def load_weights(model: nn.Module, content: bytes) -> None:
    """Load the content of a safetensors file into a model, strictly."""
    model.load_state_dict(read_weights(content))


def save_weights(model: nn.Module) -> bytes:
    """Write a model's weights as the content of a safetensors file."""
    return bytes(save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}))
