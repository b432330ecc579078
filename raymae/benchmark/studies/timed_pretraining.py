"""Pre-training that keeps the CPU seconds of its steps, and the probes' scores against them."""

from __future__ import annotations

import time

import numpy as np
from torch import nn

from raymae.training.spec import StageSpec
from raymae.training.tasks.pretrain import PretrainTask
from raymae.training.worker import BareSession, Session

EVERY = 2
"""Of the loop's marks every second one is probed."""


class TimedPretraining(PretrainTask):
    """`PretrainTask` of one process; `seconds`, `steps` and `scores` grow mark by mark, from the untrained encoder on.

    Seconds are CPU seconds of all threads of the process, without those of the probes.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.seconds: list[float] = []
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {}
        self._ends: list[float] = []
        self._visits = self._probing = 0.0
        self.validate(self.model.eval(), BareSession(spec.store, spec.artifact))
        self._started = self._clock()

    def _clock(self) -> float:
        return time.process_time() - self._probing

    def after_update(self, share: float) -> None:
        """Keep the time of the step."""
        super().after_update(share)
        self._ends.append(self._clock())

    def step_seconds(self) -> float:
        """Median CPU seconds of a step; the first third doesn't count."""
        return float(np.median(np.diff(self._ends[len(self._ends) // 3 :])))

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Probe as pre-training does, at every second mark."""
        begun = time.process_time()
        spent = self._clock() - self._started if self._ends else 0.0
        found = super().validate(model, session) if self._visits % EVERY == 0 else {}
        self._visits += 1
        if found:
            self.seconds.append(spent)
            self.steps.append(len(self._ends))
            for name, value in found.items():
                self.scores.setdefault(name, []).append(value)
        self._probing += time.process_time() - begun
        return found
