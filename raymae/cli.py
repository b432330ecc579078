"""The command line of every job: a recipe, then any field of the configuration by its path."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import tyro

from raymae.cluster.connect import stay_local
from raymae.config import (
    DECODERS,
    MODEL_SIZES,
    Config,
    ModelConfig,
    ModelSize,
    SweepConfig,
    changed,
    leaves,
    redact,
    typed,
    with_decoder,
    with_size,
)
from raymae.config.recipes import RECIPES
from raymae.config.stages import Target
from raymae.storage.folder import Folder, open_storage
from raymae.training.guards.deadline import EXIT_STATUS, TimeIsUpError

DEFAULT_RECIPE = "synthetic"

Job = Target | Literal["predict", "embed", "export", "audit", "sweep", "promote", "serve"]


@dataclass(frozen=True, kw_only=True)
class SizedModel(ModelConfig):
    """The masked autoencoder, whose encoder the command line may name by its size."""

    size: ModelSize | None = None
    """Take the encoder of a ViT of this size (embed_dim/depth/num_heads): tiny 192/12/3, small 384/12/6, base
    768/12/12, large 1024/24/16; what is set beside it counts."""


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """What the command line may change: everything but the name of the recipe."""

    recipe: tyro.conf.Suppress[str] = ""
    model: SizedModel = SizedModel()
    """The masked autoencoder."""
    settings: str | None = None
    """JSON file of settings that take the place of the recipe's, by path ("model.mask_ratio") or by section: a sweep's
    best.json, or the config.json of a run; its recipe is the default. Options beside it count over it."""


def parse(arguments: list[str], doc: str) -> Config:
    """The configuration that a command line asks for; exits with a message where it is wrong."""
    named = bool(arguments) and not arguments[0].startswith("-")
    options = arguments[1:] if named else arguments
    try:
        given = read_settings(options)
        name = arguments[0] if named else str(given.get("recipe") or DEFAULT_RECIPE)
        if name not in RECIPES:
            refuse(f"unknown recipe {name!r}; valid: {', '.join(RECIPES)}")
        recipe = with_settings(RECIPES[name](), name, given)
    except (ValueError, OSError) as error:
        refuse(str(error))
    default = Settings(**shallow(recipe) | {"model": SizedModel(**shallow(named_model(recipe.model, options)))})
    check_names(options, list(option_names(default)))
    settings = tyro.cli(
        Settings,
        default=default,
        prog=f"{os.path.basename(sys.argv[0])} {name}" if named else os.path.basename(sys.argv[0]),
        description=description(doc),
        args=options,
    )
    model, sections = shallow(settings.model), shallow(settings)
    del model["size"], sections["settings"]  # what they stand for is in the other fields
    return Config(**sections | {"recipe": name, "model": ModelConfig(**model)})


def read_settings(options: list[str]) -> dict[str, Any]:
    """What the file of `--settings` holds, if it is given; ValueError or OSError where it can't be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings", nargs="?")
    given, _ = parser.parse_known_args(options)
    if given.settings is None:
        return {}
    url = given.settings if "://" in given.settings else str(Path(given.settings).expanduser().resolve())
    folder, _, name = url.rpartition("/")
    try:
        found = Folder(folder).read_json(name)
    except (OSError, ImportError) as error:
        raise ValueError(f"--settings {redact(given.settings)} can't be read: {redact(str(error))}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--settings {redact(given.settings)}: should hold an object, settings by their paths")
    return found


def with_settings(recipe: Config, name: str, given: dict[str, Any]) -> Config:
    """A recipe with the settings of a file; ValueError names what is unknown, of a wrong type or of another recipe."""
    found = leaves(given)
    other = found.pop("recipe", name)
    if other != name:
        raise ValueError(f"--settings are those of recipe {other!r}, not of {name!r}: name that one, or none")
    return changed(recipe, {path: typed(Config, path, value) for path, value in found.items()})


def named_model(model: ModelConfig, options: list[str]) -> ModelConfig:
    """A recipe's model with the sizes that `options` name: where the single fields beside the names start from.

    With latent targets, which are always normalised, a recipe's normalisation of pixels is switched off.

    A name that isn't valid is left to tyro, which says what would be.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model.size", dest="size", nargs="?")
    parser.add_argument("--model.decoder", dest="decoder", nargs="?")
    parser.add_argument("--model.name", dest="name", nargs="?")
    given, _ = parser.parse_known_args(options)
    if given.size in MODEL_SIZES:
        model = with_size(model, given.size)
    if given.decoder in DECODERS and given.decoder != model.decoder:
        model = with_decoder(model, given.decoder)
    if given.name == "latent" and model.name != "latent":
        model = replace(model, name="latent", norm_target=False)
    return model


def description(doc: str) -> str:
    """A job's documentation and the recipes, for `--help`."""
    recipes = [f"{name}: {(recipe.__doc__ or '').strip()}" for name, recipe in RECIPES.items()]
    where = f"The first argument names a recipe (default {DEFAULT_RECIPE}), the others change its settings."
    return "\n\n".join([*filter(None, doc.splitlines()), where, *recipes])


