"""The trials of a sweep on Ray Tune, many in one long-lived process.

A trial is a plain function in a process that Tune reuses for the next trial; it trains without Ray Train and Ray Data,
whose start would cost each stage more than the training of a small stage. Tune's own files are never read back.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from raymae.cluster.connect import starts_here
from raymae.cluster.ray_private import propagated_to_trials
from raymae.cluster.resources.demand import await_room
from raymae.cluster.resources.gpus import wants_gpu
from raymae.cluster.resources.nodes import alive
from raymae.config import ComputeConfig, SweepConfig, to_text
from raymae.pipeline.in_process import InProcess
from raymae.storage.folder import Folder
from raymae.sweep.graph import Graph
from raymae.sweep.graph_search import POINT, REASON, STAGE, GraphSearch, as_text
from raymae.sweep.points import Planner, Point, copy_weights
from raymae.sweep.recorder import Recorder
from raymae.sweep.results import Record
from raymae.sweep.space import Axis, Values
from raymae.training.guards.deadline import FOREVER, Deadline, TimeIsUpError

SCORE, PERCENT = "score", "percent"
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes TensorBoard itself, into the sweep's folder
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even with verbose=0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted job ends like every other job
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # for a stopped trial's last writes; its process then runs the next trial
}


def trial_resources(sweep: SweepConfig, compute: ComputeConfig, deadline: Deadline = FOREVER) -> tuple[float, float]:
    """CPUs and GPUs of a trial; waits until a machine that has so many has joined, where machines may join.

    ValueError where none has, and none will.
    """
    wanted = (1 if wants_gpu(compute) else 0) if sweep.gpus_per_trial is None else sweep.gpus_per_trial
    cpus, gpus = sweep.cpus_per_trial, wanted
    if not starts_here(compute.address):
        await_room("trials", {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), compute, deadline)
        return cpus, gpus
    nodes = alive()
    most = max(nodes, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)))
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise ValueError(
            f"a trial of sweep.cpus_per_trial = {cpus:g} and sweep.gpus_per_trial = {gpus:g} would wait for ever: no "
            f"machine of the cluster has that many (the largest: {most.get('CPU', 0):g} CPUs, {most.get('GPU', 0):g} "
            "GPUs)"
        )
    return cpus, gpus


def values_of(config: Mapping[str, Any], axes: Sequence[Axis]) -> Values:
    """The point of a trial's configuration: the inverse of `as_text`."""
    point = config.get(POINT, config)
    return {
        axis.path: point[axis.path]
        if axis.is_range
        else next(value for value in axis.values if to_text(value) == point[axis.path])
        for axis in axes
    }


def domain(axis: Axis) -> Any:
    """An axis as a domain of Tune."""
    if not axis.is_range:
        return tune.choice([to_text(value) for value in axis.values])
    low, high = axis.ends
    if axis.whole:
        return (tune.lograndint if axis.log else tune.randint)(low, high + 1)
    return (tune.loguniform if axis.log else tune.uniform)(low, high)


def train_trial(
    config: dict[str, Any],
    planner: Planner,
    axes: Sequence[Axis],
    folder: Folder,
    deadline: Deadline,
    cpus: float,
    gpus: float,
    planned: bool,
) -> None:
    """Run one trial, or a stage that several share, in a process of Tune; its last report is its outcome.

    An error is reported like a score; Tune restarts a trial whose process died.

    Args:
        folder: the sweep's folder, for the trial's predictions.
        planned: whether the driver could plan the point: an error of planning is then this node's own (a path that it
            can't see, say), and the trial fails instead of being refused.
    """
    import torch

    from raymae.sweep.trial import Trial

    torch.set_num_threads(planner.config.compute.torch_threads or max(1, int(cpus)))
    outcome: dict[str, Any] = {SCORE: math.nan}
    try:
        deadline.check("before a trial")
        try:
            values = values_of(config, axes)
            plan = planner.plan(values)
        except ValueError as error:
            if planned or isinstance(error, OSError):
                raise  # an error of this node or moment: the next start tries it again
            outcome |= {"status": "refused", "error": str(error)}
        else:
            device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
            if reason := config.get(REASON):
                outcome |= {"status": "failed", "error": reason}
            elif name := config.get(STAGE):
                copy_weights(plan)
                made = InProcess(plan, device, deadline).make(plan.nodes[name])
                outcome |= {"status": "finished", "made": made}
            else:
                trial = Trial(plan, tune.report, device, deadline)
                outcome = trial.run()
                outcome[SCORE] = trial.predict(folder, Point(values).key)
                outcome |= {"status": "finished", PERCENT: 100.0}
    except TimeIsUpError:
        outcome |= {"status": "interrupted"}
    except Exception as error:
        logging.getLogger(__name__).exception("a trial failed")
        outcome |= {"status": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    tune.report(outcome)


def run_trials(
    planner: Planner,
    axes: Sequence[Axis],
    points: Sequence[Point] | None,
    known: Sequence[Record],
    recorder: Recorder,
    deadline: Deadline,
    demand: tuple[float, float],
) -> tune.ResultGrid:
    """Run trials until all are recorded or the deadline is over; returns what Tune kept of them.

    Args:
        points: the points to try; None lets Optuna choose.
        known: records of earlier trials, which Optuna learns from.
        demand: CPUs and GPUs of a trial (`trial_resources`).
    """
    os.environ.update(SETTINGS)
    withhold_keys()
    sweep, (cpus, gpus) = planner.config.sweep, demand
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    parameters = {"planner": planner, "axes": tuple(axes), "deadline": deadline, "cpus": cpus, "gpus": gpus}
    parameters |= {"folder": recorder.folder, "planned": points is not None}
    trainable = tune.with_resources(tune.with_parameters(train_trial, **parameters), {"CPU": cpus, "GPU": gpus})
    scheduler = None
    if sweep.early_stopping:
        scheduler = AsyncHyperBandScheduler(
            time_attr=PERCENT,
            metric=SCORE,
            mode="max",
            max_t=100,
            grace_period=100 * sweep.grace,  # type: ignore[arg-type]  # need not be a whole number
            reduction_factor=sweep.reduction,
        )
    search: Any
    if points is None:
        search, space = optuna_search(planner, axes, known), {axis.path: domain(axis) for axis in axes}
        samples = recorder.total - recorder.done
    else:
        graph = Graph(points)
        search, space, samples = GraphSearch(graph, axes, SCORE), {}, graph.size
    folder = planner.storage / "ray"
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=sweep.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{time.time_ns():x}",
            storage_path=folder.path() if planner.storage.is_local else folder.url,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=planner.config.compute.max_failures),
            verbose=0,
        ),
    )
    return tuner.fit()


def withhold_keys() -> None:
    """Keep this process's storage keys (AWS_*) from the trials: Tune would propagate them, into a log of each node.

    A trial then opens the storage with its node's own keys, as all other workers do.
    """
    propagated = propagated_to_trials()
    propagated -= {name for name in propagated if name.startswith("AWS_")}


def optuna_search(planner: Planner, axes: Sequence[Axis], known: Sequence[Record]) -> Any:
    """Optuna's TPE with the scores of earlier trials; each start draws with another seed."""
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.ERROR)
    scored = [one for one in known if one.score is not None]
    return OptunaSearch(
        metric=SCORE,
        mode="max",
        points_to_evaluate=[as_text(one.changes, axes) for one in scored] or None,
        evaluated_rewards=[one.score for one in scored] or None,
        seed=planner.config.seed + len(known),
    )
