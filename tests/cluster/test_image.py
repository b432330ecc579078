"""The image's recipe and its constraints: what is copied exists, and all versions agree with what is asked for."""

import re
import tomllib
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

RECIPE = (ROOT / ".container/Dockerfile").read_text()
STEPS = [line.split(maxsplit=1) for line in RECIPE.replace("\\\n", " ").splitlines() if line and line[0] != "#"]
"""Each instruction and its arguments."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / ".container/constraints.txt").read_text().splitlines() if line[0] != "#"
)


def arguments(instruction: str) -> list[str]:
    """The arguments of all instructions of a kind."""
    return [rest for name, rest in STEPS if name == instruction]


def extras() -> list[str]:
    """The extras that the image has."""
    (found,) = re.findall(r'"\.\[([\w,]+)\]"', RECIPE)
    return str(found).split(",")


def requirements() -> list[Requirement]:
    """What the project asks for, with these extras."""
    optional = PROJECT["optional-dependencies"]
    return [
        Requirement(text) for text in PROJECT["dependencies"] + [one for name in extras() for one in optional[name]]
    ]


def test_every_dependency_has_a_pin_within_its_range() -> None:
    for needed in requirements():
        assert needed.specifier.contains(PINS[canonicalize_name(needed.name)]), needed


def test_a_pin_is_a_name_and_a_version_alone() -> None:
    for name, version in PINS.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"\d[\w.]*", version), f"{name}: a version of one index, or of one machine"


def test_the_base_has_the_version_of_ray_that_is_pinned() -> None:
    ((version, python),) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py3(\d+)$", RECIPE, re.MULTILINE)
    assert version == PINS["ray"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{python}")
    assert re.findall(r'ray\[default\]==([\d.]+)"', (ROOT / "cluster.yaml").read_text()) == [version]
    assert re.findall(r'rayVersion: "([\d.]+)"', (ROOT / "raymae/cluster/README.md").read_text()) == [version]


def test_what_is_copied_exists_and_is_enough_to_install() -> None:
    copied = [name for words in arguments("COPY") for name in words.split()[:-1] if not name.startswith("--")]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", PROJECT["readme"], "raymae", "jobs"} <= set(copied)
    for command in arguments("RUN"):
        if "pip install" in command:
            (pins,) = re.findall(r"-[cr] (\.container\S+)", command)
            assert pins in copied


def test_nothing_runs_as_root() -> None:
    assert not arguments("USER")
