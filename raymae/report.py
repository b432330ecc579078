"""What is said about a run: metrics by split, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from raymae.artifacts import Folder
from raymae.figures import png
from raymae.metrics import (
    MIN_GROUPS,
    accuracy,
    accuracy_by,
    confusion_matrix,
    ece,
    log_loss,
    macro_accuracy,
    macro_accuracy_interval,
    missing_classes,
)

Evaluation = dict[str, dict[str, Any]]
"""Metrics by split, as `evaluation` gives them."""

MODEL_TITLES = {
    "svm": "SVM on log-mel statistics",
    "svm_robust": "SVM, coloured + centred",
    "cnn": "CNN from scratch",
    "finetune_scratch": "encoder from scratch",
    "finetune_supervised": "supervised transfer",
    "finetune_pool": "MAE on pool alone, fine-tuned",
    "finetune_pool_train": "MAE on pool + train, fine-tuned",
    "finetune": "MAE, fine-tuned",
    "student": "MAE, with pseudo-labels",
}
# Metrics ------------------------------------------------------------------------------------------------------------


def evaluation(predictions: pa.Table, class_names: Sequence[str]) -> Evaluation:
    """Metrics of each held-out split, val first, then test…, from clips with a column of probabilities.

    Only labelled clips count. Keys: clips, macro_accuracy, macro_accuracy_ci ([low, high] or None), accuracy, log_loss,
    ece, missing_classes, accuracy_by_device, accuracy_by_city, confusion (rows are the truth). Raises ValueError for a
    label that is not in `class_names`.
    """
    return {name: _split_metrics(clips, class_names) for name, clips in held_out(predictions).items()}


def held_out(predictions: pa.Table) -> dict[str, pa.Table]:
    """The labelled clips of each held-out split, val first, then test…."""
    labelled = predictions.filter(pc.is_valid(predictions["scene_label"]))
    splits = sorted(
        (name for name in labelled["split"].unique().to_pylist() if name == "val" or name.startswith("test")),
        key=lambda name: (name != "val", name),
    )
    return {name: labelled.filter(pc.equal(labelled["split"], name)) for name in splits}


def _split_metrics(clips: pa.Table, class_names: Sequence[str]) -> dict[str, Any]:
    labels = pc.index_in(clips["scene_label"], value_set=pa.array(class_names, pa.string()))
    if labels.null_count:
        unknown = clips["scene_label"].filter(pc.is_null(labels))[0].as_py()
        raise ValueError(f"scene_label {unknown!r} is none of the classes {', '.join(class_names)}")
    truth = labels.to_numpy().astype(np.int64)
    probabilities = pc.list_flatten(clips["probabilities"]).to_numpy().reshape(len(clips), -1)
    guess = probabilities.argmax(axis=1)
    groups = pc.coalesce(clips["group"], clips["clip_id"])
    interval = macro_accuracy_interval(truth, guess, groups.to_pylist())
    return {
        "clips": len(truth),
        "macro_accuracy": macro_accuracy(truth, guess),
        "macro_accuracy_ci": list(interval) if interval else None,
        "accuracy": accuracy(truth, guess),
        "log_loss": log_loss(truth, probabilities),
        "ece": ece(truth, probabilities),
        "missing_classes": missing_classes(truth, class_names),
        "accuracy_by_device": accuracy_by(truth, guess, clips["device"].to_pylist()),
        "accuracy_by_city": accuracy_by(truth, guess, clips["city"].to_pylist()),
        "confusion": confusion_matrix(truth, guess, len(class_names)).tolist(),
    }


# Tables -------------------------------------------------------------------------------------------------------------


def report_text(
    metrics: Mapping[str, Evaluation],
    seconds: Mapping[str, float],
    stamp: str | None = None,
    chosen: Sequence[str] = (),
) -> str:
    """The evaluations of some models as Markdown whose columns are aligned; `stamp` stands under every table.

    `chosen` names the models whose weights split val has chosen.
    """
    splits = next(iter(metrics.values()))
    rows = [
        [
            model_title(name),
            *(score(found[split]["macro_accuracy"], found[split]["macro_accuracy_ci"]) for split in splits),
            f"{seconds[name]:.1f} s",
        ]
        for name, found in metrics.items()
    ]
    header = ["model", *(f"{name} ({found['clips']} clips)" for name, found in splits.items()), "training"]
    under = [stamp] if stamp else []
    notes = [
        _missing_note(name, found["missing_classes"]) for name, found in splits.items() if found["missing_classes"]
    ]
    if chosen and "val" in splits:
        notes.append(f"val chose the weights of {', '.join(map(model_title, chosen))}: its scores flatter them.")
    parts = [
        "## Macro accuracy by split",
        "Mean of the classes' recalls; in brackets its 95 % interval when groups are drawn anew (none where a class "
        f"has fewer than {MIN_GROUPS} groups).",
        result_table(header, rows),
        *under,
        *notes,
        "## Accuracy by split and device",
        result_table(
            ["split", "device", *(model_title(name) for name in metrics)], device_rows(metrics, "accuracy_by_device")
        ),
        *under,
    ]
    return "\n\n".join(parts) + "\n"


def result_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def model_title(name: str) -> str:
    """What a model is called in tables and figures."""
    return MODEL_TITLES.get(name, name)


def score(value: float, interval: Sequence[float] | None) -> str:
    """A score with its interval, where there is one."""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _missing_note(split: str, classes: Sequence[str]) -> str:
    return f"{split} has no clip of {', '.join(classes)}: its macro accuracy is over the other classes."


def device_rows(metrics: Mapping[str, Evaluation], key: str) -> list[list[str]]:
    """Split, device and what `metrics[model][split][key]` holds of the device for every model."""
    devices = [(split, device) for split, found in next(iter(metrics.values())).items() for device in found[key]]
    return [
        [split, device, *(f"{found[split][key][device]:.3f}" for found in metrics.values())]
        for split, device in devices
    ]


# Figures ------------------------------------------------------------------------------------------------------------


def figures(metrics: Mapping[str, Evaluation], class_names: Sequence[str], folder: Folder) -> list[str]:
    """Draw the last model's confusions and every model's accuracy by device to `folder`; the files' names."""
    last, found = list(metrics.items())[-1]
    drawn = {
        "figures/confusion.png": confusion_figure(found, class_names, model_title(last)),
        "figures/accuracy_by_device.png": device_figure(metrics, "accuracy_by_device", "accuracy"),
    }
    for name, figure in drawn.items():
        folder.write_bytes(name, png(figure))
    return list(drawn)


