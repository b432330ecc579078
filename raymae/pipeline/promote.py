"""Promote the candidate to champion if it is the better model on the same held-out clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymae.config import Config, PromoteConfig, redact, to_dict
from raymae.evaluation.report import result_table
from raymae.evaluation.scores import KINDS, comparisons, corrected
from raymae.evaluation.wording import P_COLUMNS, difference_cells, number
from raymae.pipeline.best_baseline import against_best_baseline
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.model_uri import check_registry

if TYPE_CHECKING:
    import pyarrow as pa

    from raymae.tracking.tracker import Tracker, Version


def promote(config: Config) -> dict[str, Any]:
    """Compare the version of `tracking.alias` with that of `promote.alias`, and move the latter if it should.

    The paired permutation test over groups (`promote.level`) has to find the candidate better than each opponent on a
    test split, by p-values corrected for the number of all comparisons, and worse on none. Opponents are the champion,
    if there is one, and with `promote.over` baselines the best baseline of the candidate's evaluation. Without any the
    candidate becomes champion.

    Returns what `--json` writes: job, promoted, reason, candidate and champion (model URIs before the job), baseline
    (its name), differences and baseline_differences (test split → first, second, value, interval, p_value, p_holm,
    groups, clips; None without such an opponent).

    Raises ValueError where there is no candidate, an evaluation or a baseline is missing, or candidate and champion
    have other clips or classes.
    """
    storage = open_storage(config.storage)
    check_registry(config)
    from raymae.tracking.tracker import Tracker  # takes seconds

    settings, tracker = config.promote, Tracker(config.tracking, storage)
    name = config.tracking.registered_model
    candidate, champion = tracker.version(config.tracking.alias), tracker.version(settings.alias)
    if candidate is None:
        missing = tracker.missing(f"models:/{name}@{config.tracking.alias}")
        raise ValueError(f"there is nothing to promote: {missing}; jobs/pipeline.py registers a candidate")
    baseline: str | None = None
    compared: dict[str, dict[str, Any]] = {}
    if champion is not None and champion.uri == candidate.uri:
        promoted, reason = False, f"it is the {settings.alias} already"
    else:
        baseline, compared = opponents(storage, candidate, champion, settings)
        promoted, reason = overall(compared, settings)
    if promoted:
        tracker.set_alias(settings.alias, candidate)
    result = {
        "job": "promote",
        "promoted": promoted,
        "reason": reason,
        "candidate": candidate.uri,
        "champion": champion and champion.uri,
        "baseline": baseline,
        "differences": compared.get(settings.alias),
        "baseline_differences": compared.get(f"baseline {baseline}"),
    }
    print_result(result, compared, tracker, settings)
    return dict(to_dict(result))


def opponents(
    storage: Folder, candidate: Version, champion: Version | None, settings: PromoteConfig
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The best baseline, where it is asked for, and by opponent and test split the candidate's corrected differences.

    A candidate that was never evaluated is a ValueError, also without any opponent.
    """
    report = evaluation_of(storage, candidate).result()
    found: dict[str, dict[str, Any]] = {}
    if champion is not None:
        found[settings.alias] = difference(storage, candidate, champion)
    best = None
    if settings.over == "baselines":
        ranked = against_best_baseline(report)
        if ranked is None:
            raise ValueError(
                f"{candidate.uri} can't be compared with a baseline: its evaluation has none on a test split "
                "(--evaluate.baselines)"
            )
        best, found[f"baseline {ranked[0]}"] = ranked
    return best, corrected(found)


def overall(compared: dict[str, dict[str, Any]], settings: PromoteConfig) -> tuple[bool, str]:
    """Whether the candidate is better than every opponent, and why (not)."""
    if not compared:
        return True, f"there was no {settings.alias}"
    verdicts = {name: verdict(differences, settings) for name, differences in compared.items()}
    lost = {name: why for name, (won, why) in verdicts.items() if not won}
    told = lost or {name: why for name, (_, why) in verdicts.items()}
    return not lost, "; ".join(f"against the {name} {why}" for name, why in told.items())


def evaluation_of(storage: Folder, version: Version) -> Folder:
    """The finished evaluation of a version."""
    folder = storage / f"artifacts/evaluate/{version.evaluation}"
    if not version.evaluation or not folder.is_done():
        raise ValueError(
            f"{version.uri} can't be compared: its evaluation {version.evaluation or '(none named)'} is not in "
            f"--storage {redact(storage.url)}"
        )
    return folder


def predictions(storage: Folder, version: Version) -> tuple[pa.Table, list[str], Any]:
    """The predictions of a version from its evaluation, its classes, and whether they are single- or multi-label."""
    folder = evaluation_of(storage, version)
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
    """Whether the first of two is better by the rule of `promote`, and why (not).

    Corrected where it would be promoted by chance; not where a loss would be overlooked.
    """
    level = settings.level
    worse = [split for split, found in differences.items() if found["value"] < 0 and found["p_value"] <= level]
    better = [split for split, found in differences.items() if found["value"] > 0 and found["p_holm"] <= level]
    if worse:
        return False, f"it is worse on {', '.join(worse)} (p ≤ {level:g})"
    if better:
        return True, f"it is better on {', '.join(better)} (Holm's p ≤ {level:g}) and worse on no test split"
    return False, f"it is better on no test split (Holm's p ≤ {level:g})"


def print_result(
    result: dict[str, Any], compared: dict[str, dict[str, Any]], tracker: Tracker, settings: PromoteConfig
) -> None:
    """Print the comparisons and the decision."""
    for opponent, differences in compared.items():
        rows = [
            [split, number(found["first"]), number(found["second"]), *difference_cells(found)]
            for split, found in differences.items()
        ]
        title = next(iter(differences.values()))["score"]
        header = [title, "candidate", opponent, "difference", *P_COLUMNS, "groups"]
        print(f"{result_table(header, rows)}\n")
    verb = "becomes" if result["promoted"] else "does not become"
    print(f"{result['candidate']} {verb} the {settings.alias} of {redact(tracker.uri)}: {result['reason']}")
