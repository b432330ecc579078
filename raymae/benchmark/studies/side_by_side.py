"""Whole runs side by side over a cluster, each in one process: for benchmarks of many small runs.

What they share (the pre-training) is made first, by Ray Train; so are the feature stores, by Ray Data. Every stage
stands in the storage under the pipeline's keys, so that what was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from tqdm import tqdm

from raymae.cluster.connect import start_ray
from raymae.config import Config
from raymae.config.stages import Target
from raymae.datasets.clips import load, own_folder
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import record, run_plan
from raymae.storage.folder import Folder
from raymae.sweep.points import copy_weights
from raymae.sweep.search import trial_resources

LOOK_SECONDS = 2.0
"""Between two looks at which stages are done."""
SHARED: tuple[Target, ...] = ("prepare", "pretrain")
"""Stages that are made before the runs begin."""


def run_side_by_side(configs: Sequence[Config], names: Sequence[str], storage: Folder) -> Iterator[tuple[int, Any]]:
    """The numbers of some runs and the results of their evaluations, as they finish.

    ValueError names the runs that failed, after the others.
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
            node = plans[number].nodes.get(target)  # given weights take pre-training's place
            if node is not None and not node.artifact.is_done():
                run_plan(configs[number], target, storage)
    cpus, gpus = trial_resources(configs[0].sweep, configs[0].compute)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(run_in_process)
    tasks = {task.remote(configs[number], storage, cpus, gpus): number for number in waiting}
    yield from finished(tasks, {number: plans[number] for number in waiting}, names)


def plan_of(config: Config, storage: Folder) -> Plan:
    """A run's plan, with its clips."""
    folder = own_folder(storage)
    clips = load(config.data, folder, config.finetune.labels)
    return Plan(config, clips, storage, "evaluate", find(config, storage, "evaluate"))


def run_in_process(config: Config, storage: Folder, cpus: float, gpus: float) -> None:
    """Make the stages of a run that don't stand yet."""
    import torch

    torch.set_num_threads(config.compute.torch_threads or max(1, int(cpus)))
    plan = plan_of(config, storage)
    maker = InProcess(plan, "cuda" if gpus and torch.cuda.is_available() else "cpu")
    for node in plan.nodes.values():
        if node.stage not in SHARED:
            maker.make(node)


def finished(tasks: dict[Any, int], plans: Mapping[int, Plan], names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """The runs as they finish, under a bar that counts their stages."""
    stages = {node.key: node for plan in plans.values() for node in plan.nodes.values() if node.stage not in SHARED}
    failed = {}
    with tqdm(total=len(stages), desc="stages", unit="stage", smoothing=0) as bar:
        while tasks:
            ready, _ = ray.wait(list(tasks), timeout=LOOK_SECONDS)
            bar.update(sum(node.artifact.is_done() for node in stages.values()) - bar.n)
            for one in ready:
                number = tasks.pop(one)
                try:
                    ray.get(one)
                except ray.exceptions.RayError as error:
                    failed[names[number]] = said(error)
                    bar.write(f"{names[number]}: failed: {failed[names[number]]}")
                    continue
                bar.write(f"{names[number]}: done")
                yield number, plans[number].nodes["evaluate"].artifact.result()
    if failed:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in failed.items()))


def said(error: Exception) -> str:
    """One line of a task's error: the cause where Ray names one."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
