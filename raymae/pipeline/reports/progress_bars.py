"""Follow training stages from the driver: progress bars, hangs and failures, from the files that workers write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from raymae.console.bars import Bar, open_bar
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.training.guards.watchdog import failures, hangs
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SHOWN = ("loss", "lr", "val/macro_accuracy", "val/mAP", "skipped_steps", "clips_per_second")
"""The metrics beside a bar."""


class Follower:
    """Shows the progress, the hangs and the failures of every stage while the block runs.

    `on_begin` gets the name of a stage at its first report, `on_end` when it is finished.
    """

    def __init__(
        self,
        specs: list[StageSpec],
        on_begin: Callable[[str], None] = lambda name: None,
        on_end: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.specs, self.on_begin, self.on_end = specs, on_begin, on_end
        self._logged = {line for spec in specs for line in problems(spec)}
        self._ended: set[str] = set()
        self._seen = {spec.name: -1 for spec in specs}
        self._first = {spec.name: latest_step(spec.artifact) or 0 for spec in specs}
        self._bar: Bar | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Follower:
        self._bar = open_bar("starting workers", 0, "clip")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show_none()

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        for spec in self.specs:
            if spec.name in self._ended:
                continue
            try:
                done = spec.artifact.is_done()
                self._log_problems(spec)
                self._pass_on(spec)
            except Exception as error:  # a follower that fails must not end the training
                log.warning("can't follow %s: %s", spec.name, error)
                continue
            if done:
                self._ended.add(spec.name)
                self._show_none()
                self.on_end(spec.name)

    def _log_problems(self, spec: StageSpec) -> None:
        for line in sorted(problems(spec) - self._logged):
            log.warning("%s: %s", spec.name, line)
            self._logged.add(line)

    def _pass_on(self, spec: StageSpec) -> None:
        events = read_events(spec.artifact, after=self._seen[spec.name])
        if not events:
            return
        self.on_begin(spec.name)
        self._seen[spec.name] = events[-1]["step"]
        self._show(spec, events[-1])

    def _show(self, spec: StageSpec, event: dict[str, Any]) -> None:
        clips, step = event["clips_per_step"], event["step"]
        if self._bar is None or self._bar.name != spec.name:
            self._show_none()
            first = min(self._first[spec.name], step)
            self._bar = open_bar(spec.name, event["steps"] * clips, "clip", first * clips)
        self._bar.move(step * clips, {key: event["metrics"][key] for key in SHOWN if key in event["metrics"]})
        if event["last"]:
            self._show_none()

    def _show_none(self) -> None:
        if self._bar:
            self._bar.close()
        self._bar = None


def problems(spec: StageSpec) -> set[str]:
    """A line for every hang and every failure of a stage's workers."""
    return hangs([spec.artifact]) | failures([spec.artifact])
