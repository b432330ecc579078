"""Promote the candidate to champion if it is the better model on the same held-out clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymae.config import Config, PromoteConfig, redact, to_dict
from raymae.evaluation.report import result_table
from raymae.evaluation.report.sections import difference_cells, number
from raymae.evaluation.scores import KINDS, comparisons
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.model_uri import check_registry

if TYPE_CHECKING:
    import pyarrow as pa

    from raymae.tracking.tracker import Tracker, Version


def promote(config: Config) -> dict[str, Any]:
    """Compare the version of `tracking.alias` with that of `promote.alias`, and move the latter if it should.

    Without a champion the candidate becomes champion. Otherwise the paired permutation test over groups
    (`promote.level`) has to find it better on a test split, and worse on none.

    Returns what `--json` writes: job, promoted, reason, candidate and champion (model URIs before the job), differences
    (test split → first, second, value, interval, p_value, groups, clips; None without a champion).

    Raises ValueError where there is no candidate, an evaluation is missing, or the two have other clips or classes.
    """
    storage = open_storage(config.storage)
    check_registry(config)
    from raymae.tracking.tracker import Tracker  # takes seconds

    settings, tracker = config.promote, Tracker(config.tracking, storage)
    name = config.tracking.registered_model
    candidate, champion = tracker.version(config.tracking.alias), tracker.version(settings.alias)
    if candidate is None:
        lacks = tracker.missing(f"models:/{name}@{config.tracking.alias}")
        raise ValueError(f"there is nothing to promote: {lacks}; jobs/pipeline.py registers a candidate")
    differences = None
    if champion is None:
        promoted, reason = True, f"there was no {settings.alias}"
        predictions(storage, candidate)  # a version that was never evaluated is not promoted
    elif champion.uri == candidate.uri:
        promoted, reason = False, f"it is the {settings.alias} already"
    else:
        differences = difference(storage, candidate, champion)
        promoted, reason = verdict(differences, settings)
    if promoted:
        tracker.set_alias(settings.alias, candidate)
    result = {
        "job": "promote",
        "promoted": promoted,
        "reason": reason,
        "candidate": candidate.uri,
        "champion": champion and champion.uri,
        "differences": differences,
    }
    print_result(result, settings, tracker)
    return dict(to_dict(result))


def predictions(storage: Folder, version: Version) -> tuple[pa.Table, list[str], Any]:
    """The predictions of a version from its evaluation, its classes, and whether they are single- or multi-label."""
    folder = storage / f"artifacts/evaluate/{version.evaluation}"
    if not version.evaluation or not folder.is_done():
        raise ValueError(
            f"{version.uri} can't be compared: its evaluation {version.evaluation or '(none named)'} is not in "
            f"--storage {redact(storage.url)}"
        )
    report = folder.result()
    return folder.read_table(f"predictions/{version.model}.parquet", checked=True), report["classes"], report["labels"]


def difference(storage: Folder, candidate: Version, champion: Version) -> dict[str, Any]:
    """By test split, the candidate against the champion; ValueError where they were evaluated on different clips."""
    (ours, classes, labels), (theirs, other, _) = (predictions(storage, one) for one in (candidate, champion))
    problem = f"{candidate.uri} and {champion.uri} can't be compared: "
    if classes != other:
        raise ValueError(f"{problem}their classes are {', '.join(classes)} and {', '.join(other)}")
    try:
        found = comparisons(ours, theirs, classes, labels)
    except ValueError as error:
        raise ValueError(f"{problem}{error}; evaluate both with the same tables and --data.split settings") from None
    tests = {split: one | {"score": KINDS[labels].TITLE} for split, one in found.items() if split.startswith("test")}
    if not tests:
        raise ValueError(f"{problem}there is no test split, and val may have selected their weights")
    return tests


def verdict(differences: dict[str, Any], settings: PromoteConfig) -> tuple[bool, str]:
    """Whether the first of two is better by the rule of `promote`, and why (not)."""
    sure = {split: found for split, found in differences.items() if found["p_value"] <= settings.level}
    worse = [split for split, found in sure.items() if found["value"] < 0]
    better = [split for split, found in sure.items() if found["value"] > 0]
    if worse:
        return False, f"it is worse on {', '.join(worse)} (p ≤ {settings.level:g})"
    if better:
        return True, f"it is better on {', '.join(better)} (p ≤ {settings.level:g}) and worse on no test split"
    return False, f"it is better on no test split (p ≤ {settings.level:g})"


def print_result(result: dict[str, Any], settings: PromoteConfig, tracker: Tracker) -> None:
    """Print the comparison and the decision."""
    if result["differences"]:
        rows = [
            [split, number(found["first"]), number(found["second"]), *difference_cells(found)]
            for split, found in result["differences"].items()
        ]
        title = next(iter(result["differences"].values()))["score"]
        header = [title, "candidate", settings.alias, "difference", "p", "groups"]
        print(f"{result_table(header, rows)}\n")
    verb = "becomes" if result["promoted"] else "does not become"
    print(f"{result['candidate']} {verb} the {settings.alias} of {redact(tracker.uri)}: {result['reason']}")
