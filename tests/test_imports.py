"""Imports point one way, and what decides *what* is computed lies below Ray."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "raymae"

FLOORS = [
    {
        "config",
        "headers",
        "spectrum",
        "parallel",
        "deadline",
        "departure",
        "loopback",
        "resampling",
        "retry",
        "waiting",
    },
    {"audio", "optim", "metrics", "order", "artifacts", "targets", "ablation", "consistency", "rounds"},
    {"sources", "shards", "selection", "pace", "watchdog", "profiling", "split_file", "units", "intervals", "compare"},
    {"splits", "clip_reader"},
    {"store", "datasets", "recipes", "augment", "responses", "models"},
    {
        "submission",
        "inputs",
        "outputs",
        "streaming",
        "windows",
        "manifest",
        "spec",
        "rivals",
        "probe",
        "figures",
        "twins",
        "acceptance",
    },
    {"calibration", "truth"},
    {"pseudo_label", "keys", "inventory"},
    {"session", "checkpoint", "plan", "report", "pictures", "claims", "seen", "outbox"},
    {"provenance", "task", "audit", "delivery"},
    {"loop", "predict", "embed"},
    {"stages", "outlook", "follow", "pyfunc", "invariance", "views", "labels"},
    {"tracking", "teacher", "evaluate"},
    {"weights", "in_process"},
    {"blame"},
    {"features", "gauges", "inference", "meeting", "workforce"},
    {"feed"},
    {"launch", "parts"},
    {"label", "export", "console", "audit_report", "journal"},
    {"pipeline"},
    {"encode", "seeds", "promote", "serve"},
    {"sweep"},
    {"benchmark"},
    {"rehearsal"},
    {"dry_run"},
    {"cli"},
    {"inventory_job"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ABOVE_RAY = FLOOR["blame"]


@cache
def modules() -> dict[str, set[str]]:
    """Every room of the package and the names that its files import, at the top or inside a function."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.setdefault(room, set()).add(node.module)
                if node.module == "raymae":
                    found[room] |= {f"raymae.{item.name}" for item in node.names}
            elif isinstance(node, ast.Import):
                found.setdefault(room, set()).update(item.name for item in node.names)
    return found


def test_every_room_has_its_floor() -> None:
    assert set(modules()) - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_point_down(room: str) -> None:
    for name in modules()[room]:
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top == "raymae" and other and other != room:
            assert FLOOR[other] < FLOOR[room], f"{room} imports {name}, which lies beside or above it"


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_ray_stays_above_what_is_computed(room: str) -> None:
    tops = {name.split(".")[0] for name in modules()[room]}
    if FLOOR[room] < ABOVE_RAY:
        assert not tops & {"ray", "tyro"}
    if room not in ("tracking", "pyfunc"):
        assert "mlflow" not in tops


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("raymae.audio, raymae.store, raymae.windows, raymae.spec, raymae.plan", "torch ray mlflow tyro matplotlib"),
        (
            "raymae.loop, raymae.stages, raymae.session, raymae.predict",
            "ray mlflow tyro matplotlib sklearn scipy.signal",
        ),
        ("raymae.pipeline", "torch ray mlflow matplotlib sklearn"),
        ("raymae.features", "torch mlflow"),
        ("raymae.label", "torch mlflow tyro"),
    ],
)
def test_workers_load_no_more_than_they_need(imported: str, absent: str) -> None:
    code = f"import {imported}, sys; print([name for name in {absent.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
