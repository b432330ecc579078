"""Complete runs side by side on a cluster, each in one process: for benchmarks of many small runs.

Shared stages come first: feature stores with Ray Data and pre-training with Ray Train. All stages are stored under the
keys of the pipeline, so a stopped benchmark resumes with the missing stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from raymae.cluster.connect import start_ray
from raymae.config import Config
from raymae.config.stages import Target
from raymae.console.bars import bar
from raymae.datasets.recordings import load_clips
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import record, run_plan
from raymae.storage.folder import Folder
from raymae.sweep.points import copy_weights
from raymae.sweep.trials.sizes import sizes_of

POLL_SECONDS = 2.0
"""Interval between two updates of the progress bar, seconds."""
SHARED: tuple[Target, ...] = ("prepare", "pretrain")
"""Stages that are finished before the runs start."""


def run_side_by_side(configs: Sequence[Config], names: Sequence[str], storage: Folder) -> Iterator[tuple[int, Any]]:
    """Yield the index of each run and the result of its evaluation, in the order in which the runs finish.

    After all runs have ended, a ValueError names those that failed.
    """
    plans = [plan_of(config, storage) for config in configs]
    waiting = []
    for number, plan in enumerate(plans):
        if plan.nodes["evaluate"].artifact.is_done():
            yield number, plan.nodes["evaluate"].artifact.result()
        else:
            waiting.append(number)
    if not waiting:
        return
    start_ray(configs[0].compute)
    for number in waiting:
        record(plans[number])
        copy_weights(plans[number])
        for target in SHARED:
            node = plans[number].nodes.get(target)  # None for pre-training if initial weights are given
            if node is not None and not node.artifact.is_done():
                run_plan(configs[number], target, storage)
    sizes = sizes_of(configs[0].sweep, configs[0].compute)
    cpus, gpus = sizes.cpus, sizes.gpus
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(run_in_process)
    tasks = {task.remote(configs[number], storage, cpus, gpus): number for number in waiting}
    yield from finished(tasks, {number: plans[number] for number in waiting}, names)


def plan_of(config: Config, storage: Folder) -> Plan:
    """Plan of a run, with its clips."""
    clips = load_clips(config, storage, config.finetune.labels)
    return Plan(config, clips, storage, "evaluate", find(config, storage, "evaluate"))


def run_in_process(config: Config, storage: Folder, cpus: float, gpus: float) -> None:
    """Run the missing stages of a run."""
    import torch

    torch.set_num_threads(config.compute.torch_threads or max(1, int(cpus)))
    plan = plan_of(config, storage)
    maker = InProcess(plan, "cuda" if gpus and torch.cuda.is_available() else "cpu")
    for node in plan.nodes.values():
        if node.stage not in SHARED:
            maker.make(node)


def finished(tasks: dict[Any, int], plans: Mapping[int, Plan], names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the runs as they finish, with a progress bar over their stages."""
    stages = {node.key: node for plan in plans.values() for node in plan.nodes.values() if node.stage not in SHARED}
    failed = {}
    with bar("stages", len(stages), "stage") as shown:
        while tasks:
            ready, _ = ray.wait(list(tasks), timeout=POLL_SECONDS)
            shown.move(sum(node.artifact.is_done() for node in stages.values()))
            for one in ready:
                number = tasks.pop(one)
                try:
                    ray.get(one)
                except ray.exceptions.RayError as error:
                    failed[names[number]] = error_line(error)
                    print(f"{names[number]}: failed: {failed[names[number]]}")
                    continue
                print(f"{names[number]}: done")
                yield number, plans[number].nodes["evaluate"].artifact.result()
    if failed:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in failed.items()))


def error_line(error: Exception) -> str:
    """First line of a task's error, or of its cause if Ray knows it."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
