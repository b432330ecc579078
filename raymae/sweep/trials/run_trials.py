"""The trials of a sweep on Ray Tune, many in one long-lived process.

A trial of one worker is a plain function in a process that Tune reuses for the next trial; it trains without Ray Train
and Ray Data, whose start would cost each stage more than the training of a small stage. One of several workers drives
Ray Train. Tune's own files are never read back.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from raymae.cluster.ray_private import propagated_to_trials
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from raymae.sweep.points import Planner, Point, copy_weights
from raymae.sweep.results import Record
from raymae.sweep.search.graph import Graph
from raymae.sweep.search.graph_search import (
    AGAIN,
    KEY,
    POINT,
    REASON,
    STAGE,
    AskingSearch,
    GraphSearch,
    values_of,
)
from raymae.sweep.search.optuna_study import study_of
from raymae.sweep.search.population import Segment, population_of
from raymae.sweep.search.population_search import SEGMENT, PopulationSearch, key_of
from raymae.sweep.search.stopping import PERCENT, SCORE, scheduler_of
from raymae.sweep.space import Axis
from raymae.sweep.trials.recorder import Recorder
from raymae.sweep.trials.sizes import AVOIDED, WAITING, WORKERS, Sizes
from raymae.sweep.trials.trial import Runner
from raymae.training.guards.deadline import Deadline, TimeIsUpError
from raymae.training.tasks.base import TrainingError

LONGEST_NAME = 80
"""Characters of a trial's name."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the recorder writes TensorBoard itself, into the sweep's folder
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even with verbose=0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted job ends like every other job
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # for a stopped trial's last writes; its process then runs the next trial
}


def train_trial(
    config: dict[str, Any],
    planner: Planner,
    axes: Sequence[Axis],
    folder: Folder,
    deadline: Deadline,
    sizes: Sizes,
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

    torch.set_num_threads(planner.config.compute.torch_threads or max(1, int(sizes.cpus)))
    outcome: dict[str, Any] = {SCORE: math.nan}
    try:
        deadline.check("before a trial")
        try:
            plan = planner.plan({} if is_of_population(config) else values_of(config, axes))
        except ValueError as error:
            if planned or isinstance(error, OSError):
                raise  # an error of this node or moment: the next start tries it again
            outcome |= {"status": "refused", "error": str(error)}
        else:
            outcome |= run_trial(config, plan, axes, folder, runner_of(config, sizes, deadline))
    except TimeIsUpError:
        outcome |= {"status": "interrupted"}
    except Exception as error:
        logging.getLogger(__name__).exception("a trial failed")
        outcome |= {"status": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        if AVOIDED not in config and not is_mistake(error):
            outcome[AGAIN] = ray.get_runtime_context().get_node_id()
    tune.report(outcome)


def is_mistake(error: Exception) -> bool:
    """Whether an error is one of the settings or the data, which is the same on every node."""
    return isinstance(error, ValueError | TrainingError) and not isinstance(error, OSError)


def is_of_population(config: Mapping[str, Any]) -> bool:
    """Whether a trial is a segment of a population, or a stage that its segments share, which has no values."""
    return SEGMENT in config or config.get(POINT) == {}


def run_trial(
    config: dict[str, Any], plan: Plan, axes: Sequence[Axis], folder: Folder, runner: Runner
) -> dict[str, Any]:
    """Run a point or a shared stage; returns its last report. Raises what their stages raise."""
    from raymae.sweep.trials.trial import Trial, segment_spec

    if reason := config.get(REASON):
        return {"status": "failed", "error": reason}
    if name := config.get(STAGE):
        copy_weights(plan)
        return {"status": "finished", "made": runner(plan=plan).make(plan.nodes[name])}
    part = segment_spec(plan, Segment(**config[SEGMENT])) if SEGMENT in config else None
    trial = Trial(plan, tune.report, runner, part)
    outcome = trial.run()
    outcome[SCORE] = trial.predict(folder, key_of(config, axes))
    return outcome | {"status": "finished", PERCENT: 100.0}


def name_of(config: Mapping[str, Any]) -> str:
    """A trial's name in Ray's dashboard and Tune's folders: a point's fields and values, or a shared stage with its
    key."""
    if STAGE in config:
        return f"{config[STAGE]}-{config[KEY]}"
    values = {path.rpartition(".")[2]: value for path, value in config[POINT].items()}
    if SEGMENT in config:
        values = {name: config[SEGMENT][name] for name in ("generation", "member")} | values
    text = "_".join(f"{field}={value}" for field, value in values.items())
    return re.sub("[^A-Za-z0-9.=_-]+", "-", text)[:LONGEST_NAME]


def runner_of(config: dict[str, Any], sizes: Sizes, deadline: Deadline) -> Runner:
    """What runs the stages of a trial: this process, or a group of workers."""
    import torch

    workers = config.get(WORKERS, 1)
    if workers == 1:
        device = "cuda" if sizes.gpus and torch.cuda.is_available() else "cpu"
        return partial(InProcess, torch_device=device, deadline=deadline)
    from raymae.sweep.trials.in_group import InGroup

    return partial(
        InGroup,
        deadline=deadline,
        workers=workers,
        cpus=sizes.cpus,
        use_gpu=bool(sizes.gpus),
        label=config.get(KEY) or name_of(config),
    )


def run_trials(
    planner: Planner,
    axes: Sequence[Axis],
    points: Sequence[Point] | None,
    known: Sequence[Record],
    recorder: Recorder,
    deadline: Deadline,
    sizes: Sizes,
) -> tune.ResultGrid:
    """Run trials until all are recorded or the deadline is over; returns what Tune kept of them.

    Args:
        points: the points to try; None lets Optuna choose.
        known: records of earlier trials, which Optuna and the rule that stops trials learn from.
        sizes: the resources of the trials.
    """
    os.environ.update(SETTINGS)
    if sizes.grows:  # else Tune shows the autoscaler one waiting trial at a time
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(WAITING)
    withhold_keys()
    sweep = planner.config.sweep
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    parameters = {"planner": planner, "axes": tuple(axes), "deadline": deadline, "sizes": sizes}
    parameters |= {"folder": recorder.folder, "planned": points is not None}
    trainable = tune.with_resources(tune.with_parameters(train_trial, **parameters), sizes.request)
    search: Searcher
    scheduler = None
    if sweep.search == "population":
        base = planner.point({})
        assert base.plan is not None
        stage = base.plan.nodes[base.plan.final].key
        population = population_of(sweep, axes, stage, planner.config.seed)
        search = PopulationSearch(base, population, SCORE, sizes, known)
    elif points is None:
        study = study_of(sweep, axes, known, planner.config.seed)
        search = AskingSearch(study, planner.point, axes, SCORE, sizes, recorder.total - recorder.done)
    else:
        search = GraphSearch(Graph(), axes, SCORE, sizes)
        search.graph.add(points)
    if sweep.search != "population":
        scheduler = scheduler_of(sweep, known)
    folder = planner.storage / "ray"
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1,  # the search ends the sweep
            max_concurrent_trials=sizes.most(sweep),
            trial_name_creator=lambda trial: f"{name_of(trial.config)}_{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"{name_of(trial.config)}_{trial.trial_id}",
            # the workers of a stopped trial end with its process
            reuse_actors=sizes.workers == sizes.of_stage(1) == 1,
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
