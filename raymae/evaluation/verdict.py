"""The verdict on an evaluation: where the final model stands against the best baseline, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymae.evaluation.scores import KINDS
from raymae.evaluation.wording import BASELINES, model_title, p_text, points

Report = Mapping[str, Any]
Decision = Literal["deploy", "undecided", "reject", "unknown"]

LEVEL = 0.05
"""The corrected p-value up to which a difference is taken for real."""

ADVICE: dict[Decision, str] = {"deploy": "deploy it", "reject": "don't deploy it", "undecided": "", "unknown": ""}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The final model against the baseline that scores best on a split."""

    split: str
    baseline: str
    score: float
    """Of the final model."""
    difference: float
    """The final model's score minus the baseline's."""
    p_value: float
    """Corrected by Holm's method for all comparisons of the evaluation."""
    groups: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A sentence on an evaluation, and what it rests on."""

    decision: Decision
    """deploy: ahead on every split, on one surely; reject: behind on one, surely ahead on none; undecided: ahead, but
    perhaps by chance, or surely ahead on one split and behind on another; unknown: no baseline."""
    sentence: str
    notes: list[str]
    """What limits it: synthetic data, no test split, a score that chance reaches."""
    model: str
    standings: list[Standing]


def judged_splits(report: Report) -> list[str]:
    """The splits that a verdict is about: all test… splits, or val where there is none."""
    splits = list(next(iter(report["metrics"].values())))
    return [split for split in splits if split.startswith("test")] or splits


def verdict(report: Report) -> dict[str, Any]:
    """The `Verdict` on the result of an evaluation, as it is kept in report.json.

    `report` has labels, metrics, comparisons and note, as from `pipeline.evaluate.evaluate`.
    """
    standings = [one for split in judged_splits(report) if (one := standing(report, split)) is not None]
    model, decision = list(report["metrics"])[-1], decide(standings)
    found = Verdict(
        decision=decision,
        sentence=sentence(report, model, standings, decision),
        notes=notes(report),
        model=model,
        standings=standings,
    )
    return asdict(found)


def standing(report: Report, split: str) -> Standing | None:
    """The final model against the best baseline on a split; None without a baseline."""
    key = KINDS[report["labels"]].HEADLINE
    metrics = report["metrics"]
    scores = {name: metrics[name][split][key] for name in report["comparisons"] if name in BASELINES}
    if not scores:
        return None
    best = max(scores, key=lambda name: scores[name])
    found = report["comparisons"][best][split]
    return Standing(
        split=split,
        baseline=best,
        score=found["first"],
        difference=found["value"],
        p_value=found["p_holm"],
        groups=found["groups"],
    )


def decide(standings: list[Standing]) -> Decision:
    """What the standings on all splits together advise."""
    if not standings:
        return "unknown"
    ahead = all(one.difference > 0 for one in standings)
    if any(one.difference > 0 and one.p_value <= LEVEL for one in standings):
        return "deploy" if ahead else "undecided"
    return "undecided" if ahead else "reject"


def sentence(report: Report, model: str, standings: list[Standing], decision: Decision) -> str:
    """The verdict in a sentence."""
    title = f"“{model_title(model)}”"
    if not standings:
        return f"{title} was compared with no baseline: whether it is worth its cost is not known."
    unit = f"points of {KINDS[report['labels']].TITLE.replace('Macro', 'macro')}"
    parts = []
    for place, one in enumerate(standings):
        side = "ahead of" if one.difference > 0 else "behind"
        amount = f"{points(one.difference)} {'points' if place else unit} {side}" if one.difference else "level with"
        count = f"{one.groups} group{'s' * (one.groups != 1)}"
        known = place and one.baseline == standings[place - 1].baseline
        other = "it" if known else f"“{model_title(one.baseline)}”"
        parts.append(f"{amount} {other} on {one.split} ({p_text(one.p_value)}, {count})")
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{title} is {listed}: {ADVICE[decision] or doubt(standings)}."


def doubt(standings: list[Standing]) -> str:
    """Why standings don't decide."""
    if any(one.difference <= 0 for one in standings):
        return "decide by the split that is most like your recordings"
    if all(2.0 ** (1 - one.groups) > LEVEL for one in standings):  # the smallest p-value that a permutation test has
        return "so few groups can't show that it is better"
    return "that may be chance, so test it on more groups before you deploy it"


def notes(report: Report) -> list[str]:
    """What limits a verdict."""
    kind, found = KINDS[report["labels"]], list(report["metrics"].values())[-1]
    lines = [f"{report['note']}."] if report["note"] else []
    splits = judged_splits(report)
    if splits == ["val"]:
        lines.append("There is no test split: val, by which weights and settings may have been chosen, is optimistic.")
    for split in splits:
        level, interval = chance(found[split]), found[split][f"{kind.HEADLINE}_ci"]
        if (interval[0] if interval else found[split][kind.HEADLINE]) <= level:
            lines.append(f"On {split} it is not surely better than guessing ({level:.3f}).")
    return lines


def chance(found: Mapping[str, Any]) -> float:
    """The headline score of guessing on a split: one over the classes, or for mAP their mean share of the clips."""
    present = [one["clips"] for one in found["by_class"].values() if one["clips"]]
    return 1 / len(present) if "confusion" in found else sum(present) / len(present) / found["clips"]
