"""Masked autoencoders for acoustic scenes, trained on Ray.

The functions of `raymae.api` are attributes of the package. Nothing is imported before one of them is used, so that a
CPU worker can import `raymae.audio.decode` without torch, and a GPU machine the training loop without Ray.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

API = {
    "create_model": "models",
    "evaluate": "training",
    "finetune": "training",
    "load_classifier": "models",
    "load_encoder": "models",
    "log_mel": "features",
    "pretrain": "training",
    "run_pipeline": "training",
    "run_sweep": "sweeps",
}
"""By function the module of `raymae.api` that defines it."""


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'raymae' has no attribute {name!r}")
    return getattr(import_module(f"raymae.api.{API[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *API])
