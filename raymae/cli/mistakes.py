"""Mistakes on a command line: each is named as it was typed, with what would be right, before anything runs."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType
from typing import Any, NoReturn, get_args

from raymae.cli.options import Option, options_of, sections_of, typed_name
from raymae.config import Config, nearest
from raymae.config.recipes import RECIPES

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


ELSEWHERE = {
    "compute.device": "compute.use-gpu",
    "compute.gpu": "compute.use-gpu",
    "compute.gpus": "compute.num-workers",
    "device": "compute.use-gpu",
    "gpu": "compute.use-gpu",
    "batch-size": "pretrain.global-batch-size",
    "output": "predict.output",
    "input": "predict.inputs",
    "table": "data.tables",
}
"""Names that other tools have for an option, and its name here."""


def refuse(message: str) -> NoReturn:
    """Print an error and exit with status 2, the status of a wrong command line."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@dataclass(frozen=True, kw_only=True)
class Given:
    """An option of a command line, with its values."""

    word: str
    """As it was typed, without its value."""
    name: str
    """Without its dashes, "model.mask-ratio"."""
    values: tuple[str, ...]


def read(words: list[str]) -> Iterator[Given]:
    """The options among some words; what precedes the first one has the name ""."""
    word, values = "", list[str]()
    for one in words:
        if one.startswith("--"):
            yield from [Given(word=word, name=name_of(word), values=tuple(values))] if word or values else []
            word, equals, value = one.partition("=")
            values = [value] if equals else []
        else:
            values.append(one)
    yield from [Given(word=word, name=name_of(word), values=tuple(values))] if word or values else []


def name_of(word: str) -> str:
    """A typed option without dashes at its front and with those of the names of options."""
    return word.removeprefix("--").split("=")[0].replace("_", "-")


def by_name(options: Iterable[Option]) -> dict[str, Option]:
    """Options by their names without the first dashes; a switch has two."""
    found = {}
    for option in options:
        found[name_of(option.name)] = option
        if option.is_switch:
            found[name_of(option.off)] = option
    return found


def check_words(words: list[str], known: Mapping[str, Option]) -> None:
    """Exit with a message where an option is unknown, has too many values, or one that isn't among its choices."""
    for given in read(words):
        if not given.name:
            refuse(unexpected(given.values[0], known))
        if given.name not in known:
            refuse(unknown(given.name, list(known)))
        option = known[given.name]
        for value in given.values:
            if re.match(r"-[a-zA-Z_]{2,}", value) and not is_infinite(value):
                refuse(f"{value} begins with one dash, options with two{meant(name_of(f'-{value}'), list(known))}")
        check_number_of_values(given, option)
        for value in given.values if option.choices else ():
            if value not in option.choices:
                valid = ", ".join(option.choices)
                refuse(f"{option.name} {value}: no such choice{nearest(value, option.choices)}; valid: {valid}")
        if holds_numbers(option.hint):
            check_numbers(option, given.values)


def unexpected(word: str, known: Mapping[str, Option]) -> str:
    """The message for a word that no option precedes."""
    if word in RECIPES:
        return f"recipe {word} has to be the first argument, before all options"
    option = f"--{name_of(word.lstrip('-'))}"
    if name_of(option) in known:
        return f"unexpected {word!r}: did you mean {option}?"
    return f"unexpected {word!r}: after the recipe come options, which begin with --, each followed by its value"


def check_number_of_values(given: Given, option: Option) -> None:
    """Exit with a message where an option has more values than it takes, or none."""
    most = option.most_values
    if option.is_switch and given.values:
        words = f"{option.name} is a switch and takes no value"
        if given.values[0].lower() in ("true", "false", "1", "0", "yes", "no"):
            words += f": write {option.name}, or {option.off} to turn it off"
        refuse(f"{words}; {given.values[0]!r} is left over")
    if most is not None and len(given.values) > most and not option.is_switch:
        if given.values[most] in RECIPES:
            refuse(f"recipe {given.values[most]} has to be the first argument, before all options")
        takes = "one value" if most == 1 else f"{most} values"
        refuse(f"{option.name} takes {takes}; {' '.join(given.values[most:])!r} is left over")
    if most is not None and not option.is_switch and not given.values:
        refuse(f"{option.name} needs a value: {option.name} {option.metavar}. {option.doc}")


def check_numbers(option: Option, values: tuple[str, ...]) -> None:
    """Exit with a message where a number can't be read, or is NaN or infinite, which sections would call too large."""
    for value in values:
        if is_infinite(value):
            refuse(f"{option.name} {value} must be a finite number")
        try:
            found = float(value)
        except ValueError:
            if value == "None" and NoneType in get_args(option.hint):
                continue
            refuse(f"{option.name} {value}: should be a number, {option.metavar}. {option.doc}")
        if "FLOAT" not in option.metavar and not re.fullmatch(r"[+-]?[\d_]+", value):
            whole = f": {option.name} {found:.0f}" if found.is_integer() else ""
            refuse(f"{option.name} {value}: should be a whole number{whole}. {option.doc}")


