"""What a training says of itself as Ray's metrics, which every node exports for Prometheus and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

TEXTS = {
    "step": "Optimiser updates so far",
    "loss": "Mean loss of the last step that was reported",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "clips_per_second": "Clips trained on in a second, by all workers",
    "data_wait_share": "Share of a step that the training waited for data",
    "gpu_memory_gb": "Most memory that a GPU held so far, mean over the workers",
    "gpu_use": "Share of the time that a GPU computed, mean over the workers",
}
"""By metric of an event, what `raymae_<metric>` is. Its tags are the stage and the run: its artifact's key."""


class Gauges:
    """The gauges of one stage."""

    def __init__(self, stage: str, run: str) -> None:
        self._gauges = {name: Gauge(f"raymae_{name}", text, ("stage", "run")) for name, text in TEXTS.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"stage": stage, "run": run})

    def show(self, values: Mapping[str, float]) -> None:
        """Set those that have a value."""
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name])
