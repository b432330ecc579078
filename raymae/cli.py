"""The command line of every job: a recipe, then any field of the configuration by its path."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from typing import Any, Literal

import tyro

from raymae.artifacts import open_storage
from raymae.config import Config
from raymae.plan import Target
from raymae.recipes import RECIPES


def parse(arguments: list[str], doc: str) -> Config:
    """The configuration that a command line asks for; exits with a message where it is wrong."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["synthetic", *arguments]
    choices = {
        name: ((recipe.__doc__ or "").strip(), replace(recipe(), recipe=name)) for name, recipe in RECIPES.items()
    }
    config: Config = tyro.extras.overridable_config_cli(
        choices, prog=os.path.basename(sys.argv[0]), description=doc, args=arguments
    )
    return config


def main(job: Target | Literal["predict"], doc: str) -> None:
    """Run a job from the command line; 0 means that everything asked for is there."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("raymae").setLevel(logging.INFO)
    config = parse(sys.argv[1:], doc)
    try:
        result = run(job, config)
        if config.json:
            with open(config.json, "w") as file:
                json.dump(result, file, indent=1)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last commit")


def run(job: Target | Literal["predict"], config: Config) -> dict[str, Any]:
    """Run a job and return what `--json` writes."""
    if job == "predict":
        from raymae.label import label_files

        return label_files(config)
    from raymae.pipeline import run_plan

    return run_plan(config, job, open_storage(config.storage))
