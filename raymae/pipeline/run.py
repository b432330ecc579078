"""Run a plan: finished stages are reused, the others run in order, and the run is recorded."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from raymae.config import Config, redact, to_dict
from raymae.config.stages import STAGES, Target
from raymae.console.bars import bar
from raymae.datasets.recordings import recordings_of
from raymae.datasets.splits.assign import write_split
from raymae.features.manifest import QUARANTINE
from raymae.pipeline.console import print_plan, print_result, round_lines
from raymae.pipeline.inventory import STAGES_FILE
from raymae.pipeline.plan.make import make_plan
from raymae.pipeline.plan.plan import Node, Plan
from raymae.pipeline.reports.reporter import PlanReporter
from raymae.storage.commits import latest_step, resumable
from raymae.storage.folder import LEASE, Folder
from raymae.storage.lease import Lease, leased, suppress_loss
from raymae.tracking.receiver import AwayError
from raymae.tracking.uri import experiment_page, ui_command
from raymae.training.guards.deadline import FOREVER, Deadline, TimeIsUpError
from raymae.training.tasks.selection import described

if TYPE_CHECKING:
    from raymae.cluster.connect import StartingRay

log = logging.getLogger(__name__)


def run_plan(config: Config, target: Target, storage: Folder, started: float | None = None) -> dict[str, Any]:
    """Run everything that `target` needs and return the result (its keys are documented in jobs/README.md).

    `max_hours` count from `started`, seconds since 1970, or from now. Raises TimeIsUpError where they end before the
    work does.
    """
    started = time.time() if started is None else started
    plan = make_plan(config, target, storage)
    if config.dry_run:
        print_plan(plan)
        return {"plan": {name: node.reused for name, node in plan.nodes.items()}}
    record(plan)
    run = Run(plan, Deadline(config.max_hours, started))
    left = None
    try:
        run.begin()
        print_plan(plan)
        if plan.to_do:
            left = run.execute()
        elif run.reporter.has_waiting():
            run.reporter.start(begins=False)
            left = run.reporter.close("FINISHED")
        result = run.result(time.time() - started)
    except TimeIsUpError:
        run.abandon("KILLED")
        raise
    except BaseException:
        run.abandon("FAILED")
        raise
    print_result(plan, result)
    if left:
        print(left)
        result["undelivered"] = left
    return result


def record(plan: Plan) -> None:
    """Record which stages and given weights the run needs, before it makes them."""
    stages = {name: {"stage": node.stage, "key": node.key} for name, node in plan.nodes.items()}
    given = {section: {"key": one.key} for section, one in plan.given.items()}
    plan.run_folder.write_json(STAGES_FILE, {"stages": stages, "given": given})


class Run:
    """One run of a plan: its progress bars, its times, its reports to MLflow."""

    def __init__(self, plan: Plan, deadline: Deadline = FOREVER) -> None:
        self.plan, self.deadline = plan, deadline
        self.times: dict[str, dict[str, float]] = {}
        self.ray: StartingRay | None = None
        self.repairs = {name for name in plan.to_do if plan.nodes[name].artifact.is_done()}
        """Finished stages that are made again: shards or a model of theirs are missing."""

    @cached_property
    def reporter(self) -> PlanReporter:
        """Reports the run to MLflow."""
        return PlanReporter(self.plan)

    def abandon(self, status: str) -> None:
        """End the run in MLflow after an error."""
        if "reporter" in self.__dict__:
            self.reporter.abandon(status)

    # Stages -----------------------------------------------------------------------------------------------------

    def execute(self) -> str | None:
        """Run the stages that are left; returns a line on what could not be delivered to MLflow, or None."""
        plan = self.plan
        plan.run_folder.write_json("config.json", to_dict(plan.config))
        write_split(plan.run_folder, recordings_of(plan.clips), plan.config.data.split)
        self.reporter.start()  # the run is visible from the first moment
        waiting: list[Node] = []
        for name in plan.to_do:
            self.deadline.check(f"before {name}")
            self.reporter.check()
            node = plan.nodes[name]
            if STAGES[node.stage].kind or (waiting and self._is_between(node)):
                waiting.append(node)
                continue
            self._train(waiting)
            waiting = []
            try:
                self._run(node)
            except AwayError as error:
                assert node.stage == "register"
                left = self.reporter.close("KILLED") or f"MLflow can't be reached ({error})"
                return f"{left}; the same command registers the model, too"
        self._train(waiting)
        return self.reporter.close("FINISHED")

    def _is_between(self, node: Node) -> bool:
        """Whether a stage that reads classifiers is run by the workers that train the stages before and after it."""
        later = self.plan.to_do[self.plan.to_do.index(node.name) :]
        trains = any(STAGES[self.plan.nodes[name].stage].kind for name in later)
        if not (trains and STAGES[node.stage].reads_classifiers):
            return False
        from raymae.pipeline.readers import reads_here

        return reads_here(self.plan)

    def begin(self) -> None:
        """Start or join Ray in the background, if there is something to prepare or to train."""
        stages = {self.plan.nodes[name].stage for name in self.plan.to_do}
        if any(stage == "prepare" or STAGES[stage].kind for stage in stages):
            self._begin_ray()

    def _begin_ray(self) -> StartingRay:
        from raymae.cluster.connect import StartingRay

        self.ray = self.ray or StartingRay(self.plan.config.compute)
        return self.ray

    def _start_ray(self) -> None:
        """Wait until Ray is there, for a stage that needs it."""
        self._begin_ray().wait()

    @contextmanager
    def _leases(self, nodes: list[Node], repair: bool = False) -> Iterator[dict[str, Lease]]:
        """Wait for the leases of stages, one after the other; yields those of the stages that no other process made.

        `repair`: a finished stage is made again. A lease that gets lost ends the block with a warning.
        """
        held = {}
        with suppress_loss(" and ".join(node.name for node in nodes)), ExitStack() as stack:
            for node in nodes:
                where = f"before {node.name}"
                lease = stack.enter_context(
                    leased(
                        node.artifact / LEASE,
                        lambda node=node: not repair and node.artifact.is_done(),  # type: ignore[misc]
                        lambda where=where: self.deadline.check(where),  # type: ignore[misc]
                    )
                )
                if lease:
                    held[node.name] = lease
                else:
                    print(f"{node.name}: another process has made it")
            yield held

    def _run(self, node: Node) -> None:
        """Run a stage that doesn't train, unless another process does it meanwhile."""
        started, repair = time.time(), node.name in self.repairs
        while repair or not node.artifact.is_done():
            with self._leases([node], repair) as held:
                if lease := held.get(node.name):
                    self.reporter.begins(node.name)
                    result = RUNNERS.get(node.stage, Run._read)(self, node)
                    result["seconds"] = time.time() - started
                    lease.check()
                    node.artifact.write_json("config.json", to_dict(self.plan.config))
                    node.artifact.finish(result)
                    self._finished(node, result)
                    return

    def _finished(self, node: Node, result: dict[str, Any]) -> None:
        seconds = result["seconds"]
        work = result.get("work_seconds", seconds)
        self.times[node.name] = {"seconds": seconds, "work_seconds": work, "overhead_seconds": seconds - work}
        self.reporter.finished(node, result)
        checkpoints = f", checkpoints {result['commit_seconds']:.1f} s" if result.get("commit_seconds") else ""
        print(f"{node.name}: {seconds:.0f} s ({work:.0f} s compute, {seconds - work:.0f} s overhead{checkpoints})")
        if STAGES[node.stage].title:
            print(f"  {described(result['selection'])}")
        for line in round_lines(result) if node.stage == "pseudo_label" else ():
            print(f"  {line}")

    @contextmanager
    def _bar(self, name: str, total: int, unit: str = "clip") -> Iterator[Callable[[int], Any]]:
        with bar(name, total, unit) as shown:

            def progress(count: int) -> None:
                shown.advance(count)
                self.deadline.check(f"within {name}")

            yield progress

    def _prepare(self, node: Node) -> dict[str, Any]:
        from raymae.cluster.prepare import prepare

        self._start_ray()
        plan = self.plan
        with self._bar(node.name, len(plan.clips)) as progress:
            result = prepare(plan.clips, node.artifact, plan.shards, plan.config, progress, self.deadline)
        if result["quarantined"]:
            print(f"  {result['quarantined']} files quarantined: {redact(node.artifact.url)}/{QUARANTINE}")
        if result["silent"]:
            print(f"  {result['silent']} silent clips, neither trained on nor scored; listed there, too")
        if result["mean"] is not None:
            print(f"  log-mels of split {result['split']}: mean {result['mean']:.3f}, deviation {result['std']:.3f}")
        return result

    def _train(self, nodes: list[Node]) -> None:
        """Train stages in one worker group, all but those that other processes train meanwhile."""
        while left := [node for node in nodes if not node.artifact.is_done()]:
            if not STAGES[left[0].stage].kind:  # another process has trained those before it
                self._run(left[0])
                continue
            with self._leases(left) as held:
                self._train_held([node for node in left if node.name in held], held)

    def _train_held(self, nodes: list[Node], held: dict[str, Lease]) -> None:
        if not nodes:
            return
        from raymae.cluster.stages import trainings
        from raymae.cluster.train import train
        from raymae.pipeline.in_process import between
        from raymae.pipeline.reports.progress_bars import Follower
        from raymae.training.state.provenance import check_commit

        def check_leases() -> None:
            for lease in held.values():
                lease.check()

        self._start_ray()
        self.deadline.check(f"before {nodes[0].name}")
        specs = [
            replace(self.plan.spec(node.name), fence=held[node.name].fence)
            if STAGES[node.stage].kind
            else between(self.plan, node, held[node.name].fence)
            for node in nodes
        ]
        for spec in trainings(specs):
            if name := resumable(spec.artifact, checksums=True):
                check_commit(spec, name)
        waiting, begun = deque(nodes), [time.time()]

        def tell_finished(name: str = "") -> None:
            """Report the stages that are finished, in their order."""
            while waiting and waiting[0].artifact.is_done():
                node = waiting.popleft()
                result = node.artifact.result()
                result["seconds"] = result["finished_at"] - begun[-1]
                begun.append(result["finished_at"])
                self._finished(node, result)

        with Follower(trainings(specs), self.reporter.begins, tell_finished):
            train(specs, self.plan.storage, self.deadline, check_leases)
        tell_finished()
        for node in waiting:
            raise self.deadline.error(f"at step {latest_step(node.artifact)} of {node.name}")

    def _read(self, node: Node) -> dict[str, Any]:
        """Run a stage that reads classifiers."""
        from raymae.pipeline.bodies import BODIES
        from raymae.pipeline.readers import choose_reader

        reader = choose_reader(self.plan, self._start_ray, partial(self._bar, node.name), self.deadline)
        return BODIES[node.stage](self.plan, node, reader)

    def _register(self, node: Node) -> dict[str, Any]:
        return dict(self.reporter.register())

    def commands(self) -> dict[str, str]:
        """The commands that open MLflow and predict with the registered model, and the page of the runs."""
        config, registered = self.plan.config, self.plan.nodes["register"].artifact.result()
        model = f"models:/{config.tracking.registered_model}@{config.tracking.alias}"
        where = f"--storage {redact(config.storage)}"
        return {
            "mlflow_ui": ui_command(config.tracking, self.plan.storage),
            "mlflow_page": experiment_page(config.tracking, registered.get("mlflow_experiment_id")),
            "predict": f"python jobs/predict.py {config.recipe} {where} --predict.model {model} "
            "--predict.inputs FILES… --predict.output scenes.csv",
        }

    # The result -------------------------------------------------------------------------------------------------

    def result(self, seconds: float) -> dict[str, Any]:
        """The result for `--json` and the run folder."""
        plan = self.plan
        stages = {
            name: {
                "key": node.key,
                "folder": redact(node.artifact.url),
                "reused": name not in self.times,
                **self.times.get(name, {"seconds": 0.0, "work_seconds": 0.0, "overhead_seconds": 0.0}),
            }
            for name, node in plan.nodes.items()
        }
        result: dict[str, Any] = {
            "job": plan.job,
            "recipe": plan.config.recipe,
            "seconds": seconds,
            "run_folder": redact(plan.run_folder.url),
            "stages": stages,
        }
        if "evaluate" in plan.nodes:
            evaluation = plan.nodes["evaluate"].artifact.result()
            result |= {key: evaluation[key] for key in ("verdict", "metrics")}
        if "register" in plan.nodes and plan.nodes["register"].artifact.is_done():
            result |= {key: plan.nodes["register"].artifact.result()[key] for key in ("model_uri", "mlflow_run_id")}
            result["commands"] = self.commands()
        plan.run_folder.write_json("result.json", result)
        return result


RUNNERS: dict[str, Callable[[Run, Node], dict[str, Any]]] = {"prepare": Run._prepare, "register": Run._register}
"""The stages that don't train and read no classifiers; each returns its result."""
