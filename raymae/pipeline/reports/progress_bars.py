"""Follow training stages from the driver: progress bars, hangs and failures, from the files that workers write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.training.guards.watchdog import failures, hangs
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


class Follower:
    """Shows the progress, the hangs and the failures of every stage while the block runs.

    `on_begin` gets the name of a stage at its first report.
    """

    def __init__(
        self,
        specs: list[StageSpec],
        on_begin: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.specs, self.on_begin = specs, on_begin
        self._logged = {line for spec in specs for line in problems(spec)}
        self._ended: set[str] = set()
        self._seen = {spec.name: -1 for spec in specs}
        self._first = {spec.name: latest_step(spec.artifact) or 0 for spec in specs}
        self._bars: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for bar in self._bars.values():
            bar.close()

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
        name = spec.name
        bar = self._bars.get(name)
        if bar is None:
            first = min(self._first[name], event["step"])
            bar = self._bars[name] = tqdm(
                total=event["steps"],
                initial=first,
                desc=name,
                unit="step",
                mininterval=1,
                smoothing=0,
            )
        shown = ("loss", "val/macro_accuracy", "val/mAP", "clips_per_second", "skipped_steps")
        bar.set_postfix({key: f"{event['metrics'][key]:.3g}" for key in shown if key in event["metrics"]})
        bar.update(event["step"] - bar.n)


def problems(spec: StageSpec) -> set[str]:
    """A line for every hang and every failure of a stage's workers."""
    return hangs([spec.artifact]) | failures([spec.artifact])
