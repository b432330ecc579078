"""Command line of the benchmark: one subcommand per part, and `all`."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from raymae import benchmark
from raymae.benchmark.harness.result import Part, Result, Row, load_rows, machine, markdown
from raymae.cli.job import Command, called
from raymae.cli.subcommands import choose, first_line
from raymae.cluster.connect import stay_local
from raymae.config import redact

PARTS = {
    "front-end": "speed.front_end:FrontEnd",
    "prepare": "speed.prepare:Prepare",
    "recordings": "speed.recordings:Recordings",
    "ingest": "speed.ingest:Ingest",
    "predict": "speed.predict:Predict",
    "loop": "speed.loop:Loop",
    "serve": "speed.serve:Serve",
    "sweep": "speed.sweep:SweepTime",
    "sweep-driver": "speed.sweep_driver:SweepDriver",
    "nodes": "scale.nodes:Nodes",
    "group": "scale.group:Group",
    "recovery": "scale.recovery:Recovery",
    "scale": "scale.scale:Scale",
    "train-step": "speed.train_step:TrainStep",
    "curves": "studies.curves:Curves",
    "frozen": "studies.frozen:Frozen",
    "left-out": "studies.left_out:LeftOut",
    "transfer": "studies.transfer:Transfer",
    "plan": "scale.plan:Plan",
}
"""By subcommand the module below raymae.benchmark, and the class in it, of its part: imported when it is asked for."""

NOT_IN_ALL = (
    "recordings",
    "predict",
    "loop",
    "serve",
    "sweep",
    "sweep-driver",
    "nodes",
    "group",
    "recovery",
    "scale",
    "train-step",
    "curves",
    "frozen",
    "left-out",
    "transfer",
    "plan",
)
"""Parts that `all` leaves out: they take long, need your own recordings, or measure nothing (`plan`)."""


@dataclass(frozen=True, kw_only=True)
class All:
    """Run front-end, prepare and ingest, each in its own process, and print the results as one Markdown table.

    `--json` keys: `parts` (the JSON object of each part), `seconds`, `rows`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> Result:
        """Measure."""
        started = time.perf_counter()
        parts: dict[str, Any] = {}
        rows: list[Row] = []
        with tempfile.TemporaryDirectory() as folder:
            for name in PARTS:
                if name not in NOT_IN_ALL:
                    path = Path(folder) / f"{name}.json"
                    subprocess.run(
                        [sys.executable, "-m", "raymae.cli.jobs", "benchmark", name, "--json", str(path)], check=True
                    )
                    parts[name] = json.loads(path.read_text())
                    rows += load_rows(parts[name])
        seconds = time.perf_counter() - started
        on = machine()
        text = (
            f"\n{markdown(rows)}\n\nMeasured in {seconds:.0f} s on {on['cores']} cores ({on['processor']}, "
            f"load average at the end {on['load_average']:.1f})."
        )
        return Result("all", [], {"parts": parts, "seconds": seconds}, text)


def part_of(name: str) -> type[Part]:
    """The part of a subcommand."""
    if name == "all":
        return All
    module, _, part = PARTS[name].partition(":")
    found: type[Part] = getattr(importlib.import_module(f"raymae.benchmark.{module}"), part)
    return found


def does(name: str) -> str:
    """What a part does: the first line of its module, which isn't imported for it."""
    module = PARTS[name].partition(":")[0].replace(".", "/")
    text = (Path(benchmark.__file__).parent / f"{module}.py").read_text()
    return first_line(ast.get_docstring(ast.parse(text))).partition(": ")[2]


def main(command: Command, arguments: list[str]) -> None:
    """Parse the command line, run the part, print its result and write its JSON file."""
    stay_local()
    name = choose(command, arguments, {one: does(one) for one in PARTS} | {"all": first_line(All.__doc__)}, {})
    print(f"{command.name} {name}", file=sys.stderr, flush=True)  # before the imports, which take seconds
    part = tyro.cli(part_of(name), prog=f"{called(command.name)} {name}", args=arguments[1:])
    try:
        result = part.run()
        print(f"{result.part} ({machine()['load_average']:.1f} load average)\n{result}", flush=True)
        if part.json:
            result.save(part.json)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {redact(str(error))}")
