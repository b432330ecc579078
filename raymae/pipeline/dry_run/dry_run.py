"""`--dry-run`: print the plan, run two steps of its training stages at full size, and estimate the whole run.

Training counts clips: epochs x clips of the stage at the rate of the second step, here; and the FLOPs that they need at
the rate of a GPU (`cost.Rates`: an H200 at 45 % of its bf16 peak in pre-training ViT-B).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import ceil
from typing import Any

from raymae.config import Config
from raymae.config.stages import STAGES, Target
from raymae.datasets.rows import class_names, rows_of
from raymae.features.augment import crop_frames
from raymae.pipeline.console import print_plan
from raymae.pipeline.dry_run.cost import UNIT_SECONDS, VIT_B, Rates, classifier_flops, duration, size, useful_flops
from raymae.pipeline.dry_run.memory import finetune_memory, micro_batch_that_fits, pretrain_memory
from raymae.pipeline.dry_run.trial_steps import CPU_CLIPS, TrialSteps, clips_for_each, memory_mb, micro_batch, run_trial
from raymae.pipeline.plan.make import make_plan
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.repeats import kind_of, runs_of
from raymae.storage.folder import Folder

TRIED: dict[str, str] = {name: stage.kind for name, stage in STAGES.items() if stage.kind and not stage.baseline}
"""By stage, the training task that two steps are run of; none for a baseline's."""
GPU_GB = 80
"""Memory of a GPU of the data centre."""


def dry_run(config: Config, target: Target, storage: Folder) -> dict[str, Any]:
    """Print the plan and its estimate; returns the plan, the trial steps and the costs, for JSON."""
    runs = runs_of(config)
    times = f" for {len(runs)} {kind_of(config)}s at most" if len(runs) > 1 else ""
    plan = make_plan(next(iter(runs.values())), target, storage)
    print_plan(plan)
    stages = [plan.nodes[name].stage for name in plan.to_do]
    kinds = dict.fromkeys(TRIED[stage] for stage in stages if stage in TRIED)
    trials = {}
    for kind in kinds:
        print(f"two trial steps of {kind} …", flush=True)
        trials[kind] = run_trial(config, kind, plan.clips)
    costs = {name: cost for name in plan.to_do if (cost := stage_cost(plan, name, trials))}
    fits = {kind: fit(config, kind, found) for kind, found in trials.items()}
    if "prepare" in plan.to_do:
        fits["disk"] = disk_fit(plan, trials)
    gpu = {kind: found for kind in kinds if (found := gpu_memory(plan, kind))}
    lines = *trial_lines(config, trials), *cost_lines(costs, len(runs), times), *map(fit_line, fits.items())
    for line in (*lines, *gpu_lines(gpu)):
        print(line)
    return {
        "plan": {name: node.reused for name, node in plan.nodes.items()},
        "trial_steps": {kind: found and asdict(found) for kind, found in trials.items()},
        "costs": costs,
        "fits": fits,
        "gpu_memory": gpu,
    }


# Costs -------------------------------------------------------------------------------------------------------------


def trained_clips(plan: Plan, name: str) -> float:
    """Clips that a training stage trains on, each as often as it is used; for the student the most there can be."""
    config, stage = plan.plan_of(name).config, plan.nodes[name].stage
    if stage == "pretrain":
        rows = plan.rows(plan.pretrained_on)
        return config.pretrain.epochs * float(sum(rows["weight"].to_pylist()))
    labelled = len(rows_of(plan.clips, "train", labelled=True))
    if stage == "consistency":
        return config.consistency.epochs * labelled * (clips_for_each(config, stage) if plan.has_unlabelled else 1)
    unlabelled = len(rows_of(plan.clips, "train", labelled=False)) if stage == "student" else 0
    share = config.pseudo_label.coverage or 1.0
    return config.finetune.epochs * (labelled + share * unlabelled)


