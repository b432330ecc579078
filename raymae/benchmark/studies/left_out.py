"""`left-out`: the first head of fine-tuning on labelled training clips, with groups and each device left out in turn.

For decisions: the test splits are not read.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymae.audio.impulse_responses import read_responses
from raymae.benchmark.harness.result import Result
from raymae.benchmark.studies.frozen import STATISTICS, tables_store
from raymae.benchmark.studies.transfer import changed_recipe
from raymae.config import Config
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.training.spec import StageSpec

SEEN, LEFT_OUT = "other devices", "device left out"


class Clips(NamedTuple):
    """Labelled training clips of a table."""

    labels: NDArray[np.int64]
    """(n,): class numbers."""
    groups: NDArray[np.str_]
    devices: NDArray[np.str_]


class Part(NamedTuple):
    """A part of the clips that is held out while one device is left out, as places within `Clips`."""

    device: str
    train: NDArray[np.int64]
    seen: NDArray[np.int64]
    """Held-out clips through the other devices."""
    left_out: NDArray[np.int64]
    """Held-out clips through the device."""


class Features(NamedTuple):
    """What a head reads of the clips."""

    values: NDArray[np.float32]
    """(n, E)."""
    copies: NDArray[np.float32] | None = None
    """(n, E): of the clips as other devices record them, by which the values are standardised; None: by their own."""


Found = dict[str, dict[str, list[float]]]
"""Read-out → column → a macro accuracy for each table, repetition and device."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Compare read-outs of a pre-trained encoder on the labelled clips of split train, without reading a test split.

    Each is the head that fine-tuning starts from (`finetune.head_init` = logistic): with one cut of a clip into patches
    or `finetune.shifts`, standardised by the clips or by their copies through random EQ; as configured also on random
    weights. Log-mel statistics get the same regression. In turn each device is left out: a head is trained on clips of
    other devices and other groups than those that it is scored on. Prints macro accuracies, mean ± standard deviation
    over tables, repetitions and devices.

    `--json` keys: `scores`, read-out → column → macro accuracy by table, repetition and device; `tables`; `model`.
    """

    model: str
    """Folder of a pre-training or of a classifier."""
    tables: tuple[str, ...]
    """Tables with labels, groups and devices; only the labelled clips of split train are read."""
    recipe: str = "small"
    """Recipe for everything else."""
    settings: tuple[str, ...] = ()
    """Changes to the recipe, each as FIELD=VALUE: finetune.layer=6."""
    folds: int = 5
    """Parts into which the groups are divided; each is held out once."""
    repeats: int = 3
    """Times that the groups are divided anew."""
    shots: int | None = None
    """Labelled clips of each class that a head is trained on, drawn from those that may be; None: all."""
    threads: int | None = None
    """Threads of torch."""
    json: str | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> Result:
        """Measure."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        config = changed_recipe(self.recipe, self.settings)
        found: Found = {}
        encoder = Folder(str(Path(self.model).resolve()))
        if not encoder.exists("model.safetensors"):
            raise ValueError(
                f"--model {self.model} holds no model.safetensors: name the folder of a pre-training, "
                "artifacts/pretrain/KEY of its storage"
            )
        if self.folds < 2:
            raise ValueError(f"--folds {self.folds} leaves nothing to train on: 2 or more")
        with tempfile.TemporaryDirectory() as folder:
            for number, table in enumerate(self.tables):
                self._add(found, config, encoder, Folder(f"{folder}/{number}"), table)
        values = {"scores": found, "tables": self.tables, "model": self.model}
        return Result("left-out", [], values, score_table(found))

    def _add(self, found: Found, config: Config, encoder: Folder, folder: Folder, table: str) -> None:
        """Add the scores of one table."""
        from raymae.training.spec import StageSpec

        store = tables_store(folder, config.audio, [table])
        names = config.finetune.augment.responses
        responses = read_responses(names, config.audio, "finetune.augment.responses").offsets if names else None
        spec = StageSpec(
            name="finetune",
            kind="finetune",
            config=config,
            artifact=folder,
            store=store,
            encoder=encoder,
            responses=responses,
        )
        clips, features = labelled_clips(spec, table), read_outs(spec)
        for repeat in range(self.repeats):
            parts = list(held_out(clips, self.folds, repeat, self.shots))
            for name, one in features.items():
                for device in np.unique(clips.devices):
                    scores = score([part for part in parts if part.device == device], one, clips.labels)
                    for column, value in scores.items():
                        found.setdefault(name, {}).setdefault(column, []).append(value)
                        if column == LEFT_OUT:
                            found[name].setdefault(f"{device} left out", []).append(value)


