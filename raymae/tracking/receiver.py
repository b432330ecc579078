"""The interface that outboxes are delivered to, and the error of a server that doesn't answer. Without mlflow."""

from __future__ import annotations

from typing import Any, Protocol


class AwayError(ConnectionError):
    """The server doesn't answer, and may later."""

    unknown_host = False
    """Whether the host name doesn't resolve: rather a mistake than an outage."""


class Receiver(Protocol):
    """The interface that entries are delivered to, implemented by `raymae.tracking.tracker.Tracker`."""

    def run(
        self,
        key: str,
        name: str,
        *,
        parent: str | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        when: float | None = None,
    ) -> str:
        """The id of the run with this key."""
        ...

    def log_data(self, run_id: str, data: dict[str, Any]) -> None:
        """Log a data set as an input of the run."""
        ...

    def log_events(self, run_id: str, events: list[dict[str, Any]]) -> None:
        """Log the metrics of some steps."""
        ...

    def log_numbers(
        self, run_id: str, numbers: dict[str, float], prefix: str = "stage/", when: float | None = None
    ) -> None:
        """Log metrics of step 0."""
        ...

    def log_bytes(self, run_id: str, name: str, content: bytes) -> None:
        """Log a file."""
        ...

    def finish(self, run_id: str, status: str = "FINISHED", when: float | None = None) -> None:
        """End a run."""
        ...

    def forget(self) -> None:
        """Forget what the server has, after a failed request of which some may have arrived."""
        ...

    def refuses(self, error: Exception) -> bool:
        """Whether an error is a permanent refusal, which a retry would get again."""
        ...
