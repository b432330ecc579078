"""Float32 within autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(values: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves the operations on the device of `values` as they are."""
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
