"""The layers of the package: what may import what, and how large a folder and a file may grow."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raymae"

LAYERS = [
    "config",
    "storage models",
    "audio",
    "datasets",
    "features evaluation",
    "inference pseudo_labels",
    "training tracking",
    "cluster",
    "pipeline",
    "serving sweep cli",
    "benchmark",
    "jobs",
]
"""A package may import those of earlier lines only; packages of one line don't import each other."""
PENDING = {"models", "datasets", "tracking", "sweep", "benchmark"}
"""Folders that are not in their final form yet."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}


def files() -> list[Path]:
    """The Python files of the package and of the jobs."""
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


def module_of(path: Path) -> str:
    """The dotted name of a file: raymae.audio.decode.logmel, jobs.pretrain."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports() -> dict[str, set[str]]:
    """By module the modules that it imports, at the top or inside a function."""
    modules, found = {module_of(path) for path in files()}, {}
    for path in files():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for item in node.names:
                    full = f"{node.module}.{item.name}"
                    names.add(full if full in modules else node.module)
            elif isinstance(node, ast.Import):
                names.update(item.name for item in node.names)
        found[module_of(path)] = names
    return found


def package_of(module: str) -> str:
    """The name in `LAYERS` that a module belongs to; "" for `raymae` itself."""
    top, _, rest = module.partition(".")
    return "jobs" if top == "jobs" else rest.partition(".")[0]


@pytest.mark.parametrize("package", sorted(LAYER))
def test_a_package_imports_earlier_layers_only(package: str) -> None:
    """What still lies at the package's root, on its way to a folder of its own, has no layer yet."""
    moved = {path.name for path in PACKAGE.iterdir() if path.is_dir()} & set(LAYER) - PENDING
    for module, names in imports().items():
        for name in names if package_of(module) == package and package in moved else ():
            other = package_of(name) if name.startswith("raymae.") else package
            assert other == package or other not in moved or LAYER[other] < LAYER[package], f"{module} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    known, left = imports(), set(imports())
    while done := {module for module in left if not known[module] & (left - {module})}:
        left -= done
    assert not left, f"these files, or files between them, import each other: {sorted(left)}"
