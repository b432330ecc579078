"""The settings of a run as options of the command line: name, type, default and documentation of each."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from raymae.config.paths import choices_of, hints_of

TYPE_NAMES: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting as it is typed."""

    path: str
    """Its path in the configuration, "model.mask_ratio"."""
    hint: Any
    """Its declared type."""
    default: Any
    doc: str

    @property
    def name(self) -> str:
        """The option, "--model.mask-ratio"."""
        return typed_name(self.path)

    @property
    def section(self) -> str:
        """The path of its section; "" at the top."""
        return self.path.rpartition(".")[0]

    @property
    def off(self) -> str:
        """The option that turns a switch off, "--data.no-check"."""
        section, dot, name = self.path.rpartition(".")
        return typed_name(f"{section}{dot}no_{name}")

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return self.hint is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that a value has to be one of; empty where any is accepted."""
        found: list[str] = []
        for kind in choices_of(self.hint):
            one = get_args(kind)[0] if get_origin(kind) is tuple else kind
            if get_origin(one) is Literal:
                found += map(str, get_args(one))
            elif one is not NoneType:
                return ()
        return (*found, "None") if found and NoneType in choices_of(self.hint) else tuple(found)

    @property
    def most_values(self) -> int | None:
        """Most values that it takes; None: any number."""
        if self.is_switch:
            return 0
        lengths = [len(get_args(one)) for one in choices_of(self.hint) if get_origin(one) is tuple]
        several = any(Ellipsis in get_args(one) for one in choices_of(self.hint))
        return None if several else max(lengths, default=1)

    @property
    def metavar(self) -> str:
        """What stands for its values in the help: FLOAT, {mae,latent}, TEXT …; empty for a switch."""
        if self.is_switch:
            return ""
        if self.choices:
            words = "{" + ",".join(self.choices) + "}"
            return f"{words} …" if self.most_values is None else words
        kind = next(one for one in choices_of(self.hint) if one is not NoneType)
        inner = [one for one in get_args(kind) if one is not Ellipsis] if get_origin(kind) is tuple else [kind]
        names = [TYPE_NAMES.get(one, "{True,False}") for one in inner]
        return " ".join([*names, *(["…"] if self.most_values is None else [])])

    @property
    def shown_default(self) -> str:
        """The default as it is typed; empty where nothing is set."""
        if self.default is None or self.default == "" or self.default == ():
            return ""
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return " ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)


def typed_name(path: str) -> str:
    """The option of a path."""
    return f"--{path.replace('_', '-')}"


def options_of(section: Any, path: str = "") -> Iterator[Option]:
    """The options of a section and those below it, all but the name of the recipe."""
    kind: type = type(section)
    hints, docs = hints_of(kind), docs_of(kind)
    for item in fields(section):
        value, here = getattr(section, item.name), f"{path}{item.name}"
        if is_dataclass(value):
            yield from options_of(value, f"{here}.")
        elif here != "recipe":
            yield Option(path=here, hint=hints[item.name], default=value, doc=docs.get(item.name, ""))


def sections_of(section: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and documentation of every section below one."""
    docs = docs_of(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield f"{path}{item.name}", docs.get(item.name, "")
            yield from sections_of(value, f"{path}{item.name}.")


def docs_of(section: type) -> dict[str, str]:
    """The docstring below each field of a section, in one line, also of inherited fields."""
    found: dict[str, str] = {}
    for one in reversed(section.__mro__):
        if is_dataclass(one):
            found |= docs_in(one.__module__).get(one.__name__, {})
    return found


@cache
def docs_in(module: str) -> dict[str, dict[str, str]]:
    """By class and field the docstrings of a module."""
    found: dict[str, dict[str, str]] = {}
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text())
    for node in (one for one in tree.body if isinstance(one, ast.ClassDef)):
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                text = doc.value.value if isinstance(doc.value, ast.Constant) else ""
                found.setdefault(node.name, {})[field.target.id] = " ".join(str(text).split())
    return found
