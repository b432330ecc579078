"""What is said about classifiers of clips that have several classes: as `report`, with mAP in accuracy's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raymae.artifacts import Folder
from raymae.figures import png
from raymae.metrics import (
    MIN_GROUPS,
    average_precision,
    binary_log_loss,
    mean_average_precision,
    mean_average_precision_interval,
)
from raymae.report import Evaluation, device_figure, device_rows, held_out, model_title, result_table, score
from raymae.targets import target_matrix

ROWS_SHOWN = 15
"""Classes at either end of the table of classes; of twice as many, all are shown."""
NAMES_SHOWN = 60
"""Most classes whose names stand in the figure."""

# Metrics ------------------------------------------------------------------------------------------------------------


def evaluation(predictions: pa.Table, class_names: Sequence[str]) -> Evaluation:
    """Metrics of each held-out split, val first, then test…, from clips with a column of probabilities.

    Only labelled clips count. Keys: clips, mAP, mAP_ci ([low, high] or None), log_loss (binary, mean over classes),
    missing_classes, average_precision (by class, without the missing ones), clips_by_class, mAP_by_device, mAP_by_city.
    Raises ValueError for a label that is not in `class_names`.
    """
    return {name: _split_metrics(clips, class_names) for name, clips in held_out(predictions).items()}


def _split_metrics(clips: pa.Table, class_names: Sequence[str]) -> dict[str, Any]:
    truth = target_matrix(clips["scene_label"], class_names, "multi").toarray()
    probabilities = pc.list_flatten(clips["probabilities"]).to_numpy().reshape(len(clips), -1)
    groups = pc.coalesce(clips["group"], clips["clip_id"])
    interval = mean_average_precision_interval(truth, probabilities, groups.to_pylist())
    by_class = dict(zip(class_names, average_precision(truth, probabilities).tolist(), strict=True))
    return {
        "clips": len(truth),
        "mAP": mean_average_precision(truth, probabilities),
        "mAP_ci": list(interval) if interval else None,
        "log_loss": binary_log_loss(truth, probabilities),
        "missing_classes": [name for name, value in by_class.items() if np.isnan(value)],
        "average_precision": {name: value for name, value in by_class.items() if not np.isnan(value)},
        "clips_by_class": dict(zip(class_names, truth.sum(axis=0).astype(int).tolist(), strict=True)),
        "mAP_by_device": map_by(truth, probabilities, clips["device"].to_pylist()),
        "mAP_by_city": map_by(truth, probabilities, clips["city"].to_pylist()),
    }


def map_by(
    truth: NDArray[np.floating], probabilities: NDArray[np.floating], keys: Sequence[str | None]
) -> dict[str, float]:
    """mAP of the clips of each key (device, city), sorted, over the classes that occur there; None is "unknown"."""
    names = np.array(["unknown" if key is None else key for key in keys])
    return {
        str(name): mean_average_precision(truth[names == name], probabilities[names == name])
        for name in np.unique(names)
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
    last, final = list(metrics.items())[-1]
    rows = [
        [
            model_title(name),
            *(score(found[split]["mAP"], found[split]["mAP_ci"]) for split in final),
            f"{seconds[name]:.1f} s",
        ]
        for name, found in metrics.items()
    ]
    header = ["model", *(f"{name} ({found['clips']} clips)" for name, found in final.items()), "training"]
    under = [stamp] if stamp else []
    if chosen and "val" in final:
        under.append(f"val chose the weights of {', '.join(map(model_title, chosen))}: its scores flatter them.")
    missing = {name: found["missing_classes"] for name, found in final.items() if found["missing_classes"]}
    parts = [
        "## mAP by split",
        "Mean over the classes of their average precision; in brackets its 95 % interval when groups are drawn anew "
        f"(none where a class has fewer than {MIN_GROUPS} groups).",
        result_table(header, rows),
        *under,
        *(
            f"{split} has no clip of {', '.join(names)}: its mAP is over the others."
            for split, names in missing.items()
        ),
        "## mAP by split and device",
        "Over the classes that occur there, so that devices with other classes don't compare.",
        result_table(["split", "device", *map(model_title, metrics)], device_rows(metrics, "mAP_by_device")),
        *under,
        f"## Average precision by class: {model_title(last)}",
        *class_table(final),
        *under,
    ]
    return "\n\n".join(parts) + "\n"


def class_table(found: Evaluation) -> list[str]:
    """Average precision and clips by class and split, best of the last split first; of many classes the two ends."""
    ranked = ranking(found)
    shown = ranked if len(ranked) <= 2 * ROWS_SHOWN else [*ranked[:ROWS_SHOWN], *ranked[-ROWS_SHOWN:]]
    rows = [[name, *(_class_cell(metrics, name) for metrics in found.values())] for name in shown]
    table = result_table(["class", *(f"{split} (clips)" for split in found)], rows)
    if shown is ranked:
        return [table]
    return [f"The {ROWS_SHOWN} best and {ROWS_SHOWN} worst of {len(ranked)}; done.json beside this holds all.", table]


def _class_cell(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics["average_precision"].get(name)
    return "-" if value is None else f"{value:.3f} ({metrics['clips_by_class'][name]})"


def ranking(found: Evaluation) -> list[str]:
    """The classes, those with the best average precision on the last split first, those without a clip there last."""
    *_, last = found.values()
    return sorted(last["clips_by_class"], key=lambda name: -last["average_precision"].get(name, -1.0))


# Figures ------------------------------------------------------------------------------------------------------------


def figures(metrics: Mapping[str, Evaluation], class_names: Sequence[str], folder: Folder) -> list[str]:
    """Draw the last model's average precisions and every model's mAP by device to `folder`; the files' names."""
    last, found = list(metrics.items())[-1]
    drawn = {
        "figures/average_precision.png": class_figure(found, model_title(last)),
        "figures/map_by_device.png": device_figure(metrics, "mAP_by_device", "mAP"),
    }
    for name, figure in drawn.items():
        folder.write_bytes(name, png(figure))
    return list(drawn)


def class_figure(found: Evaluation, title: str) -> Figure:
    """A panel per split: average precision by class, the best on top."""
    ranked = ranking(found)
    named = len(ranked) <= NAMES_SHOWN
    figure = Figure(figsize=(3 + 3 * len(found), 1.2 + (0.22 * len(ranked) if named else 8)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (split, metrics) in zip(panels, found.items(), strict=True):
        values = [metrics["average_precision"].get(name, np.nan) for name in ranked]
        axes.barh(range(len(ranked)), values, height=0.8 if named else 1.0)
        axes.set(title=f"{split}: mAP {metrics['mAP']:.3f}", xlabel="average precision", xlim=(0, 1))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].invert_yaxis()
    panels[0].set_yticks(range(len(ranked)) if named else [], ranked if named else [])
    return figure
