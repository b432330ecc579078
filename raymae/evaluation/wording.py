"""Titles of models; scores, differences and p-values as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from raymae.config.stages import STAGES, turn_of
from raymae.config.training import Baseline

BASELINES: tuple[str, ...] = get_args(Baseline)
"""The models that a network has to beat."""

MODEL_TITLES = {
    "svm": "SVM on log-mel statistics",
    "svm_band_mean": "SVM, band-mean subtraction",
    "svm_eq": "SVM, random EQ",
    "svm_robust": "SVM, random EQ + band-mean subtraction",
    "svm_self_trained": "SVM, self-trained",
    "finetune_scratch": "encoder from scratch",
    "finetune_frozen": "MAE, frozen",
    "finetune_supervised": "supervised transfer",
    "finetune_pool": "MAE on pool alone, fine-tuned",
    "finetune_pool_train": "MAE on pool + train, fine-tuned",
    **{name: stage.title for name, stage in STAGES.items() if stage.title},
}
"""The titles of the SVMs, of the ablations, and of the stages that train a classifier."""


def model_title(name: str) -> str:
    """The title of a model in tables and figures."""
    stage, turn = turn_of(name)
    return MODEL_TITLES.get(stage, stage) + (f", round {turn}" if turn > 1 else "")


def number(value: float | None) -> str:
    """A score, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def score(values: Mapping[str, Any] | None, key: str) -> str:
    """A score with its interval, where there is one."""
    if values is None or values.get(key) is None:
        return "-"
    interval = values.get(f"{key}_ci")
    return number(values[key]) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


P_COLUMNS = ("p", "Holm")
"""Headings of a difference's p-value and the corrected one."""


def holm_text(rows: Sequence[object]) -> str:
    """What the second of `P_COLUMNS` holds in a table of some rows."""
    return f"“Holm” is p corrected for the number of rows, {len(rows)}, by Holm's method: judge by it."


def difference_cells(found: Mapping[str, Any]) -> list[str]:
    """Cells of a difference: value with its interval, p-value, the corrected one, and number of groups."""
    interval = found["interval"]
    ends = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    p_values = (f"{found[name]:.4f}" for name in ("p_value", "p_holm"))
    return [f"{found['value']:+.3f}{ends}", *p_values, str(found["groups"])]


def p_text(p_value: float) -> str:
    """A p-value with two digits."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def points(value: float) -> str:
    """A difference of scores in points, hundredths, without its sign."""
    return f"{100 * abs(value):.1f}"