def confusion_figure(found: Evaluation, class_names: Sequence[str], title: str) -> Figure:
    """A panel per split: clips by true and predicted class, shaded by the share of the true class."""
    side = 2.2 + 0.42 * len(class_names)
    figure = Figure(figsize=(side * len(found), side + 0.3), layout="constrained")
    figure.suptitle(title)
    for axes, (split, metrics) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        counts = np.array(metrics["confusion"])
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=8)
        axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(class_names)), class_names)
        axes.set(xlabel="predicted", ylabel="true", title=f"{split}: macro accuracy {metrics['macro_accuracy']:.3f}")
    return figure


def device_figure(metrics: Mapping[str, Evaluation], key: str, ylabel: str) -> Figure:
    """A panel per split: what `metrics[model][split][key]` holds by recording device, a bar per model."""
    splits = next(iter(metrics.values()))
    figure = Figure(figsize=(8, 0.7 + 2.5 * len(splits)), layout="constrained")
    width = 0.8 / len(metrics)
    for axes, split in zip(figure.subplots(len(splits), 1, squeeze=False)[:, 0], splits, strict=True):
        for turn, (name, found) in enumerate(metrics.items()):
            scores = found[split][key]
            places = np.arange(len(scores)) + (turn - (len(metrics) - 1) / 2) * width
            axes.bar(places, list(scores.values()), width, label=model_title(name))
        axes.set_xticks(range(len(scores)), list(scores))
        axes.set(title=split, ylabel=ylabel, ylim=(0, 1))
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure
