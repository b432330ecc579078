"""Measure the training step on a GPU, in two calls of a few minutes each.

python -m raymae.benchmark.gpu --part 1 --json gpu.json
python -m raymae.benchmark.gpu --part 2 --json gpu.json
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from raymae.benchmark.harness.result import markdown

SPARE_SECONDS = 15.0
"""Of the budget, for the imports before and the table after the measurements."""


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure what is missing, and print the table."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), required=True, help="1: the most important figures; 2: all")
    parser.add_argument("--json", type=Path, required=True, help="the file of figures; those that it has are kept")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further case is begun or finished")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    given = parser.parse_args(arguments)
    try:
        measure(given.part, given.json, started + 60 * given.minutes - SPARE_SECONDS, tiny=given.tiny)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def measure(part: int, path: Path, deadline: float, *, tiny: bool) -> None:
    """Measure the cases of a part that are missing in a file, until `deadline` (`time.monotonic`)."""
    import torch

    from raymae.benchmark.gpu.cases import measure_all, plan
    from raymae.benchmark.gpu.record import Record
    from raymae.benchmark.gpu.rows import result
    from raymae.benchmark.gpu.sizes import FULL, TINY, Device

    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        raise ValueError("there is no GPU: --tiny measures at tiny sizes on the CPU")
    sizes = TINY if tiny else FULL
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    record = Record(path, {"device": name, "torch": torch.__version__, "sizes": "tiny" if tiny else "full"})
    left = measure_all(plan(sizes, device, part), record, deadline)
    found = result(record, sizes.clips, left)
    record.conclude(left=left, rows=[{**asdict(row), "met": row.met} for row in found.rows])
    print(f"\n{markdown(found.rows)}\n\n{found.text}", flush=True)


if __name__ == "__main__":
    main()
