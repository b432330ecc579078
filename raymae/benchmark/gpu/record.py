"""The JSON file of figures: each is there as soon as it is measured, whatever happens to the process later."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from raymae.benchmark.harness.result import machine

Values = dict[str, Any]
"""A figure: numbers by name, or the text of an `error`."""
MOST_STARTS = 2
"""How often a case is begun that ends the process."""


class Record:
    """Figures by name, kept in a file that is replaced whole.

    Args:
        path: the file, which is read if it exists.
        setting: what the figures are of: those of another device or size are refused by ValueError.
    """

    def __init__(self, path: Path, setting: Values) -> None:
        self.path = path
        self.content: Values = {"part": "gpu", "setting": setting, "figures": {}, "starts": {}, "rows": []}
        if path.exists():
            found = json.loads(path.read_text())
            if found.get("setting") != setting:
                raise ValueError(f"{path} holds figures of {found.get('setting')}, not of {setting}: name another file")
            self.content = found
        self.content["machine"] = machine()

    @property
    def figures(self) -> dict[str, Values]:
        """All figures, also those that failed."""
        found: dict[str, Values] = self.content["figures"]
        return found

    def get(self, name: str) -> Values | None:
        """A figure, if it was measured without an error."""
        found = self.figures.get(name)
        return None if found is None or "error" in found else found

    def begin(self, case: str) -> bool:
        """Note that a case begins; False if it has ended the process too often."""
        starts = self.content["starts"]
        starts[case] = starts.get(case, 0) + 1
        self._write()
        return bool(starts[case] <= MOST_STARTS)

    def add(self, name: str, values: Values) -> None:
        """Write a figure."""
        self.figures[name] = values
        self._write()

    def end(self, case: str) -> None:
        """Note that a case ended, and the process didn't."""
        del self.content["starts"][case]
        self._write()

    def conclude(self, **values: Any) -> None:
        """Write what is said of all figures together."""
        self.content |= values
        self._write()

    def _write(self) -> None:
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)
