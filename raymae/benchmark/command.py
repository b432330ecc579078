"""Command line of the benchmark: one subcommand per part, and `all`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from raymae.benchmark.harness.result import Part, Result, Row, load_rows, machine, markdown
from raymae.benchmark.scale.group import Group
from raymae.benchmark.scale.nodes import Nodes
from raymae.benchmark.scale.plan import Plan
from raymae.benchmark.scale.recovery import Recovery
from raymae.benchmark.scale.scale import Scale
from raymae.benchmark.speed.front_end import FrontEnd
from raymae.benchmark.speed.ingest import Ingest
from raymae.benchmark.speed.loop import Loop
from raymae.benchmark.speed.predict import Predict
from raymae.benchmark.speed.prepare import Prepare
from raymae.benchmark.speed.recordings import Recordings
from raymae.benchmark.speed.serve import Serve
from raymae.benchmark.speed.train_step import TrainStep
from raymae.benchmark.studies.curves import Curves
from raymae.benchmark.studies.frozen import Frozen
from raymae.benchmark.studies.transfer import Transfer
from raymae.cluster.connect import stay_local
from raymae.config import redact

PARTS: dict[str, type[Part]] = {
    "front-end": FrontEnd,
    "prepare": Prepare,
    "recordings": Recordings,
    "ingest": Ingest,
    "predict": Predict,
    "loop": Loop,
    "serve": Serve,
    "nodes": Nodes,
    "group": Group,
    "recovery": Recovery,
    "scale": Scale,
    "train-step": TrainStep,
    "curves": Curves,
    "frozen": Frozen,
    "transfer": Transfer,
    "plan": Plan,
}
"""Subcommand name to part."""

NOT_IN_ALL = (
    "recordings",
    "predict",
    "loop",
    "serve",
    "nodes",
    "group",
    "recovery",
    "scale",
    "train-step",
    "curves",
    "frozen",
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
                    subprocess.run([sys.executable, "-m", __spec__.name, name, "--json", str(path)], check=True)
                    parts[name] = json.loads(path.read_text())
                    rows += load_rows(parts[name])
        seconds = time.perf_counter() - started
        on = machine()
        text = (
            f"\n{markdown(rows)}\n\nMeasured in {seconds:.0f} s on {on['cores']} cores ({on['processor']}, "
            f"load average at the end {on['load_average']:.1f})."
        )
        return Result("all", [], {"parts": parts, "seconds": seconds}, text)


def main(doc: str, arguments: list[str] | None = None) -> None:
    """Parse the command line, run the part, print its result and write its JSON file."""
    stay_local()
    part: Part = tyro.extras.subcommand_cli_from_dict(
        {**PARTS, "all": All}, prog=Path(sys.argv[0]).name, description=doc, args=arguments
    )
    try:
        result = part.run()
        print(f"{result.part} ({machine()['load_average']:.1f} load average)\n{result}", flush=True)
        if part.json:
            result.save(part.json)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {redact(str(error))}")


if __name__ == "__main__":
    main(__doc__ or "")
