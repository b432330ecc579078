"""`sweep`: a sweep of nine points against its stages, one after the other in one process."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.studies.transfer import changed_recipe
from raymae.config import Config
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.run import run_plan
from raymae.storage.folder import open_storage
from raymae.sweep.points import Planner, copy_weights, stages_of
from raymae.sweep.run import Sweep, complete
from raymae.sweep.space import grid, parse_space

MOST = 1.1


@dataclass(frozen=True, kw_only=True)
class SweepTime:
    """Run the default space of a recipe as jobs/sweep.py does, every trial to its end, and then each distinct stage of
    its points once more in another storage, one after the other in this process on all cores, as a loop without Ray
    would. The feature store is made before, on both sides.

    The sweep's seconds are those from its start with Ray there to its end, with records, tables, page and MLflow. Both
    sides train the same stages for as many steps; a trial has one thread, the loop all cores, so that sums are rounded
    in another order: in fp32 the scores are equal, in bf16 those of few clips differ.

    `--json` keys: `trials`, `stages`, `sweep_seconds`, `bare_seconds`, `stage_seconds` (by stage of the bare side, in
    all), `scores` (by point those of both sides).
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    recipe: str = "synthetic"
    """Recipe whose default space is swept."""
    settings: tuple[str, ...] = ()
    """Settings for both sides, each as FIELD=VALUE."""

    def run(self) -> Result:
        """Measure."""
        from raymae.cluster.connect import start_ray

        recipe = changed_recipe(self.recipe, self.settings)
        with tempfile.TemporaryDirectory(prefix="raymae-sweep-") as one, tempfile.TemporaryDirectory() as other:
            start_ray(self.config(one, recipe).compute)
            swept, seconds = self.swept(self.config(one, recipe))
            bare, stages = self.bare(self.config(other, recipe))
        total = sum(stage for _, stage in stages)
        by_name: dict[str, float] = {}
        for name, stage in stages:
            by_name[name] = by_name.get(name, 0.0) + stage
        what = f"{len(swept)} trials of {self.recipe}"
        row = Row(
            "sweep",
            what,
            f"{seconds:.0f} s",
            f"{total:.0f} s ({len(stages)} stages, bare)",
            seconds / total,
            MOST,
            True,
        )
        numbers = {
            "trials": len(swept),
            "stages": len(stages),
            "sweep_seconds": seconds,
            "bare_seconds": total,
            "stage_seconds": by_name,
            "scores": {point: [score, bare[point]] for point, score in swept.items()},
        }
        return Result("sweep", [row], numbers)

    def config(self, storage: str, recipe: Config) -> Config:
        """The recipe with its feature store in a storage."""
        config = replace(recipe, storage=storage, sweep=replace(recipe.sweep, stopping="none"))
        run_plan(config, "prepare", open_storage(storage))
        return config

    def swept(self, config: Config) -> tuple[dict[str, float | None], float]:
        """The scores by point of a sweep, and its seconds."""
        started = time.perf_counter()
        sweep = Sweep(config, open_storage(config.storage))
        complete(sweep)
        return {one.label: one.score for one in sweep.records}, time.perf_counter() - started

    def bare(self, config: Config) -> tuple[dict[str, float | None], list[tuple[str, float]]]:
        """The scores by point, and the seconds of each distinct stage, in order."""
        import torch

        from raymae.sweep.trials.trial import Trial

        torch.set_num_threads(config.compute.torch_threads or torch.get_num_threads())
        planner, stages = Planner(config, open_storage(config.storage)), []
        scores: dict[str, float | None] = {}
        for values in grid(parse_space(config)):
            plan = planner.plan(values)
            copy_weights(plan)
            for name in stages_of(plan):
                started = time.perf_counter()
                if InProcess(plan).make(plan.nodes[name]):
                    stages.append((name, time.perf_counter() - started))
            point = planner.point(values)
            scores[point.label] = Trial(plan, _nothing).predict(sweep_folder(planner), point.key)
        return scores, stages


def _nothing(report: dict[str, Any]) -> None:
    """A trial's report, to nobody."""


def sweep_folder(planner: Planner) -> Any:
    """A folder for predictions."""
    return planner.storage / "predictions"
