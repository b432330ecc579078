"""Training metrics as Ray metrics, which every node exports for Prometheus and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

TEXTS = {
    "step": "Optimiser updates so far",
    "loss": "Mean loss of the last reported step",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "clips_per_second": "Clips per second, all workers",
    "data_wait_share": "Share of a step spent waiting for data",
    "gpu_memory_gb": "Peak GPU memory so far, mean over the workers",
    "gpu_use": "GPU utilisation, mean over the workers",
}
"""Descriptions of the gauges `raymae_<metric>`; their tags are the stage and the run, the artifact's key."""


class Gauges:
    """The gauges of one stage."""

    def __init__(self, stage: str, run: str) -> None:
        self._gauges = {name: Gauge(f"raymae_{name}", text, ("stage", "run")) for name, text in TEXTS.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"stage": stage, "run": run})

    def show(self, values: Mapping[str, float]) -> None:
        """Set the gauges that have a value."""
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name])
