"""Calibrate a teacher's confidence with one temperature, fitted on clips whose labels it was not trained on.

If split val has labels of enough groups, the temperature minimises the log loss there (Guo et al. 2017): the teacher
was trained on none of these groups.

Otherwise, the only labelled clips are those that the teacher was trained on. Its features and head have fitted their
labels, so a temperature fitted to these clips, even with a head refitted without each fold's labels, understates the
teacher's over-confidence; and a temperature fitted to another model, with clean features, describes the scale of that
model's logits, not of the teacher's. Roughly, what two classifiers of the same few labels share is their accuracy.
So a probe (`raymae.evaluation.probes`, logistic regression) on the frozen encoder that the teacher started from, which
was trained without labels, is cross-fitted by group on the labelled training clips, and its accuracy is taken as an
estimate of the teacher's: at the chosen temperature the teacher's mean confidence on the unlabelled clips of the same
split, which it wasn't trained on, equals that accuracy. Confidences are then right on average if the teacher is as good
as the probe, and too low if it is better. The teacher's log loss and calibration error are unknown in this case and not
reported.

Measured once, on ESC-10 through microphones (69 labelled and 250 unlabelled clips, a teacher of the recipe `small` cut
to 40 epochs after 8 of pre-training): on the unlabelled clips, log loss is 1.02 and calibration error .170 at
temperature 1, .96 and .114 at the temperature found this way, .90 and .048 at .59, the temperature fitted to their true
labels. Fitted to the labelled clips, on which the teacher's accuracy is 97 % instead of 68 %, it would be .22.

With too few groups for either, confidences are left as they are: temperature 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from raymae.evaluation.metrics import calibration_error, log_loss, top_reliability
from raymae.evaluation.probes import FOLDS, cross_fitted, fewest_groups

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]
Source = Literal["val", "cross-fitted", "nothing"]
"""What a temperature was fitted to; nothing: uncalibrated."""

MIN_GROUPS = 20
"""Fewest groups of val. Of 150 simulated teachers whose logits of ten classes are twice too large, 90 % get a
temperature of 1.0 to 3.0 from 10 groups, 1.2 to 2.7 from 20, 1.6 to 2.4 from 50 and 1.8 to 2.2 from 200."""
MIN_CLASS_GROUPS = 2
"""Fewest groups of each class, in val and for cross-fitting."""
BOUNDS = 0.05, 20.0
"""Smallest and largest temperature."""


@dataclass(frozen=True)
class Calibration:
    """A temperature and the data it was fitted to."""

    temperature: float
    calibrated_on: Source
    reason: str
    """Why this source was chosen, in a sentence."""
    clips: int = 0
    """Number of labelled clips that it was fitted to."""
    groups: int = 0
    """Number of their groups."""
    accuracy: float | None = None
    """The teacher's accuracy on these clips; cross-fitted: the probe's."""
    before: dict[str, Any] | None = None
    """At temperature 1: mean_confidence and, with val, log_loss, ece and reliability (by bin)."""
    after: dict[str, Any] | None = None
    """The same at the fitted temperature."""

    def summary(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def apply_temperature(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Class probabilities (n, C) with the temperature of their softmax set to `temperature`."""
    if not len(probabilities):
        return probabilities
    logits = np.log(np.clip(probabilities, 1e-12, 1)) / temperature
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(scaled / scaled.sum(1, keepdims=True), np.float32)


def fit_temperature(probabilities: Probabilities, truth: Labels) -> float:
    """The temperature with the smallest log loss of probabilities (n, C) of held-out clips of classes `truth` (n,).

    Guo et al. 2017.
    """

    def loss(log_temperature: float) -> float:
        right = apply_temperature(probabilities, float(np.exp(log_temperature)))[np.arange(len(truth)), truth]
        return float(-np.log(np.clip(right, 1e-12, 1)).mean())

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded")
    return float(np.exp(found.x))


def match_temperature(probabilities: Probabilities, accuracy: float) -> float:
    """The temperature at which the mean confidence of clips (n, C) is `accuracy`, within `BOUNDS`."""

    def gap(log_temperature: float) -> float:
        return float(apply_temperature(probabilities, float(np.exp(log_temperature))).max(1).mean()) - accuracy

    low, high = np.log(BOUNDS)
    if gap(low) <= 0:
        return BOUNDS[0]
    if gap(high) >= 0:
        return BOUNDS[1]
    return float(np.exp(brentq(gap, low, high, xtol=1e-4)))


