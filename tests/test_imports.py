"""The layers of the package: what may import what, and how large a folder and a file may grow."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raymae"

LAYERS = [
    "config",
    "storage models console",
    "audio",
    "datasets",
    "features evaluation",
    "inference pseudo_labels",
    "training tracking",
    "cluster",
    "pipeline",
    "serving sweep",
    "benchmark",
    "cli",
    "api",
    "jobs",
]
"""A package may import those of earlier lines only; packages of one line don't import each other."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}

MAY_IMPORT = {
    "ray": {
        "raymae.benchmark",
        "raymae.cluster",
        "raymae.serving.http.job",
        "raymae.sweep.search.graph_search",
        "raymae.sweep.search.stopping",
        "raymae.sweep.trials.in_group",
        "raymae.sweep.trials.recorder",
        "raymae.sweep.trials.run_trials",
        "raymae.sweep.trials.sizes",
    },
    "mlflow": {"raymae.tracking.tracker", "raymae.tracking.registry", "raymae.tracking.pyfunc_model"},
    "tyro": {"raymae.cli"},
}
"""The modules, or whole packages, that may import a framework."""
RAY_PRIVATE = PACKAGE / "cluster" / "ray_private.py"
"""The one module that may use what isn't public in Ray."""
MOST_ENTRIES, MOST_MODULES, MOST_LINES = 21, 14, 350


def files() -> list[Path]:
    """The Python files of the package and of the jobs."""
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


def module_of(path: Path) -> str:
    """The dotted name of a file: raymae.audio.logmel, jobs.pretrain."""
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


def test_every_package_has_a_layer() -> None:
    assert {package_of(module) for module in imports()} - {""} == set(LAYER)


@pytest.mark.parametrize("package", sorted(LAYER))
def test_a_package_imports_earlier_layers_only(package: str) -> None:
    for module, names in imports().items():
        for name in names if package_of(module) == package else ():
            other = package_of(name) if name.startswith("raymae.") else package
            assert other == package or LAYER[other] < LAYER[package], f"{module} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    known, left = imports(), set(imports())
    while done := {module for module in left if not known[module] & (left - {module})}:
        left -= done
    assert not left, f"these files, or files between them, import each other: {sorted(left)}"


@pytest.mark.parametrize("framework", sorted(MAY_IMPORT))
def test_a_framework_is_imported_where_it_belongs(framework: str) -> None:
    importing = {module for module, names in imports().items() if framework in {name.split(".")[0] for name in names}}
    places = MAY_IMPORT[framework]
    assert {
        module for module in importing if not any(f"{module}.".startswith(f"{place}.") for place in places)
    } == set()
    assert all(any(f"{module}.".startswith(f"{place}.") for module in importing) for place in places)


def private_names(source: str) -> set[str]:
    """What a file mentions of Ray that isn't public, comments and strings included."""
    found = set(re.findall(r"\bray\.(?:\w+\.)*_[a-z]\w*(?:\.\w+)*", source))
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    if not any(name.split(".")[0] == "ray" for node in nodes for name in imported(node)):
        return found
    names: list[str | None] = [item.name for node in nodes if isinstance(node, ast.ImportFrom) for item in node.names]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute) and not is_own(node.value)]
    names += [node.arg for node in nodes if isinstance(node, ast.keyword)]
    keys = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)]
    names += [key.value for key in keys if isinstance(key.value, str)]
    return found | {name for name in names if name and re.match("_[A-Za-z]", name)}


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [item.name for item in node.names] if isinstance(node, ast.Import) else []


def is_own(node: ast.expr) -> bool:
    """Whether an attribute of it is the class's own."""
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ray\nray._private.worker.get_dashboard_url()", "_private ray._private.worker.get_dashboard_url"),
        ("from ray.data._internal.plan import Plan", "ray.data._internal.plan"),
        ("from ray.train.torch.config import _TorchBackend", "_TorchBackend"),
        ("import ray\ndef step(executor): executor._consumer_idling()", "_consumer_idling"),
        ("from ray import serve\nserve.delete('a', _blocking=False)", "_blocking"),
        ("import ray.data\noptions = {'_system_config': {}}", "_system_config"),
        ("getLogger('ray.data._internal.progress')", "ray.data._internal.progress"),
        ("import ray\nclass A:\n def b(self): return self._c, ray.nodes.__name__, {'d_e': 1}", ""),
        ("array._replace(a=1)", ""),
    ],
)
def test_private_names_of_ray_are_found(source: str, found: str) -> None:
    assert private_names(source) == set(found.split())


def test_private_names_of_ray_are_in_one_module() -> None:
    assert private_names(RAY_PRIVATE.read_text()), "it can go"
    others = {module_of(path): private_names(path.read_text()) for path in files() if path != RAY_PRIVATE}
    assert {module: names for module, names in others.items() if names} == {}


def test_folders_and_files_keep_their_size() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    for folder in {path.parent for path in files()}:
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert folder.name == "jobs" or len(modules) <= MOST_MODULES, f"{folder} has {len(modules)} modules"
    for path in files():
        assert len(path.read_text().splitlines()) <= MOST_LINES, f"{path} is too long"


LOADED = [
    {
        "raymae": "torch ray mlflow tyro numba numpy matplotlib",
        "raymae.api.features": "torch ray mlflow tyro matplotlib",
        "raymae.audio.logmel, raymae.audio.decode, raymae.features.store, raymae.training.batches.windows, "
        "raymae.training.spec, raymae.pipeline.plan.plan": "torch ray mlflow tyro matplotlib",
        "raymae.pipeline.run": "torch ray mlflow matplotlib sklearn",
        "raymae.cluster.prepare": "torch mlflow",
        "raymae.serving.predict": "torch mlflow tyro",
        "raymae.api.training": "torch mlflow",
    },
    {
        "raymae.training.trainer, raymae.training.run_stage, raymae.training.worker, raymae.inference.predictor": (
            "ray mlflow tyro matplotlib sklearn scipy.signal"
        ),
    },
]
"""By process, the modules that are imported one after the other, and what is absent after each."""


@pytest.mark.parametrize("process", LOADED, ids=["without torch", "with torch"])
def test_workers_load_no_more_than_they_need(process: dict[str, str]) -> None:
    steps = (
        f"import {imported}; print({imported!r}, [name for name in {absent.split()} if name in sys.modules])"
        for imported, absent in process.items()
    )
    code = "\n".join(["import sys", *steps])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{imported} []" for imported in process]
