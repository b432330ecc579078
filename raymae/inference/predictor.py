"""Predict with a finished classifier, as pseudo-labelling, evaluation, the registry and users do.

A classifier is a folder with `model.safetensors` and `classifier.json` (class names and all settings needed to build
the model and its front end). Nothing in it is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.audio.waveform import Source
from raymae.datasets.labels import SEPARATOR, probability_columns
from raymae.inference.classifier import Probabilities, class_probabilities, read_classifier
from raymae.inference.windowed import Clip, Named, WindowedModel, as_it_is
from raymae.storage.folder import Folder

PRESENT = 0.5
"""Smallest probability of a class in a multi-label prediction."""


class Predictor(WindowedModel):
    """A classifier with its front end, from recordings to class probabilities: the values of windows."""

    def __init__(self, folder: Folder | str, torch_device: str = "cpu", threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.classifier = read_classifier(Folder(folder) if isinstance(folder, str) else folder)
        self.torch_device = torch.device(torch_device)
        self.classifier.model.to(self.torch_device)
        super().__init__(self.classifier.audio)

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the probabilities."""
        return self.classifier.class_names

    def probabilities(self, log_mel: NDArray[np.floating], valid_frames: NDArray[np.integer]) -> Probabilities:
        """Class probabilities (B, C) of log-mels (B, T, F)."""
        one = self.classifier
        return class_probabilities(one.model, log_mel, valid_frames, one.finetune, one.audio, self.torch_device)

    def of_clips(self, clips: Sequence[Clip]) -> Probabilities:
        """Class probabilities (B, C) of windows, in one forward pass."""
        frames = np.array([clip.valid_frames for clip in clips], np.int32)
        return self.probabilities(np.stack([clip.log_mel for clip in clips]), frames)

    def __call__(self, source: Source) -> dict[str, float]:
        """Class probabilities of a recording of any length: the average over its windows, weighted by length."""
        mean = self.average(self.windows(source))
        return {name: float(value) for name, value in zip(self.class_names, mean, strict=True)}

    def label(self, probabilities: NDArray[np.floating]) -> tuple[str, float]:
        """The predicted label for probabilities (C,), and the largest of them.

        Multi-label: the classes with at least `PRESENT`, most probable first, joined by `SEPARATOR`; the most probable
        class if there are none.
        """
        ranked = np.argsort(-probabilities, kind="stable")
        multi_label = self.classifier.finetune.labels == "multi"
        present = [place for place in ranked if probabilities[place] >= PRESENT] if multi_label else []
        label = SEPARATOR.join(self.class_names[place] for place in present or ranked[:1])
        return label, float(probabilities[ranked[0]])

    def row(self, path: str, open_source: Callable[[str], Source] = as_it_is) -> dict[str, Any]:
        """A row of a result table: path, scene_label, confidence (both from `label`), error, and for every class its
        probability in `p_<class>`. For a file that can't be read, only path and error are set."""
        (found,) = self.rows([path], open_source)
        return {"path": path, **found}

    def rows(
        self, sources: Iterable[Named], open_source: Callable[[Named], Source] = as_it_is
    ) -> Iterator[dict[str, Any]]:
        """The rows of many recordings, as in `row` without path, in their order."""
        columns = probability_columns(self.class_names)
        for windows in self.each(sources, open_source):
            if isinstance(windows, AudioError):
                missing = dict.fromkeys(columns)
                yield {"scene_label": None, "confidence": None, "error": str(windows), **missing}
                continue
            mean = self.average(windows)
            label, confidence = self.label(mean)
            values = dict(zip(columns, mean.tolist(), strict=True))
            yield {"scene_label": label, "confidence": confidence, "error": None, **values}
