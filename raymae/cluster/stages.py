"""The stages that a group of training workers runs: those that train, and those between them that don't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raymae.storage.folder import Folder
from raymae.storage.lease import Fence
from raymae.training.spec import StageSpec


@dataclass(frozen=True, kw_only=True)
class Between:
    """A stage that doesn't train, which the first worker runs between two that do: else the group would end before it
    and start anew behind it."""

    name: str
    """Its name in the pipeline."""
    artifact: Folder
    """The folder that it writes."""
    fence: Fence
    """The lease under which it is run."""
    run: Callable[[str], None]
    """Runs it on a device of torch, and finishes its artifact; picklable."""

    def check_lease(self) -> None:
        """Raise LeaseLostError if another process has taken the stage over."""
        self.fence.check()


def trainings(specs: Sequence[StageSpec | Between]) -> list[StageSpec]:
    """The stages that train."""
    return [spec for spec in specs if not isinstance(spec, Between)]
