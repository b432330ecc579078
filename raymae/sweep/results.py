"""Records of trials, one written when each trial ends, and the settings of a point. No Ray.

A later start of the same sweep reads only `<storage>/sweeps/<recipe>-<key>/trials/<trial>.json`; nothing is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from raymae.config import Config, changed, differences, redact, to_dict
from raymae.config.recipes import RECIPES
from raymae.storage.folder import Folder
from raymae.sweep.space import Values, label

TRIALS, CSV, TABLE, BEST = "trials", "sweep.csv", "sweep.md", "best.json"
NOT_SET = ("recipe", "json", "dry_run", "max_hours", "seeds", "folds")
"""Fields that a file of settings leaves to the command that reads it."""

Status = Literal["finished", "stopped", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of a trial."""

    key: str
    """The point's key within the sweep."""
    changes: Values
    """The point's values by path."""
    status: Status
    """finished; stopped early, as worse than others; failed with an error; refused by the configuration."""
    score: float | None = None
    """On split val: of the predictions that a finished trial keeps, or the last score of a stopped trial."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last metrics of the final classifier's training."""
    history: list[dict[str, float]] = field(default_factory=list)
    """{percent, step, score} of every validation: percent of the final stage's training, steps of all stages."""
    stages: dict[str, Any] = field(default_factory=dict)
    """By stage, its key, whether the trial reused it, and the seconds of computing it or waiting for it."""
    error: str = ""
    seconds: float = 0.0
    """From the trial's start to its end, with the stages that it waited for and without those that it found."""
    flops: float | None = None
    """Of the training of all stages of a finished trial, whoever ran them: the same on every machine."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """Of a segment of a population: generation and member, from 0, the number of generations, source, the member that
    it continues, and parent, the key of that one's segment. Empty for a trial of its own."""

    @property
    def label(self) -> str:
        """The point's values as text."""
        return label(self.changes)

    @property
    def is_whole(self) -> bool:
        """Whether the last stage ended with the trial: not for the generations of a population before its last."""
        return not self.lineage or self.lineage["generation"] == self.lineage["generations"] - 1

    @property
    def counts(self) -> bool:
        """Whether the trial is not run again; failed ones are."""
        return self.status != "failed"


def write_record(folder: Folder, record: Record) -> str:
    """Write a trial's record, and return its name; a second one of the same point is kept beside the first."""
    name, number = record.key, 2
    while (folder / TRIALS).exists(f"{name}.json") and read_record(folder, name).counts:
        name, number = f"{record.key}-{number}", number + 1
    folder.write_json(f"{TRIALS}/{name}.json", asdict(record))
    return name


def read_records(folder: Folder) -> dict[str, Record]:
    """The records of a sweep by their names; ValueError for a damaged one."""
    names = [name.removesuffix(".json") for name in (folder / TRIALS).names() if name.endswith(".json")]
    return {name: read_record(folder, name) for name in names}


def read_record(folder: Folder, name: str) -> Record:
    """A record by its name; ValueError where it is damaged."""
    values, known = (folder / TRIALS).read_json(f"{name}.json"), {item.name for item in fields(Record)}
    if not isinstance(values, dict) or not {"key", "changes", "status"} <= set(values) <= known:
        raise ValueError(f"{redact((folder / TRIALS).url)}/{name}.json is damaged: not the record of a trial")
    values["changes"] = {
        path: tuple(value) if isinstance(value, list) else value for path, value in values["changes"].items()
    }
    return Record(**values)


def ranked(records: Sequence[Record]) -> list[Record]:
    """Finished trials, the best first; then stopped ones; those without a score last."""
    place = {"finished": 0, "stopped": 1}
    return sorted(records, key=lambda one: (place.get(one.status, 2), -(one.score or 0.0)))


def best_of(records: Sequence[Record]) -> Record | None:
    """The finished trial with the best score, the first of equal ones; stopped trials and earlier generations of a
    population don't count."""
    finished = [one for one in records if one.status == "finished" and one.score is not None and one.is_whole]
    return max(finished, key=lambda one: one.score or 0.0, default=None)


def front(records: Sequence[Record]) -> list[Record]:
    """The finished trials that no other beats in score at the same or a smaller cost, the cheapest first."""
    found = [one for one in records if one.status == "finished" and one.score is not None and one.flops]
    best: list[Record] = []
    for one in sorted(found, key=lambda one: (one.flops or 0.0, -(one.score or 0.0))):
        if not best or (one.score or 0.0) > (best[-1].score or 0.0):
            best.append(one)
    return best


def reused(record: Record) -> str:
    """The stages that a trial reused from others, as text; of a segment of a population where it came from."""
    if record.lineage:
        generation, member = record.lineage["generation"] + 1, record.lineage["member"] + 1
        text, source = f"generation {generation} of {record.lineage['generations']}", record.lineage["source"]
        goes_on = "" if source in (None, member - 1) else f", from member {source + 1}"
        return f"{text}, member {member}{goes_on}"
    names = [name for name, stage in record.stages.items() if stage["reused"] and name != "prepare"]
    return f"shared: {', '.join(names)}" if names else ""


def settings_of(config: Config, values: Values) -> dict[str, Any]:
    """A point's configuration as a file for `--settings` of any job: the recipe, and by path what differs from it.
    The sweep's own section, and values with credentials, are left out."""
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
    """A score as JSON holds it; None where it is missing or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
