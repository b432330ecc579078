"""Scenes of a recording along time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from raymae.audio.errors import SilentError
from raymae.datasets.labels import SEPARATOR
from raymae.inference.predictor import Predictor
from raymae.inference.windowed import Window


def scenes(predictor: Predictor, windows: Sequence[Window]) -> list[dict[str, Any]]:
    """The stretches of neighbouring windows that have the same label, or no sound, one after the other.

    Each has start and end in seconds, and scene_label and confidence, those of the average over its windows; a silent
    one has `error` in their place.
    """

    def kind(window: Window) -> frozenset[str] | None:
        value = window[2]
        return None if value is None else frozenset(predictor.label(value)[0].split(SEPARATOR))

    found: list[dict[str, Any]] = []
    for labels, stretch in groupby(windows, kind):
        inside = list(stretch)
        place: dict[str, Any] = {"start": round(inside[0][0], 3), "end": round(inside[-1][1], 3)}
        if labels is None:
            found.append(place | {"error": str(SilentError())})
            continue
        label, confidence = predictor.label(predictor.average(inside))
        found.append(place | {"scene_label": label, "confidence": round(confidence, 6)})
    return found
