"""Jobs from Python: the same plans, keys and artifacts as those of the command lines, on the same Ray."""

from __future__ import annotations

from typing import Any

from raymae.api.run import Run, run_of
from raymae.api.settings import Data, settings_of
from raymae.cluster.connect import stay_local
from raymae.config import Config
from raymae.config.stages import Target
from raymae.pipeline.job import run_job
from raymae.storage.folder import open_storage


def pretrain(recipe: str, data: Data = None, **settings: Any) -> Run:
    """Pre-train the masked autoencoder, as jobs/pretrain.py does.

    Args:
        recipe: name of the recipe.
        data: paths or URLs of tables or folders of recordings, or settings of the section data.
        settings: settings by their options' names: storage="runs", seed=1, or sections such as pretrain={"epochs": 4}.

    Raises:
        ValueError: an unknown setting, with the name that it is like, and whatever the job refuses.
        TimeIsUpError: max_hours are over; the same call resumes.
    """
    return run("pretrain", recipe, data, settings)


def finetune(recipe: str, data: Data = None, **settings: Any) -> Run:
    """Fine-tune the encoder on the labelled clips, as jobs/finetune.py does; arguments as of `pretrain`."""
    return run("finetune", recipe, data, settings)


def evaluate(recipe: str, data: Data = None, **settings: Any) -> Run:
    """Evaluate all classifiers and baselines, as jobs/evaluate.py does; arguments as of `pretrain`."""
    return run("evaluate", recipe, data, settings)


def run_pipeline(recipe: str, data: Data = None, **settings: Any) -> Run:
    """Run the whole pipeline up to the registered model, as jobs/pipeline.py does; arguments as of `pretrain`."""
    return run("register", recipe, data, settings)


def run(target: Target, recipe: str, data: Data, settings: dict[str, Any]) -> Run:
    """Run everything that a stage needs; finished stages are reused."""
    config = settings_of(recipe, data, settings)
    refuse_others(config)
    stay_local(config.compute.address)
    return run_of(run_job(target, config), open_storage(config.storage), target)


def refuse_others(config: Config) -> None:
    """ValueError for settings with which a job does something else than one run."""
    given = {
        "seeds": config.seeds != 1,
        "folds": config.folds,
        "dry_run": config.dry_run,
        "json": config.json is not None,
        "data.check": config.data.check,
        "evaluate.compare": bool(config.evaluate.compare),
    }
    if others := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{others[0]} is an option of the command lines of jobs/; a call from Python is one run")