def shallow(section: Config | ModelConfig) -> dict[str, Any]:
    """The fields of a section by name; the sections of a whole configuration."""
    return {item.name: getattr(section, item.name) for item in fields(section)}


def option_names(section: Any, path: str = "") -> Iterator[str]:
    """The option of every field, without its dashes: "model.mask-ratio"; a switch has two."""
    for item in fields(section):
        value, name = getattr(section, item.name), item.name.replace("_", "-")
        if is_dataclass(value):
            yield from option_names(value, f"{path}{name}.")
        elif path or name != "recipe":
            yield f"{path}{name}"
            if isinstance(value, bool):
                yield f"{path}no-{name}"


def check_names(options: list[str], known: list[str]) -> None:
    """Exit with the valid names where an option has none of them."""
    for option in options:
        name = option.removeprefix("--").split("=")[0].replace("_", "-")
        if option.startswith("--") and name not in {*known, "help"}:
            refuse(f"unknown setting --{name}; valid here: {', '.join(f'--{one}' for one in beside(name, known))}")


def beside(name: str, known: list[str]) -> list[str]:
    """The options and sections of the innermost section of `name` that there is."""
    section = name.rpartition(".")[0]
    start = f"{section}." if section else ""
    parts = [one.removeprefix(start).partition(".") for one in known if one.startswith(start)]
    return list(dict.fromkeys(f"{start}{first}{'.*' if dot else ''}" for first, dot, _ in parts)) or beside(
        section, known
    )


def refuse(message: str) -> NoReturn:
    """End the process as tyro does where the command line is wrong."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def check_target(option: str, name: str | None) -> None:
    """ValueError where a file couldn't be written: known at the start rather than when the work is done."""
    if name is None:
        return
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{option} {name} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {name} can't be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {name} can't be written: permission denied")


def main(job: Job, doc: str) -> None:
    """Run a job from the command line; 0 means that everything asked for is there, 75 that it should be run again:
    its time was up, or MLflow was down."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("raymae").setLevel(logging.INFO)
    config = parse(sys.argv[1:], doc)
    stay_local(config.compute.address)
    try:
        check_target("--json", config.json)
        result = run(job, config)
        if config.json:
            with open(config.json, "w") as file:
                json.dump(result, file, indent=1)
        if config.data.check and result["problems"]:
            sys.exit(1)
        if job == "register" and lacks_model(result):
            sys.exit(EXIT_STATUS)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {redact(str(error))}")
    except TimeIsUpError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last commit")
    except Exception:  # a mistake of ours, or of the cluster's: where it happened, without the credentials of URLs
        sys.exit(redact(traceback.format_exc()))


def lacks_model(result: dict[str, Any]) -> bool:
    """Whether a pipeline (or one of several, of seeds) waits for MLflow to register its model."""
    return any("undelivered" in one and "model_uri" not in one for one in result.get("seeds", {"": result}).values())


def run(job: Job, config: Config) -> dict[str, Any]:
    """Run a job and return what `--json` writes."""
    if config.data.check:
        from raymae.datasets.overview import check

        storage = open_storage(config.storage)
        folder = Path(storage.path("datasets")) if storage.is_local else None
        taught = job in ("finetune", "pseudo_label", "consistency", "evaluate", "register", "sweep")
        return check(config.data, folder, config.finetune.labels, taught)
    if job == "predict":
        from raymae.serving.predict import label_files

        return label_files(config)
    if job == "serve":
        from raymae.serving.http.job import serve_classifier

        return serve_classifier(config)
    if job == "embed":
        from raymae.serving.embed import embed_clips

        return embed_clips(config)
    if job == "export":
        from raymae.serving.export import export

        return export(config)
    if config.evaluate.compare:
        if job != "evaluate":
            raise ValueError("evaluate.compare is an option of jobs/evaluate.py, which then compares and does no more")
        from raymae.evaluation.report.compared import compare_evaluations

        return compare_evaluations(config.evaluate.compare)
    if job == "promote":
        from raymae.pipeline.promote import promote

        return promote(config, open_storage(config.storage))
    if job == "audit":
        from raymae.evaluation.leaks.audit import audit_run

        return audit_run(config, open_storage(config.storage))
    if job == "sweep":
        from raymae.sweep.run import run_sweep

        return run_sweep(config, open_storage(config.storage))
    if config.sweep != SweepConfig():
        raise ValueError("sweep.* are options of jobs/sweep.py; this job would leave them unused")
    if config.dry_run:
        from raymae.pipeline.dry_run.dry_run import dry_run

        return dry_run(config, job, open_storage(config.storage))
    from raymae.pipeline.seeds import run_seeds

    return run_seeds(config, job, open_storage(config.storage))
