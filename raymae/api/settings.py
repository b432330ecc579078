"""Settings given in Python: a recipe and sections of it, under the names of the jobs' options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from raymae.cli.arguments import Settings, named_model, with_settings
from raymae.config import Config, TrackingConfig, leaves, nearest, to_dict, typed
from raymae.config.recipes import RECIPES

Path = str | os.PathLike[str]
Data = Path | Iterable[Path] | Mapping[str, Any] | None
"""The clips of a run: paths or URLs of tables or folders (`data.tables`), or settings of the section data."""
BY_NAME = ("model.size", "model.decoder", "model.name")
"""Settings that bring others with them (`raymae.cli.arguments.named_model`)."""


def settings_of(recipe: str, data: Data, given: Mapping[str, Any]) -> Config:
    """The settings of a recipe with others in their place.

    `--pretrain.epochs 4` is `pretrain={"epochs": 4}`, `--model.size base` is `model={"size": "base"}`, and
    `--data.split.kind city` is `data={"split": {"kind": "city"}}`.

    Raises:
        ValueError: an unknown recipe or setting, with the name that it is like; or a value that it can't have.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}{nearest(recipe, RECIPES)}; valid: {', '.join(RECIPES)}")
    start = RECIPES[recipe]()
    values = leaves({**plain(given), **({} if data is None else {"data": section_of(data)})})
    for path in values:
        check_name(path)
    named = [f"--{path}={typed(Settings, path, values[path])}" for path in BY_NAME if values.get(path) is not None]
    values.pop("model.size", None)
    config: Config = with_settings(replace(start, model=named_model(start.model, named)), recipe, values)
    return replace(config, recipe=recipe)


def check_name(path: str) -> None:
    """ValueError for the name of an unknown section, which may be the name of a setting within one."""
    section = path.partition(".")[0]
    known = [item.name for item in fields(Config) if item.name != "recipe"]
    if section in known:
        return
    inside = [name for name in leaves(to_dict(Config())) if name.rpartition(".")[2] == section and "." in name]
    hint = f" (did you mean {spelt(inside[0])}?)" if inside else nearest(section, known)
    raise ValueError(f"unknown setting {section}{hint}; valid here: {', '.join(known)}")


def spelt(path: str) -> str:
    """A setting's path as it is given in Python: pretrain={"epochs": …}."""
    first, *others = path.split(".")
    inner = "…"
    for name in reversed(others):
        inner = f'{{"{name}": {inner}}}'
    return f"{first}={inner}"


def section_of(data: Data) -> dict[str, Any]:
    """The section data of paths, or of settings as they are."""
    if isinstance(data, Mapping):
        return dict(plain(data))
    paths = [data] if isinstance(data, str | os.PathLike) else list(data or ())
    return {"dataset": "table", "tables": [os.fspath(path) for path in paths]}


def plain(value: Any) -> Any:
    """Sections as dicts and paths as text, at any depth."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(to_dict(value, secret=True))
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def places(storage: Path, tracking_uri: str | None) -> Config:
    """Settings that say where models are looked up."""
    return Config(storage=os.fspath(storage), tracking=TrackingConfig(uri=tracking_uri))