def stage_flops(plan: Plan, name: str) -> float:
    """FLOPs per clip of a training stage."""
    config, stage = plan.plan_of(name).config, plan.nodes[name].stage
    if stage == "pretrain":
        shape = crop_frames(config.pretrain.augment, config.audio), config.audio.n_mels
        return useful_flops(config.model, *shape) * config.model.masks_per_clip
    flops = classifier_flops(config.audio, config.model, config.finetune)
    if stage == "consistency":  # the weak views: forward alone, of whole clips
        whole = replace(config.finetune, time_mask_ratio=0.0, freq_mask_ratio=0.0)
        share = config.consistency.ratio / clips_for_each(config, stage)
        flops += share * classifier_flops(config.audio, config.model, whole) / 3
    return flops


def step_clips(plan: Plan, name: str) -> float:
    """Clips of a step of a training stage, unlabelled ones of consistency training included."""
    config, stage = plan.plan_of(name).config, plan.nodes[name].stage
    section = config.pretrain if stage == "pretrain" else config.finetune
    return section.global_batch_size * (clips_for_each(config, stage) if plan.has_unlabelled else 1)


def stage_cost(plan: Plan, name: str, trials: Mapping[str, TrialSteps | None]) -> dict[str, Any] | None:
    """Clips, steps, hours here and on one GPU of a stage that trains or prepares; None for the others.

    Hours here are None where the trial steps were killed.
    """
    stage, config, rates = plan.nodes[name].stage, plan.config, Rates()
    if stage == "prepare":
        units = len(plan.clips) * config.audio.clip_seconds / UNIT_SECONDS
        cores = config.compute.data_workers or os.cpu_count() or 1
        return {"clips": len(plan.clips), "hours": units / rates.prepare_clips / cores / 3600, "gpu_hours": 0.0}
    if stage not in TRIED:
        return None
    found = trials[TRIED[stage]]
    clips = trained_clips(plan, name)
    batch = step_clips(plan, name)
    peak = rates.gpu_clips * useful_flops(VIT_B, 1024, 128)
    return {
        "clips": clips,
        "steps": ceil(clips / batch),
        "hours": None if found is None else clips / found.clips_per_second / 3600,
        "gpu_hours": clips * stage_flops(plan, name) / peak / 3600,
    }


# Fit ---------------------------------------------------------------------------------------------------------------


def fit(config: Config, kind: str, found: TrialSteps | None) -> dict[str, Any]:
    """Memory of a worker at the settings' forward pass, and the memory of this machine."""
    _, clips = micro_batch(config, kind)
    there = available_mb(found)
    if found is None:
        fewest = CPU_CLIPS * clips_for_each(config, kind)
        return {"what": f"{kind}, even {fewest} clips at once", "needed_mb": None, "there_mb": there, "fits": False}
    needed = found.needed_mb(clips)
    what = f"{kind}, {clips} clips at once"
    return {"what": what, "needed_mb": needed, "there_mb": there, "fits": needed <= there}


def available_mb(found: TrialSteps | None) -> float:
    """Memory of the GPU that was tried on, or what this machine could give to a process now."""
    if found is not None and found.device != "cpu":
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 1e6
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
        return kilobytes * 1024 / 1e6 + memory_mb()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def gpu_memory(plan: Plan, kind: str) -> dict[str, Any] | None:
    """Memory of a worker on a GPU by arithmetic, and the largest power of two of clips at once that would fit into one
    of `GPU_GB`; None for consistency training, which the arithmetic doesn't cover."""
    config = plan.config
    if kind == "consistency":
        return None
    if kind == "pretrain":
        found = pretrain_memory(config.audio, config.model, config.pretrain)
    else:
        classes = len(class_names(plan.clips, config.finetune.labels))
        found = finetune_memory(config.audio, config.model, config.finetune, classes)
    _, clips = micro_batch(config, kind)
    return {"clips": clips, "needed_mb": found.peak(clips) / 1e6, "most_clips": micro_batch_that_fits(found, GPU_GB)}


