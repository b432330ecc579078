"""Compare the model of an evaluation with its best baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from raymae.config.training import Baseline
from raymae.evaluation.scores import KINDS


def against_best_baseline(report: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The baseline with the highest mean score over the test splits, and the final model against it by test split.

    The differences are those of `evaluate`'s result, with `score`, the name of what is compared. None without a
    baseline or without a test split: val may have selected the weights.
    """
    title = KINDS[report["labels"]].TITLE
    tests = {
        name: {split: one | {"score": title} for split, one in by_split.items() if split.startswith("test")}
        for name, by_split in report["comparisons"].items()
        if name in get_args(Baseline)
    }
    means = {name: sum(one["second"] for one in found.values()) / len(found) for name, found in tests.items() if found}
    if not means:
        return None
    best = max(means, key=lambda name: means[name])
    return best, tests[best]


def baseline_line(report: Mapping[str, Any]) -> str:
    """Where the final model stands against the best baseline, in one line."""
    found = against_best_baseline(report)
    if found is None:
        return "none to compare with on a test split"
    name, differences = found
    title = next(iter(differences.values()))["score"]
    parts = [
        f"{split} {one['first']:.3f} against {one['second']:.3f} ({one['value']:+.3f}, Holm's p {one['p_holm']:.4f})"
        for split, one in differences.items()
    ]
    return f"{name}; {title}: {'; '.join(parts)}"
