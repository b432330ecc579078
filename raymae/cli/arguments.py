"""Parse a job's command line: a recipe, then any field of the configuration by its path."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import tyro

from raymae.config import (
    DECODERS,
    MODEL_SIZES,
    Config,
    ModelConfig,
    ModelSize,
    changed,
    leaves,
    redact,
    typed,
    with_decoder,
    with_size,
)
from raymae.config.recipes import RECIPES
from raymae.storage.folder import Folder

DEFAULT_RECIPE = "synthetic"


@dataclass(frozen=True, kw_only=True)
class SizedModel(ModelConfig):
    """The masked autoencoder, with an encoder that can be given by its size."""

    size: ModelSize | None = None
    """Use the encoder of a ViT of this size (embed_dim/depth/num_heads): tiny 192/12/3, small 384/12/6, base
    768/12/12, large 1024/24/16; options for single fields take precedence. None: the recipe's encoder."""


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The fields that the command line can change: all but the name of the recipe."""

    recipe: tyro.conf.Suppress[str] = ""
    model: SizedModel = SizedModel()
    """The masked autoencoder."""
    settings: str | None = None
    """JSON file of settings that replace the recipe's, by path ("model.mask_ratio") or by section: a sweep's best.json,
    or the config.json of a run; its recipe is the default. Options take precedence over it."""


def parse(arguments: list[str], doc: str) -> Config:
    """The configuration of a command line; exits with a message where the command line is wrong."""
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
    del model["size"], sections["settings"]  # already applied to the other fields
    return Config(**sections | {"recipe": name, "model": ModelConfig(**model)})


def read_settings(options: list[str]) -> dict[str, Any]:
    """The content of the file of `--settings`, empty without one; ValueError or OSError where it can't be read."""
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
    """A recipe with the settings of a file; ValueError names a setting that is unknown, of a wrong type or recipe."""
    found = leaves(given)
    other = found.pop("recipe", name)
    if other != name:
        raise ValueError(f"--settings are for recipe {other!r}, not for {name!r}: name that recipe, or none")
    for path in found:
        if renamed := new_name(path.replace("_", "-"), list(option_names(recipe))):
            raise ValueError(f"--settings: {path} is now called {renamed.replace('-', '_')}")
    return changed(recipe, {path: typed(Config, path, value) for path, value in found.items()})


def named_model(model: ModelConfig, options: list[str]) -> ModelConfig:
    """A recipe's model with the size, decoder and kind that `options` name, before options for single fields.

    With latent targets, which are always normalised, a recipe's norm_target is switched off. An invalid name is left to
    tyro, which lists the valid ones.
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
    where = f"The first argument names a recipe (default {DEFAULT_RECIPE}), the options change its settings."
    return "\n\n".join([*filter(None, doc.splitlines()), where, *recipes])


def shallow(section: Config | ModelConfig) -> dict[str, Any]:
    """The fields of a section by name; the sections of a whole configuration."""
    return {item.name: getattr(section, item.name) for item in fields(section)}


def option_names(section: Any, path: str = "") -> Iterator[str]:
    """The option of every field without its dashes, "model.mask-ratio"; a switch has two."""
    for item in fields(section):
        value, name = getattr(section, item.name), item.name.replace("_", "-")
        if is_dataclass(value):
            yield from option_names(value, f"{path}{name}.")
        elif path or name != "recipe":
            yield f"{path}{name}"
            if isinstance(value, bool):
                yield f"{path}no-{name}"


RENAMED = {
    "finetune.centre": "finetune.subtract-band-mean",
    "finetune.no-centre": "finetune.no-subtract-band-mean",
    "finetune.with-plain": "finetune.with-raw",
    "finetune.no-with-plain": "finetune.no-with-raw",
    "finetune.head-start": "finetune.head-init",
    "evaluate.rivals": "evaluate.baselines",
    "audit.listen": "audit.same-recording",
    "compute.leg-windows": "compute.feed-windows",
}
"""Old names of options and their new ones; `augment.colour-*` is `augment.eq-*` in every section."""


def new_name(name: str, known: list[str]) -> str | None:
    """The new name of a renamed option; None for any other."""
    renamed = RENAMED.get(name, name.replace(".colour-", ".eq-"))
    return renamed if renamed != name and renamed in known else None


def check_names(options: list[str], known: list[str]) -> None:
    """Exit with a message where an option is unknown: its new name if it was renamed, else the valid names."""
    for option in options:
        name = option.removeprefix("--").split("=")[0].replace("_", "-")
        if option.startswith("--") and name not in {*known, "help"}:
            if renamed := new_name(name, known):
                refuse(f"--{name} is now called --{renamed}")
            refuse(f"unknown setting --{name}; valid here: {', '.join(f'--{one}' for one in siblings(name, known))}")


def siblings(name: str, known: list[str]) -> list[str]:
    """The options and sections of the innermost existing section of `name`."""
    section = name.rpartition(".")[0]
    start = f"{section}." if section else ""
    parts = [one.removeprefix(start).partition(".") for one in known if one.startswith(start)]
    return list(dict.fromkeys(f"{start}{first}{'.*' if dot else ''}" for first, dot, _ in parts)) or siblings(
        section, known
    )


def refuse(message: str) -> NoReturn:
    """Print an error and exit with status 2, as tyro does for a wrong command line."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
