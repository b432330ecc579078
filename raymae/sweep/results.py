"""What a sweep knows of its trials: a record each, written when the trial ends, and what is made of them. No Ray.

`<storage>/sweeps/<recipe>-<key>/trials/<trial>.json` are all that a later start of the same sweep reads; nothing is
unpickled.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from raymae.config import Config, changed, differences, redact, to_dict, to_text
from raymae.config.recipes import RECIPES
from raymae.evaluation.report import result_table
from raymae.storage.folder import Folder
from raymae.sweep.space import Axis, Values, label

TRIALS, CSV, TABLE, BEST = "trials", "sweep.csv", "sweep.md", "best.json"
NOT_SET = ("recipe", "json", "dry_run", "max_hours", "seeds")
"""What a file of settings leaves to the command that reads it."""

Status = Literal["finished", "stopped", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a trial ended."""

    key: str
    """Names the point within the sweep."""
    changes: Values
    """Its values by path."""
    status: Status
    """finished; stopped early, as worse than others; failed with an error; refused by the configuration."""
    score: float | None = None
    """On split val: of the finished trial's classifier, or the last of one that was stopped."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last metrics of the final classifier's training."""
    history: list[dict[str, float]] = field(default_factory=list)
    """{percent, step, score} of every validation: percent of the final stage, updates of all stages."""
    stages: dict[str, Any] = field(default_factory=dict)
    """By stage, its key, whether the trial found it made, and the seconds it took or waited."""
    error: str = ""
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """The point, for people."""
        return label(self.changes)

    @property
    def counts(self) -> bool:
        """Whether the trial need not be run again: what failed may not fail the next time."""
        return self.status != "failed"


def write_record(folder: Folder, record: Record) -> None:
    """Write a trial's record; another of the same point is kept beside the first."""
    name, number = record.key, 2
    while name in (known := read_records(folder)) and known[name].counts:
        name, number = f"{record.key}-{number}", number + 1
    folder.write_json(f"{TRIALS}/{name}.json", asdict(record))


def read_records(folder: Folder) -> dict[str, Record]:
    """The records of a sweep by their names; ValueError for a damaged one."""
    trials, known = folder / TRIALS, {item.name for item in fields(Record)}
    found = {}
    for name in trials.names():
        if not name.endswith(".json"):
            continue
        values = trials.read_json(name)
        if not isinstance(values, dict) or not {"key", "changes", "status"} <= set(values) <= known:
            raise ValueError(f"{redact(trials.url)}/{name} is damaged: it is no record of a trial")
        values["changes"] = {
            path: tuple(value) if isinstance(value, list) else value for path, value in values["changes"].items()
        }
        found[name.removesuffix(".json")] = Record(**values)
    return found


def ranked(records: Sequence[Record]) -> list[Record]:
    """Finished trials first, the best on top; then the stopped ones; those without a score last."""
    place = {"finished": 0, "stopped": 1}
    return sorted(records, key=lambda one: (place.get(one.status, 2), -(one.score or 0.0)))


def best_of(records: Sequence[Record]) -> Record | None:
    """The finished trial with the best score, of equal ones the first; stopped trials are not among them."""
    finished = [one for one in records if one.status == "finished" and one.score is not None]
    return max(finished, key=lambda one: one.score or 0.0, default=None)


def table(records: Sequence[Record], axes: Sequence[Axis], metric: str) -> str:
    """The trials, best first, in Markdown."""
    header = [*(axis.path for axis in axes), metric, "status", "seconds", "note"]
    rows = [
        [
            *(to_text(one.changes[axis.path]) for axis in axes),
            "" if one.score is None else f"{one.score:.4f}",
            one.status,
            f"{one.seconds:.0f}",
            one.error or reused(one),
        ]
        for one in ranked(records)
    ]
    return result_table(header, rows, frozenset({"status", "note"}))


def reused(record: Record) -> str:
    """Which stages a trial found made by others."""
    names = [name for name, stage in record.stages.items() if stage["reused"] and name != "prepare"]
    return f"shared: {', '.join(names)}" if names else ""


def table_csv(records: Sequence[Record], axes: Sequence[Axis], metric: str) -> str:
    """A line per trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(axis.path for axis in axes), "metric", "score", "status", "seconds", "error"])
    for one in records:
        values = [to_text(one.changes[axis.path]) for axis in axes]
        score = "" if one.score is None else one.score
        writer.writerow([*values, metric, score, one.status, round(one.seconds, 1), one.error])
    return text.getvalue()


def settings_of(config: Config, values: Values) -> dict[str, Any]:
    """A point's configuration as a file that every job takes (`--settings`): the recipe, and by path what differs from
    it. The sweep's own section, and values that hold credentials, are left out."""
    whole = changed(config, values)
    recipe = RECIPES[config.recipe]() if config.recipe in RECIPES else Config()
    own, theirs = (to_dict(one, secret=True) for one in (whole, recipe))
    left_out = {
        path: value
        for path, value in differences(own, theirs).items()
        if path not in NOT_SET and not path.startswith("sweep.") and to_dict(value) == value
    }
    return {"recipe": config.recipe, **left_out}


def number(value: Any) -> float | None:
    """A score as JSON holds it: None where there is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
