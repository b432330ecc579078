"""Parse a job's command line: a recipe, then any field of the configuration by its path."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from raymae.cli.mistakes import (
    as_typed,
    by_name,
    check_recipe,
    check_words,
    new_name,
    qualified,
    read,
    refuse,
)
from raymae.cli.options import options_of
from raymae.config import (
    DECODERS,
    MODEL_SIZES,
    Config,
    ModelConfig,
    ModelSize,
    changed,
    leaves,
    nearest,
    redact,
    typed,
    with_decoder,
    with_size,
)
from raymae.config.paths import hints_of
from raymae.config.recipes import RECIPES

DEFAULT_RECIPE = "synthetic"


@dataclass(frozen=True, kw_only=True)
class SizedModel(ModelConfig):
    """The masked autoencoder, with an encoder that can be given by its size."""

    size: ModelSize | None = None
    """Use the encoder of a ViT of this size (embed_dim/depth/num_heads): tiny 192/12/3, small 384/12/6, base
    768/12/12, large 1024/24/16, huge 1280/32/16; options for single fields take precedence. None: the recipe's
    encoder."""


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The fields that the command line can change: all but the name of the recipe."""

    model: SizedModel = SizedModel()
    """The masked autoencoder."""
    settings: str | None = None
    """JSON file of settings that replace the recipe's, by path ("model.mask_ratio") or by section: a sweep's best.json,
    or the config.json of a run; its recipe is the default. Options take precedence over it."""


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line; exits with a message where the command line is wrong."""
    named, words = divided(arguments)
    name, recipe = base(named, words)
    default = settings_of(recipe, words)
    known = by_name(options_of(default))
    check_words(words, known)
    values = parsed(default, {known[one.name].path for one in read(words)}, words)
    return built(Config, default, values, recipe=name)


def divided(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe that a command line names, if any, and the words behind it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return None, arguments


def base(named: str | None, words: list[str]) -> tuple[str, Config]:
    """The name of the recipe, and what the options start from: the recipe with the file of `--settings`."""
    try:
        given = read_settings(words)
        name = named or str(given.get("recipe") or DEFAULT_RECIPE)
        if name not in RECIPES:
            refuse(f"unknown recipe {name!r}{nearest(name, RECIPES)}; valid: {', '.join(RECIPES)}")
        if not (named or given.get("recipe")):
            check_recipe(words)
        return name, with_settings(RECIPES[name](), name, given)
    except (ValueError, OSError) as error:
        refuse(str(error))


def parsed(default: Any, paths: set[str], words: list[str]) -> Any:
    """What tyro makes of the words, which name the settings at some paths; exits with its message in one line.

    The sections hold these settings alone, and their values aren't checked.
    """
    if not paths:
        return None
    import tyro

    sections, said = unchecked(default, paths), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(sections), default=sections, prog="", args=words, add_help=False)
    except SystemExit:
        text = " ".join(re.sub(r"[╭╮╰╯│─•]", " ", said.getvalue()).split())
        refuse(re.sub(r"^\w+ \w+ (Error parsing )?|Argument helptext:.*| For full helptext.*", "", text))


def unchecked(section: Any, paths: set[str], path: str = "") -> Any:
    """The fields of a section at some paths, and those below it, as plain dataclasses, which check nothing."""
    kind: type = type(section)
    hints, members = hints_of(kind), []
    for item in fields(section):
        value, here = getattr(section, item.name), f"{path}{item.name}"
        if here in paths:
            members.append((item.name, hints[item.name], field(default=value)))
        elif any(one.startswith(f"{here}.") for one in paths):
            value = unchecked(value, paths, f"{here}.")
            members.append((item.name, type(value), field(default=value)))
    return make_dataclass(kind.__name__, members, frozen=True, kw_only=True)()


def built(section: type, default: Any, values: Any, path: str = "", **others: Any) -> Any:
    """A section with some unchecked values in place of its defaults; exits with the message of the check that fails."""
    found, hints = dict(others), hints_of(section)
    for item in (one for one in fields(section) if one.name not in others):
        before = getattr(default, item.name)
        value = getattr(values, item.name, None if is_dataclass(before) else before)
        inner = is_dataclass(before)
        found[item.name] = built(hints[item.name], before, value, f"{path}{item.name}.") if inner else value
    try:
        return section(**found)
    except ValueError as error:
        refuse(as_typed(qualified(str(error), section, path.rstrip("."))))


def read_settings(words: list[str]) -> dict[str, Any]:
    """The content of the file of `--settings`, empty without one; ValueError or OSError where it can't be read."""
    name = next((one.values[0] for one in read(words) if one.name == "settings" and one.values), None)
    if name is None:
        return {}
    from raymae.storage.folder import Folder  # takes longer to import than all else here

    folder, _, file = (name if "://" in name else str(Path(name).expanduser().resolve())).rpartition("/")
    try:
        found = Folder(folder).read_json(file)
    except (OSError, ImportError) as error:
        raise ValueError(f"--settings {redact(name)} can't be read: {redact(str(error))}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--settings {redact(name)}: should hold an object, settings by their paths")
    return found


def with_settings(recipe: Config, name: str, given: dict[str, Any]) -> Config:
    """A recipe with the settings of a file; ValueError names a setting that is unknown, of a wrong type or recipe."""
    found = leaves(given)
    other = found.pop("recipe", name)
    if other != name:
        raise ValueError(f"--settings are for recipe {other!r}, not for {name!r}: name that recipe, or none")
    for path in found:
        if renamed := new_name(path.replace("_", "-"), list(by_name(options_of(recipe)))):
            raise ValueError(f"--settings: {path} is now called {renamed.replace('-', '_')}")
    return changed(recipe, {path: typed(Config, path, value) for path, value in found.items()})


def named_model(model: ModelConfig, words: list[str]) -> ModelConfig:
    """A recipe's model with the size, decoder and kind that `words` name, before options for single fields.

    With latent targets, which are always normalised, a recipe's norm_target is switched off. An invalid name is left to
    `check_words`, which lists the valid ones.
    """
    given: dict[str, Any] = {one.name: one.values[0] for one in read(words) if one.values}
    size, decoder, name = (given.get(f"model.{which}") for which in ("size", "decoder", "name"))
    if size in MODEL_SIZES:
        model = with_size(model, size)
    if decoder in DECODERS and decoder != model.decoder:
        model = with_decoder(model, decoder)
    if name == "latent" and model.name != "latent":
        model = replace(model, name="latent", norm_target=False)
    return model


def settings_of(config: Config, words: list[str]) -> Settings:
    """A configuration with the fields that only the command line has, and with the model that `words` name."""
    return Settings(**shallow(config) | {"model": SizedModel(**shallow(named_model(config.model, words)))})


def shallow(section: Config | ModelConfig) -> dict[str, Any]:
    """The fields of a section by name; the sections of a whole configuration."""
    return {item.name: getattr(section, item.name) for item in fields(section)}
