"""Pre-training that records the CPU seconds of its steps and the probe scores over them."""

from __future__ import annotations

import time

import numpy as np
from torch import nn

from raymae.training.spec import StageSpec
from raymae.training.tasks.pretrain import PretrainTask
from raymae.training.worker import BareSession, Session

EVERY = 2
"""Probes run at every second validation of the training loop."""


class TimedPretraining(PretrainTask):
    """`PretrainTask` in one process; `seconds`, `steps` and `scores` get one value per probed validation.

    The first values are those of the untrained encoder. Seconds are CPU seconds of all threads of the process, without
    the probes.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.seconds: list[float] = []
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {}
        self._ends: list[float] = []
        self._validations = self._probe_seconds = 0.0
        self.validate(self.model.eval(), BareSession(spec.store, spec.artifact))
        self._started = self._clock()

    def _clock(self) -> float:
        return time.process_time() - self._probe_seconds

    def after_update(self, share: float) -> None:
        """Record the time of the step."""
        super().after_update(share)
        self._ends.append(self._clock())

    def step_seconds(self) -> float:
        """Median CPU seconds of a step, without the first third of the steps."""
        return float(np.median(np.diff(self._ends[len(self._ends) // 3 :])))

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Run the probes of pre-training at every second validation."""
        begun = time.process_time()
        spent = self._clock() - self._started if self._ends else 0.0
        found = super().validate(model, session) if self._validations % EVERY == 0 else {}
        self._validations += 1
        if found:
            self.seconds.append(spent)
            self.steps.append(len(self._ends))
            for name, value in found.items():
                self.scores.setdefault(name, []).append(value)
        self._probe_seconds += time.process_time() - begun
        return found
