"""Sweeps from Python: the trials, keys and results of jobs/sweep.py, as a table and settings.

The function isn't called `raymae.sweep`, because importing any module of the package of that name would replace it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from raymae.api.results import Framed
from raymae.api.settings import Data, settings_of
from raymae.api.training import refuse_others
from raymae.cluster.connect import stay_local
from raymae.config import Config, to_text
from raymae.storage.folder import open_storage
from raymae.sweep.results import BEST
from raymae.sweep.run import Sweep, complete
from raymae.sweep.space import parse_space

Space = Mapping[str, Sequence[Any] | str] | Sequence[str]
"""What is varied: by path a list of values or a range as text ("log:1e-4..1e-2"); or texts FIELD=VALUES, as of
`--sweep.space`. Empty: the default space."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepRun(Framed):
    """A finished sweep."""

    result: dict[str, Any] = field(repr=False)
    """What `--json` of the job writes."""
    folder: str
    """Folder or URL of the sweep: its page `sweep.html`, tables, records."""
    settings: dict[str, Any]
    """The best settings by path, as best.json holds them: raymae.run_pipeline(recipe, **settings) reuses its stages."""
    result_grid: Any = None
    """Ray's ResultGrid (`ray.tune.ResultGrid`) of the trials of this call; None where all were recorded before."""

    @property
    def best(self) -> dict[str, Any]:
        """The best point: its values by path."""
        return dict(self.result["best"]["changes"])

    @property
    def tied(self) -> list[dict[str, Any]]:
        """The points that can't be told from the one of the highest score."""
        return [dict(one["changes"]) for one in self.result["tied"]]

    def to_frame(self) -> pd.DataFrame:
        """A row for each trial: its values, status, score with interval, distance to the winner, seconds, FLOPs."""
        rows = [
            one["changes"] | {name: value for name, value in one.items() if name != "changes"}
            for one in self.result["trials"]
        ]
        return pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)


def run_sweep(recipe: str, data: Data = None, *, space: Space = (), **settings: Any) -> SweepRun:
    """Run a sweep, or what is left of it, as jobs/sweep.py does.

    Args:
        recipe: name of the recipe.
        data: as of `raymae.pretrain`.
        space: what is varied.
        settings: as of `raymae.pretrain`, and the section sweep: sweep={"search": "optuna", "trials": 20}.

    Raises:
        ValueError: an unknown setting, a space that can't be read or changes nothing; at the end, no trial finished.
        TimeIsUpError: max_hours are over; the same call resumes.
    """
    config = with_space(settings_of(recipe, data, settings), space)
    refuse_others(config)
    parse_space(config)  # so that a mistake in it makes no storage
    stay_local(config.compute.address)
    sweep = Sweep(config, open_storage(config.storage))
    result = complete(sweep)
    found = {path: value for path, value in sweep.folder.read_json(BEST).items() if path != "recipe"}
    return SweepRun(result=result, folder=sweep.folder.url, settings=found, result_grid=sweep.result_grid)


def with_space(config: Config, space: Space) -> Config:
    """The settings with a space; ValueError where they have one already."""
    texts = space_texts(space)
    if texts and config.sweep.space:
        raise ValueError("space is given twice: leave it out of sweep={…}")
    return replace(config, sweep=replace(config.sweep, space=texts)) if texts else config


def space_texts(space: Space) -> tuple[str, ...]:
    """A space as texts of `SweepConfig.space`."""
    if isinstance(space, str):
        return (space,)
    if not isinstance(space, Mapping):
        return tuple(space)
    return tuple(
        f"{path}={values if isinstance(values, str) else ','.join(map(to_text, values))}"
        for path, values in space.items()
    )
