"""Results of a benchmark part: numbers for `--json`, and printed rows that compare raymae with a baseline."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One comparison: both measurements, their ratio and its goal."""

    part: str
    what: str
    raymae: str
    baseline: str
    ratio: float
    goal: float
    at_most: bool = False
    """The goal is an upper limit of the ratio instead of a lower one."""

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the goal."""
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    @property
    def verdict(self) -> str:
        """The ratio and its goal as text."""
        missed = "" if self.met else ", missed"
        return f"{self.ratio:.2f} x  (goal {'≤' if self.at_most else '≥'} {self.goal:g}{missed})"


@dataclass(frozen=True)
class Result:
    """Result of one part."""

    part: str
    rows: Sequence[Row] = ()
    values: dict[str, Any] = field(default_factory=dict)
    """Further numbers; documented in the part's docstring."""
    text: str = ""
    """Printed below the rows."""

    def save(self, path: str) -> None:
        """Write `part`, `machine`, `values` and `rows` (the fields of `Row` and `met`) as one JSON object."""
        rows = [{**asdict(row), "met": row.met} for row in self.rows]
        with open(path, "w") as file:
            json.dump({"part": self.part, "machine": machine(), **self.values, "rows": rows}, file, indent=1)
            file.write("\n")

    def __str__(self) -> str:
        lines = [f"{row.what}: {row.raymae} against {row.baseline}: {row.verdict}" for row in self.rows]
        return "\n".join([*lines, *([self.text] if self.text else [])])


class Part(Protocol):
    """One part of the benchmark: a frozen dataclass whose fields are its settings on the command line."""

    @property
    def json(self) -> str | None:
        """Path of the JSON file to write."""
        ...

    def run(self) -> Result:
        """Measure."""
        ...


def load_rows(content: dict[str, Any]) -> list[Row]:
    """The rows of a JSON object that `Result.save` wrote."""
    return [Row(**{key: value for key, value in row.items() if key != "met"}) for row in content["rows"]]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| part | measured | raymae | baseline | ratio, goal |", "|---|---|---|---|---|"]
    lines += [f"| {row.part} | {row.what} | {row.raymae} | {row.baseline} | {row.verdict} |" for row in rows]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Processor, cores, load average, Python and operating system of this machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