def val_problem(truth: Labels, groups: NDArray[np.str_], n_classes: int) -> str | None:
    """Why the labelled clips (n,) of val are too few to calibrate on; None if they are enough."""
    if not len(truth):
        return "split val has no labelled clip"
    count = len(set(groups.tolist()))
    if count < MIN_GROUPS:
        return f"split val has {count} groups, fewer than {MIN_GROUPS}"
    by_class = [len(set(groups[truth == number].tolist())) for number in range(n_classes)]
    if min(by_class) < MIN_CLASS_GROUPS:
        few = sum(count < MIN_CLASS_GROUPS for count in by_class)
        return f"split val has fewer than {MIN_CLASS_GROUPS} groups of {few} of {n_classes} classes"
    return None


def calibrated_on_val(probabilities: Probabilities, truth: Labels, groups: NDArray[np.str_]) -> Calibration:
    """Calibrate on the teacher's probabilities (n, C) of val's labelled clips, of classes `truth` and `groups` (n,)."""
    temperature = fit_temperature(probabilities, truth)
    count = len(set(groups.tolist()))
    return Calibration(
        temperature,
        "val",
        f"split val has labels of {count} groups that the teacher was not trained on",
        len(truth),
        count,
        float((probabilities.argmax(1) == truth).mean()),
        described(probabilities, truth),
        described(apply_temperature(probabilities, temperature), truth),
    )


def described(probabilities: Probabilities, truth: Labels) -> dict[str, Any]:
    """Mean confidence, log loss, expected calibration error and reliability of probabilities (n, C) against (n,)."""
    bins = top_reliability(truth, probabilities)
    return {
        "mean_confidence": float(probabilities.max(1).mean()),
        "log_loss": log_loss(truth, probabilities),
        "ece": calibration_error(bins),
        "reliability": bins.table(),
    }


def calibrated_by_probe(
    unlabelled: Probabilities, x: NDArray[np.floating], truth: Labels, groups: NDArray[np.str_], why_not_val: str
) -> Calibration:
    """Calibrate the teacher's probabilities (n, C) of unlabelled clips by the accuracy of a cross-fitted probe.

    Args:
        x: embeddings (m, E) of labelled training clips by an encoder trained without labels; `truth`, `groups`: (m,).
        why_not_val: what `val_problem` returned.
    """
    guessed = cross_fitted("linear", x, truth, groups)
    if guessed is None:
        return uncalibrated(f"{why_not_val}, and {cross_fit_problem(truth, groups)}")
    right = int((guessed == truth).sum())
    accuracy = (right + 1) / (len(truth) + 2)  # Laplace's estimate: a probe that is always right must not give 1
    temperature = match_temperature(unlabelled, accuracy)
    folds = min(FOLDS, fewest_groups(truth, groups))
    return Calibration(
        temperature,
        "cross-fitted",
        f"{why_not_val}; a probe of the encoder before fine-tuning, cross-fitted by group in {folds} folds of the "
        f"labelled training clips, is right on {right} of {len(truth)}: the teacher's mean confidence on the "
        "unlabelled clips is set to that accuracy",
        len(truth),
        len(set(groups.tolist())),
        accuracy,
        {"mean_confidence": float(unlabelled.max(1).mean())},
        {"mean_confidence": float(apply_temperature(unlabelled, temperature).max(1).mean())},
    )


def cross_fit_problem(truth: Labels, groups: NDArray[np.str_]) -> str | None:
    """Why labelled training clips (n,) are too few to cross-fit a probe on; None if they are enough."""
    if len(set(truth.tolist())) < 2:
        return "the labelled training clips are of one class"
    fewest = fewest_groups(truth, groups)
    if fewest < MIN_CLASS_GROUPS:
        return f"a class has {fewest} group of labelled training clips, fewer than {MIN_CLASS_GROUPS}"
    return None


def uncalibrated(why: str) -> Calibration:
    """No calibration: the teacher's confidences are left as they are."""
    return Calibration(1.0, "nothing", f"not calibrated, so confidences are the teacher's own (temperature 1): {why}")