def labelled_clips(spec: StageSpec, table: str) -> Clips:
    """The labelled clips of split train; ValueError where there is nothing to leave out."""
    from raymae.datasets.rows import group_ids
    from raymae.training.spec import labelled_rows

    rows, targets = labelled_rows(spec)
    clips = spec.store.clips.take(rows)
    devices = np.array([device or "" for device in clips["device"].to_pylist()])
    if len(np.unique(devices)) < 2:
        raise ValueError(
            f"{table}: the labelled clips of split train have one device in column device, {str(devices[0])!r}: "
            "leaving out one in turn takes two or more"
        )
    return Clips(targets[rows].toarray().argmax(1), np.array(group_ids(clips).to_pylist()), devices)


def read_outs(spec: StageSpec) -> dict[str, Features]:
    """What each read-out has of the labelled clips, in the order of the table."""
    import torch

    from raymae.evaluation.baselines import subtract_band_mean
    from raymae.models import build_classifier
    from raymae.pipeline.evaluate import store_statistics
    from raymae.training.spec import labelled_rows
    from raymae.training.tasks.finetune import FinetuneTask

    rows, _ = labelled_rows(spec)
    values = store_statistics(spec.store, rows)
    both = np.concatenate([values, subtract_band_mean(values)], axis=1).reshape(len(values), -1)
    found = {STATISTICS: Features(both)}
    task, shifts = FinetuneTask(spec), spec.config.finetune.shifts
    config = spec.config
    torch.manual_seed(0)
    random = build_classifier(config.audio, config.model, config.finetune, len(task.class_names))
    found["random weights"] = embedded(random, spec, rows, shifts)
    for cuts in sorted({1, shifts}):
        named = f"{cuts} cut{'s' if cuts > 1 else ''}"
        features = embedded(task.network, spec, rows, cuts)
        found[named] = features._replace(copies=None)
        if features.copies is not None:
            found[f"{named}, standardised by random EQ"] = features
    return found


def embedded(model: object, spec: StageSpec, rows: NDArray[np.int64], shifts: int) -> Features:
    """What a classifier's head reads of clips cut so many times, and of their copies through other devices."""
    from raymae.models import AudioClassifier
    from raymae.training.tasks.linear_probe_init import embed, other_devices

    assert isinstance(model, AudioClassifier)
    model.finetune = replace(model.finetune, shifts=shifts)
    devices = other_devices(spec.config.finetune.augment)
    return Features(embed(model, spec, rows), embed(model, spec, rows, (devices, 1)) if devices else None)


def held_out(clips: Clips, folds: int, seed: int, shots: int | None) -> Iterator[Part]:
    """The parts of one division of the groups, for each device; a class without a training clip is not scored."""
    from sklearn.model_selection import StratifiedGroupKFold

    draws, splits = np.random.default_rng(seed), StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splits.split(clips.labels, clips.labels, clips.groups):
        for device in np.unique(clips.devices):
            own = train[clips.devices[train] != device]
            if shots:
                own = drawn(clips, own, shots, draws)
            test_known = test[np.isin(clips.labels[test], clips.labels[own])]
            through = clips.devices[test_known] == device
            yield Part(str(device), own, test_known[~through], test_known[through])


def drawn(clips: Clips, places: NDArray[np.int64], shots: int, draws: np.random.Generator) -> NDArray[np.int64]:
    """At most `shots` of the places of each class."""
    mixed = draws.permutation(places)
    chosen = [mixed[clips.labels[mixed] == label][:shots] for label in np.unique(clips.labels[places])]
    return np.concatenate(chosen)


def score(parts: Sequence[Part], features: Features, labels: NDArray[np.int64]) -> dict[str, float]:
    """Macro accuracy by column over the clips of all parts, each predicted by a head that was trained without it."""
    from raymae.evaluation.metrics import macro_accuracy
    from raymae.evaluation.probes import fit_probe

    values, copies = features
    places: dict[str, list[NDArray[np.int64]]] = {SEEN: [], LEFT_OUT: []}
    predicted: dict[str, list[NDArray[np.int64]]] = {SEEN: [], LEFT_OUT: []}
    for part in parts:
        own = None if copies is None else copies[part.train]
        head = fit_probe("linear", values[part.train], labels[part.train], copies=own)
        for column, chosen in {SEEN: part.seen, LEFT_OUT: part.left_out}.items():
            if len(chosen):
                places[column].append(chosen)
                predicted[column].append(head.predict(values[chosen]))
    return {
        column: macro_accuracy(labels[np.concatenate(places[column])], np.concatenate(predicted[column]))
        for column in places
        if places[column]
    }


def score_table(found: Found) -> str:
    """Means ± standard deviations as a Markdown table."""
    columns = list(next(iter(found.values())))
    columns.sort(key=lambda name: (name != SEEN, name != LEFT_OUT, name))
    lines = [f"| read-out | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, scores in found.items():
        cells = [f"{statistics.fmean(scores[one]):.3f} ± {statistics.pstdev(scores[one]):.3f}" for one in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
