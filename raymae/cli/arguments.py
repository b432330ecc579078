"""Parse a job's command line: a recipe, then any field of the configuration by its path."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import tyro

from raymae.config import (
    DECODERS,
    MODEL_SIZES,
    Config,
    ModelConfig,
    ModelSize,
    changed,
    field_type,
    leaves,
    nearest,
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
            refuse(f"unknown recipe {name!r}{nearest(name, RECIPES)}; valid: {', '.join(RECIPES)}")
        if not (named or given.get("recipe")):
            check_recipe(options)
        recipe = with_settings(RECIPES[name](), name, given)
    except (ValueError, OSError) as error:
        refuse(str(error))
    default = Settings(**shallow(recipe) | {"model": SizedModel(**shallow(named_model(recipe.model, options)))})
    check_names(options, list(option_names(default)))
    check_finite(options)
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
            valid = [f"--{one}" for one in siblings(name, known)]
            refuse(f"unknown setting --{name}{meant(name, known)}; valid here: {', '.join(valid)}")


def meant(name: str, known: list[str]) -> str:
    """The hint at the option that a misspelt name is like: with other separators, of the same section, or of any."""
    flat = [one for one in known if one.replace(".", "-") == name.replace(".", "-")]
    section, _, last = name.rpartition(".")
    names = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == section]
    beside = [f"{section}.{one}" if section else one for one in difflib.get_close_matches(last, names, n=1)]
    found = flat or beside or difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f" (did you mean --{found[0]}?)" if found else ""


def check_recipe(options: list[str]) -> None:
    """Exit with a message where tables are given without a recipe, which would be that of the synthetic data set."""
    given = {option.removeprefix("--").split("=")[0].replace("_", "-") for option in options}
    if "data.tables" in given and "data.dataset" not in given:
        fitting = [name for name, recipe in RECIPES.items() if recipe().data.dataset == "table"]
        refuse(
            "--data.tables needs a recipe, which is missing: name one for your own recordings as the first argument, "
            f"{' or '.join(fitting)} (without one, the {DEFAULT_RECIPE} recipe trains on generated sounds)"
        )


def check_finite(options: list[str]) -> None:
    """Exit with a message where a number is NaN or infinite: sections would only say that it is out of range."""
    name = ""
    for word in options:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            name = option.removeprefix("--").replace("-", "_")
        text = value if equals and word.startswith("--") else word
        if text.lower().lstrip("+-") in ("nan", "inf", "infinity") and is_number(name):
            refuse(f"{name} = {text} must be a finite number")


def is_number(path: str) -> bool:
    """Whether the setting at a path holds a number, or several."""
    try:
        return holds_numbers(field_type(Config, path))
    except ValueError:  # an option of the command line alone
        return False


def holds_numbers(hint: Any) -> bool:
    """Whether a declared type allows numbers, alone or several."""
    return hint in (int, float) or any(holds_numbers(one) for one in get_args(hint))


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
