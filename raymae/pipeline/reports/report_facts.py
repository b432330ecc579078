"""What a report says of its origin: the run, the command, the versions, and the clips by split."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from raymae.config import redact
from raymae.config.stages import STAGES
from raymae.evaluation.report.document import Picture
from raymae.evaluation.wording import model_title
from raymae.pipeline.plan.plan import Plan
from raymae.training.figures import final_curves
from raymae.training.state.provenance import source

PACKAGES = ("raymae", "torch", "timm", "ray", "scikit-learn", "numpy")
"""The packages whose versions are named, beside Python."""
CURVES_SHOWN = "metrics by step; dashed, the step whose weights are kept."
FIGURES = {
    "reconstruction.png": "clips, the part of them that the encoder gets, and what is predicted of the rest.",
}
"""The figures of a stage that a report shows beside its learning curves, and their captions."""
COUNTED = ("group", "device", "city")


def made(plan: Plan) -> dict[str, Any]:
    """Who made an evaluation, when, and of what.

    Keys: run, recipe, job, date (UTC), command, versions, git_commit (where it is known), clips: split → clips,
    labelled, groups, devices, cities (None where they are unknown), hours.
    """
    return {
        "run": plan.run_folder.url.rpartition("/")[2],
        "recipe": plan.config.recipe,
        "job": plan.job,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": command(),
        "versions": versions(),
        **source(),
        "clips": counts(plan),
    }


def training_figures(plan: Plan) -> list[tuple[Picture, bytes]]:
    """The learning curves of the stages that trained, and the reconstructions that their artifacts hold."""
    found = []
    for name, node in plan.nodes.items():
        if not STAGES[node.stage].kind:
            continue
        there = (node.artifact / "figures").names()
        title = model_title(name) if STAGES[node.stage].title else name
        curves = Picture(f"figures/{name}_learning_curves.png", f"{title}: {CURVES_SHOWN}")
        found.append((curves, final_curves(node.artifact, name)))
        for file, caption in FIGURES.items():
            if file in there:
                picture = Picture(f"figures/{name}_{file}", f"{title}: {caption}")
                found.append((picture, node.artifact.read_bytes(f"figures/{file}")))
    return found


def command() -> str:
    """The command line of this process, without credentials."""
    script, *arguments = sys.argv or [""]
    path = Path(script)
    name = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else script
    return redact(shlex.join(["python", name, *arguments]))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that isn't installed
            continue
    return found


def counts(plan: Plan) -> dict[str, dict[str, Any]]:
    """The stored clips by split."""
    clips = plan.store.clips
    found = {}
    for split in sorted(clips["split"].unique().to_pylist()):
        part = clips.filter(pc.equal(clips["split"], split))
        distinct = {name: len(part[name].drop_null().unique()) or None for name in COUNTED}
        seconds = pc.sum(part["seconds"]).as_py() if "seconds" in part.column_names else None
        found[split] = {
            "clips": len(part),
            "labelled": len(part) - part["scene_label"].null_count,
            "groups": distinct["group"],
            "devices": distinct["device"],
            "cities": distinct["city"],
            "hours": seconds and round(seconds / 3600, 2),
        }
    order = {"train": 0, "pool": 1, "val": 2}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], 3), item[0])))
