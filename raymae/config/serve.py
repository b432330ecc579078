"""How a classifier is served over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from raymae.config.values import require

MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What jobs/serve.py serves, where, and how much of it at once."""

    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is this machine alone; there is no log-in, so think before you give another."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Processes that hold the classifier; each takes a GPU where the cluster has some (compute.use_gpu), else a CPU."""
    batch: int = 16
    """Most windows, of any requests, in one forward pass. None waits for others: what came in during one pass makes
    the next."""
    queue: int = 32
    """Requests that a replica works on or keeps waiting; beyond them it answers 503."""
    timeout_seconds: float = 60.0
    """Longest that a request may take, its upload (else 408) and its work (else 504)."""
    max_mb: float = 64.0
    """Largest upload, 10^6 bytes (else 413)."""
    max_minutes: float = 10.0
    """Longest recording (else 422)."""

    def __post_init__(self) -> None:
        require(0 < self.port < 2**16, f"serve.port = {self.port} must lie between 1 and 65535")
        for name in ("replicas", "batch", "queue"):
            require(getattr(self, name) >= 1, f"serve.{name} = {getattr(self, name)} must be at least 1")
        for name in ("timeout_seconds", "max_mb", "max_minutes"):
            require(getattr(self, name) > 0, f"serve.{name} = {getattr(self, name)} must be positive")

    @property
    def max_bytes(self) -> int:
        """Largest upload, bytes."""
        return int(self.max_mb * MB)
