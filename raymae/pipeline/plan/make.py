"""Make the plan of a job: find its clips and given weights, and check them."""

from __future__ import annotations

from raymae.config import Config
from raymae.config.stages import Target, requires
from raymae.datasets.clips import load_nominal, own_folder
from raymae.datasets.published.nominal import absent
from raymae.datasets.recordings import load_clips
from raymae.pipeline.plan.init_weights import bring, find
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.plan.workers import check_workers
from raymae.storage.folder import Folder


def make_plan(config: Config, target: Target, storage: Folder) -> Plan:
    """The plan of a job, with its clips and given weights checked."""
    labels = config.finetune.labels if requires(target, "finetune") else None
    missing = absent(config.data) if config.dry_run else []
    if missing:
        print(f"missing here: {', '.join(missing)}; the dry run generates clips of the same names and counts")
    scored = requires(target, "evaluate")
    if missing:
        clips = load_nominal(config.data, own_folder(storage), labels, scored=scored)
    else:
        clips = load_clips(config, storage, labels, scored=scored)
    plan = Plan(config, clips, storage, target, find(config, storage, target))
    if not config.dry_run:
        check_workers(plan)
    if plan.to_do:
        for section, given in plan.given.items():
            bring(given, section, config, write=not config.dry_run)
    return plan
