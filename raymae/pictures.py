"""Figures of a training stage while it runs; the driver passes them on to MLflow (`raymae.follow`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raymae.figures import learning_curves
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.storage.png import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = "figures/learning_curves.png"
DRAW_SECONDS = 60.0
"""Least time between two drawings, which stop the training for a second or two."""


class Pictures:
    """Draws the figures of one stage."""

    def __init__(self, artifact: Folder, title: str) -> None:
        self.artifact, self.title = artifact, title
        self._events: list[dict[str, Any]] = []
        self._drawn = time.monotonic()

    def due(self) -> bool:
        """Whether the last drawing is long enough ago."""
        return time.monotonic() - self._drawn >= DRAW_SECONDS

    def draw(self, event: dict[str, Any], figures: Mapping[str, Figure]) -> list[str]:
        """Write the curves up to `event`, in place of the last ones, and `figures` under the step; the files' names."""
        step = event["step"]
        files = {f"figures/{name}-{step:09d}.png": figure for name, figure in figures.items()}
        files[CURVES] = learning_curves([*self._before(step), event], self.title)
        for name, figure in files.items():
            self.artifact.write_bytes(name, png(figure))
        self._drawn = time.monotonic()
        return list(files)

    def _before(self, step: int) -> list[dict[str, Any]]:
        """The events before a step; each is read once. Later ones are from before a restart."""
        last = self._events[-1]["step"] if self._events else -1
        self._events += [event for event in read_events(self.artifact, after=last) if event["step"] < step]
        return self._events