def disk_fit(plan: Plan, trials: Mapping[str, TrialSteps | None]) -> dict[str, Any]:
    """Features and checkpoints of the run, and the room in a local storage (None at a URL, whose room is unknown)."""
    config, megabytes = plan.config, 0.0
    if config.data.store == "parquet":
        megabytes = len(plan.clips) * config.audio.n_frames * config.audio.n_mels * 2 / 1e6
    for kind, found in trials.items():
        section = config.pretrain if kind == "pretrain" else config.finetune
        megabytes += 0 if found is None else (section.keep_commits + 1) * found.state_mb
    free = shutil.disk_usage(plan.storage.path()).free / 1e6 if plan.storage.is_local else None
    fits = None if free is None else megabytes <= free
    return {"what": "disk, features and checkpoints", "needed_mb": megabytes, "there_mb": free, "fits": fits}


# Lines -------------------------------------------------------------------------------------------------------------


def trial_lines(config: Config, trials: Mapping[str, TrialSteps | None]) -> list[str]:
    """The measurements of every two trial steps."""
    lines = []
    for kind, found in trials.items():
        if found is None:
            lines.append(f"  {kind}: its process died before the second step, most likely for lack of memory")
            continue
        section = config.pretrain if kind == "pretrain" else config.finetune
        instead = (
            "" if found.precision == section.precision else f" (not {section.precision}, which this CPU would emulate)"
        )
        where = f"{found.threads} CPU threads" if found.device == "cpu" else found.device
        _, clips = micro_batch(config, kind)
        less = f" (not {clips}, for a CPU)" if found.clips < clips else ""
        lines.append(
            f"  {kind}: {found.parameters / 1e6:.1f} M parameters, {found.precision}{instead} on {where}, "
            f"{found.clips} clips at once{less}: {found.seconds:.2f} s a step (the first {found.first_seconds:.2f} s), "
            f"{found.clips_per_second:.2f} clips/s, {found.peak_mb:,.0f} MB, loss {found.loss:.3f}"
        )
    return lines


def cost_lines(costs: Mapping[str, Mapping[str, Any]], repeats: int, times: str) -> list[str]:
    """The cost of every stage, and of all; `times` says how often they are repeated."""
    lines = (
        ["cost, by clips at these rates here; by FLOPs on an H200 at 45 % of its bf16 peak, whatever the precision:"]
        if costs
        else []
    )
    for name, cost in costs.items():
        steps = f"{cost['steps']:,} steps, " if "steps" in cost else ""
        gpu = f", {duration(cost['gpu_hours'])} on an H200" if cost["gpu_hours"] else ""
        here = "unknown" if cost["hours"] is None else duration(cost["hours"])
        lines.append(f"  {name:20s} {cost['clips']:,.0f} clips, {steps}{here} here{gpu}")
    if costs:
        hours = [cost["hours"] for cost in costs.values()]
        known = None if None in hours else repeats * sum(hours)
        gpu_hours = repeats * sum(cost["gpu_hours"] for cost in costs.values())
        lines.append(
            f"  in all{times}: {'unknown' if known is None else duration(known)} here, {duration(gpu_hours)} of one "
            "H200; pseudo-labels, baselines and evaluation come on top, and a student counts with all its pseudo-labels"
        )
    return lines


def gpu_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each training task needs on a GPU."""
    return [
        f"  {kind} on a GPU, by arithmetic: about {size(one['needed_mb'] / 1e3)} for {one['clips']} clips at once; "
        f"{one['most_clips']:,} fit into {GPU_GB} GB"
        for kind, one in found.items()
    ]


def fit_line(item: tuple[str, Mapping[str, Any]]) -> str:
    """One need, what there is, and the verdict."""
    _, found = item
    needed = "more than there is" if found["needed_mb"] is None else f"about {size(found['needed_mb'] / 1e3)}"
    there = "an unknown room" if found["there_mb"] is None else size(found["there_mb"] / 1e3)
    verdict = {True: "fits", False: "DOES NOT FIT", None: "unknown"}[found["fits"]]
    return f"  {found['what']}: {needed} of {there}: {verdict}"
