"""The jobs that run a pipeline up to one of its stages: what `jobs/prepare.py` to `jobs/pipeline.py` call."""

from __future__ import annotations

from typing import Any

from raymae.config import Config, SweepConfig
from raymae.config.stages import Target, requires
from raymae.storage.folder import open_storage


def run_job(target: Target, config: Config) -> dict[str, Any]:
    """Run everything that `target` needs, or what the settings ask for in its place; returns what `--json` writes.

    `data.check` looks at the clips and stops, `evaluate.compare` compares finished evaluations, `dry_run` estimates.
    ValueError where an option belongs to another job.
    """
    if config.evaluate.compare and target != "evaluate":
        raise ValueError("evaluate.compare is an option of jobs/evaluate.py, which then compares and does no more")
    if config.sweep != SweepConfig():
        raise ValueError("sweep.* are options of jobs/sweep.py; this job would leave them unused")
    storage = open_storage(config.storage)
    if config.data.check:
        from raymae.datasets.overview import check

        one = first_run(config)
        return check(one, storage, one.finetune.labels, requires(target, "finetune"))
    if config.evaluate.compare:
        from raymae.evaluation.report.compared import compare_evaluations

        return compare_evaluations(config.evaluate.compare)
    if config.dry_run:
        from raymae.pipeline.dry_run.dry_run import dry_run

        return dry_run(config, target, storage)
    from raymae.pipeline.repeats import run_repeats

    return run_repeats(config, target, storage)


def first_run(config: Config) -> Config:
    """The settings of the first fold with `folds`, after all were checked; else the settings themselves."""
    if not config.folds:
        return config
    from raymae.pipeline.repeats import runs_of

    return next(iter(runs_of(config).values()))