def is_infinite(value: str) -> bool:
    """Whether a word is read as NaN or infinity."""
    return value.lower().lstrip("+-") in ("nan", "inf", "infinity")


def holds_numbers(hint: Any) -> bool:
    """Whether a declared type allows numbers, alone or several."""
    return hint in (int, float) or any(holds_numbers(one) for one in get_args(hint))


def check_recipe(words: list[str]) -> None:
    """Exit with a message where tables are given without a recipe, which would be that of the synthetic data set."""
    given = {one.name: one.values for one in read(words)}
    if "data.tables" in given and "data.dataset" not in given:
        fitting = [name for name, recipe in RECIPES.items() if recipe().data.dataset == "table"]
        refuse(
            "--data.tables needs a recipe, which is missing: name one for your own recordings as the first argument, "
            f"{' or '.join(fitting)}, as in: {fitting[0]} --data.tables {' '.join(given['data.tables'])}"
        )


# Names --------------------------------------------------------------------------------------------------------------


def unknown(name: str, known: list[str]) -> str:
    """The message for an unknown option: its new name if it was renamed, else the option meant, else the valid ones."""
    if renamed := new_name(name, known):
        return f"--{name} is now called --{renamed}"
    if any(one.startswith(f"{name}.") for one in known):
        return f"--{name} is a section, not a setting; --help {name} lists its settings: --{name}.…"
    if hint := meant(name, known):
        section = name.partition(".")[0] if "." in name else ""
        listed = f"--help {section}" if any(one.startswith(f"{section}.") for one in known) else "--help all"
        return f"unknown setting --{name}{hint}; {listed} lists the settings"
    return f"unknown setting --{name}; valid here: {', '.join(f'--{one}' for one in siblings(name, known))}"


def new_name(name: str, known: list[str]) -> str | None:
    """The new name of a renamed option; None for any other."""
    renamed = RENAMED.get(name, name.replace(".colour-", ".eq-"))
    return renamed if renamed != name and renamed in known else None


def meant(name: str, known: list[str]) -> str:
    """The hint at the option that a misspelt name is like: with other separators, of the same section, or of any."""
    flat = [one for one in known if one.replace(".", "-") == name.replace(".", "-")]
    section, _, last = name.rpartition(".")
    names = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == section]
    beside = [f"{section}.{one}" if section else one for one in difflib.get_close_matches(last, names, n=1)]
    same = [one for one in known if one.rpartition(".")[2] == last]
    other = [ELSEWHERE[name]] if ELSEWHERE.get(name) in known else []
    found = flat or other or beside or difflib.get_close_matches(name, known, n=1, cutoff=0.8) or same
    shown = " or ".join(f"--{one}" for one in found[:3])
    return f" (did you mean {shown}?)" if found else ""


def siblings(name: str, known: list[str]) -> list[str]:
    """The options and sections of the innermost existing section of `name`."""
    section = name.rpartition(".")[0]
    start = f"{section}." if section else ""
    names = [one for one in known if not one.rpartition(".")[2].startswith("no-")]
    parts = [one.removeprefix(start).partition(".") for one in names if one.startswith(start)]
    found = list(dict.fromkeys(f"{start}{first}{'.*' if dot else ''}" for first, dot, _ in parts))
    return found or siblings(section, known)


# Messages of the rest of the package --------------------------------------------------------------------------------


@cache
def paths() -> tuple[frozenset[str], frozenset[str]]:
    """The paths of all settings, and of all sections."""
    config = Config()
    return frozenset(one.path for one in options_of(config)), frozenset(path for path, _ in sections_of(config))


SETTING = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)*)(?![\w=/])(\.\*| = (?:\([^()]*\))?)?")
"""What may be the path of a setting, with the value or the star behind it; FIELD=VALUES of a sweep is none."""


def as_typed(message: str) -> str:
    """A message with every setting, "model.mask_ratio = 1", as it is typed, "--model.mask-ratio 1"."""
    if re.match(r"sweep\.space (?!=)", message):  # what it varies is typed as FIELD=VALUES
        return f"--{message}"
    settings, sections = paths()

    def option(found: re.Match[str]) -> str:
        path, behind = found[1], found[2] or ""
        has_value = behind.startswith(" = ")
        if path in settings and ("." in path or has_value):
            return typed_name(path) + (f" {' '.join(re.findall(r'[^(),= ]+', behind))}" if has_value else behind)
        return f"{typed_name(path)}.*" if path in sections and behind == ".*" else found[0]

    return SETTING.sub(option, message)


def qualified(message: str, section: type, path: str) -> str:
    """A section's message with the whole paths of its fields: it doesn't know where in the configuration it is."""
    if not path:
        return message
    message = re.sub(rf"(?<![\w.])(?:augment|{path.rpartition('.')[2]})\.(?=[a-z_])", f"{path}.", message)
    for item in fields(section):
        behind = r"(?![\w./=])" if "_" in item.name else "(?= = )"  # without one it may be a plain word
        message = re.sub(rf"(?<![\w./-]){item.name}{behind}", f"{path}.{item.name}", message)
    return message
