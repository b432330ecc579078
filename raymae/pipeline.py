"""Runs a plan: what stands is reused, the rest is run in its order, and the run is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from raymae.artifacts import Folder, latest_step
from raymae.config import Config, redact, to_dict
from raymae.console import print_plan, print_result, said_of_round
from raymae.datasets import absent, load, load_nominal
from raymae.deadline import FOREVER, Deadline, TimeIsUpError
from raymae.inventory import STAGES
from raymae.keys import FINETUNED
from raymae.plan import Node, Plan, Target, ui_command
from raymae.selection import described
from raymae.splits import write_split
from raymae.weights import bring, find

if TYPE_CHECKING:
    from raymae.tracking import Tracker

log = logging.getLogger(__name__)


def make_plan(config: Config, target: Target, storage: Folder) -> Plan:
    """The plan of a job, its clips and given weights looked at; prints it."""
    labels = None if target in ("prepare", "pretrain") else config.finetune.labels
    missing = absent(config.data) if config.dry_run else []
    if missing:
        print(f"not here: {', '.join(missing)}; clips under its true names and counts are generated for the dry run")
    folder = Path(storage.path("datasets")) if storage.is_local else None
    clips = (load_nominal if missing else load)(config.data, folder, labels)
    plan = Plan(config, clips, storage, target, find(config, storage, target))
    if plan.to_do:
        for section, given in plan.given.items():
            bring(given, section, config, write=not config.dry_run)
    print_plan(plan)
    return plan


def run_plan(config: Config, target: Target, storage: Folder, started: float | None = None) -> dict[str, Any]:
    """Run everything that `target` needs and return the result (the keys are documented in the README).

    `max_hours` count from `started`, seconds since 1970, or from now. Raises TimeIsUpError where they end before the
    work does.
    """
    started = time.time() if started is None else started
    plan = make_plan(config, target, storage)
    if config.dry_run:
        return {"plan": {name: node.reused for name, node in plan.nodes.items()}}
    record(plan)
    run = Run(plan, Deadline(config.max_hours, started))
    try:
        if plan.to_do:
            run.execute()
        result = run.result(time.time() - started)
    except TimeIsUpError:
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    print_result(plan, result)
    return result


def record(plan: Plan) -> None:
    """Write down which stages and given weights the run needs, before it makes them."""
    stages = {name: {"stage": node.stage, "key": node.key} for name, node in plan.nodes.items()}
    given = {section: {"key": one.key} for section, one in plan.given.items()}
    plan.run_folder.write_json(STAGES, {"stages": stages, "given": given})


class Run:
    """One run of a plan: its progress bars, its times, its place in MLflow."""

    def __init__(self, plan: Plan, deadline: Deadline = FOREVER) -> None:
        self.plan, self.deadline = plan, deadline
        self.times: dict[str, dict[str, float]] = {}
        self._tracker: Tracker | None = None
        self._run_ids: dict[str, str] = {}

    # MLflow, by the driver alone --------------------------------------------------------------------------------

    @property
    def tracker(self) -> Tracker:
        """MLflow; imported when the first stage needs it, which takes seconds."""
        if self._tracker is None:
            from raymae.tracking import Tracker

            self._tracker = Tracker(self.plan.config.tracking, self.plan.storage)
        return self._tracker

    @property
    def parent_id(self) -> str:
        """The MLflow run of the pipeline."""
        if "" not in self._run_ids:
            config = to_dict(self.plan.config)
            self._run_ids[""] = self.tracker.run(
                self.plan.key, f"{self.plan.config.recipe}-{self.plan.job}", params=flat(config)
            )
        return self._run_ids[""]

    def run_id(self, name: str) -> str:
        """The MLflow run of a stage, a child of the pipeline's."""
        if name not in self._run_ids:
            node = self.plan.nodes[name]
            params = {"artifact": redact(node.artifact.url), "key": node.key}
            self._run_ids[name] = self.tracker.run(
                node.key,
                name,
                parent=self.parent_id,
                params=params | stage_settings(self.plan.plan_of(name).config, node.stage),
            )
        return self._run_ids[name]

    def close(self, status: str) -> None:
        """End all runs that are still open in MLflow."""
        for run_id in reversed(list(self._run_ids.values())):
            self.tracker.finish(run_id, status)

    # Stages -----------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Run what doesn't stand yet."""
        from raymae.launch import start_ray

        plan = self.plan
        plan.run_folder.write_json("config.json", to_dict(plan.config))
        write_split(plan.run_folder, plan.clips, plan.config.data.split)
        self.parent_id  # noqa: B018  the run is visible from the first moment
        before = time.time()
        start_ray(plan.config.compute)
        print(f"Ray is up after {time.time() - before:.0f} s")
        waiting: list[Node] = []
        for name in plan.to_do:
            self.deadline.check(f"before {name}")
            node = plan.nodes[name]
            if node.stage in ("pretrain", *FINETUNED):
                waiting.append(node)
                continue
            self._train(waiting)
            waiting = []
            self._run(node)
        self._train(waiting)
        self.close("FINISHED")

    def _run(self, node: Node) -> None:
        started = time.time()
        runner: Callable[[Node], dict[str, Any]] = getattr(self, f"_{node.stage}")
        result = runner(node)
        result["seconds"] = time.time() - started
        node.artifact.write_json("config.json", to_dict(self.plan.config))
        node.artifact.finish(result)
        self._finished(node, result)

    def _finished(self, node: Node, result: dict[str, Any]) -> None:
        seconds = result["seconds"]
        work = result.get("work_seconds", seconds)
        self.times[node.name] = {"seconds": seconds, "work_seconds": work, "overhead_seconds": seconds - work}
        run_id = self.run_id(node.name)
        numbers = {key: float(value) for key, value in result.items() if isinstance(value, int | float)}
        self.tracker.log_numbers(run_id, numbers)
        for name in (node.artifact / "figures").names():
            self._log_figure(node, f"figures/{name}")
        self.tracker.finish(run_id, "FINISHED")
        commits = f" (commits {result['commit_seconds']:.1f} s)" if result.get("commit_seconds") else ""
        print(f"{node.name}: {seconds:.0f} s, of which work {work:.0f} s and overhead {seconds - work:.0f} s{commits}")
        if node.stage in FINETUNED:
            print(f"  {described(result['selection'])}")

    def _log_figure(self, node: Node, file: str) -> None:
        self.tracker.log_bytes(self.run_id(node.name), file, node.artifact.read_bytes(file))

    @contextmanager
    def _bar(self, name: str, total: int, unit: str = "clip") -> Iterator[Callable[[int], Any]]:
        with tqdm(total=total, desc=name, unit=unit, mininterval=1, smoothing=0) as bar:

            def progress(count: int) -> None:
                bar.update(count)
                self.deadline.check(f"within {name}")

            yield progress

    def _prepare(self, node: Node) -> dict[str, Any]:
        from raymae.features import prepare

        plan = self.plan
        with self._bar(node.name, len(plan.clips)) as progress:
            result = prepare(plan.clips, node.artifact, plan.shards, plan.config, progress)
        if result["quarantined"]:
            print(f"  {result['quarantined']} files quarantined: {redact(node.artifact.url)}/quarantine.csv")
            self.tracker.log_bytes(self.run_id(node.name), "quarantine.csv", node.artifact.read_bytes("quarantine.csv"))
        if result["mean"] is not None:
            print(f"  log-mels of split {result['split']}: mean {result['mean']:.3f}, deviation {result['std']:.3f}")
        return result

    def _train(self, nodes: list[Node]) -> None:
        if not nodes:
            return
        from raymae.follow import Follower
        from raymae.launch import train
        from raymae.provenance import check_commit

        self.deadline.check(f"before {nodes[0].name}")
        specs = [self.plan.spec(node.name) for node in nodes]
        check_commit(specs[0])  # the others haven't begun: stages train one after the other
        started = time.time()
        with Follower(
            specs,
            lambda name, events: self.tracker.log_events(self.run_id(name), events),
            lambda name, file: self._log_figure(self.plan.nodes[name], file),
        ):
            train(specs, self.plan.storage, self.deadline)
        for node in nodes:
            if not node.artifact.is_done():
                raise self.deadline.error(f"at step {latest_step(node.artifact)} of {node.name}")
            result = node.artifact.result()
            result["seconds"] = result["finished_at"] - started
            started = result["finished_at"]
            self._finished(node, result)

    def _pseudo_label(self, node: Node) -> dict[str, Any]:
        from raymae.inference import ClusterReader
        from raymae.teacher import run_round

        plan, seconds = self.plan, [0.0]
        reader = ClusterReader(plan.store, plan.config.compute, lambda total: self._bar(node.name, total))

        def timed(found: tuple[Any, float]) -> Any:
            seconds[0] += found[1]
            return found[0]["teacher"]

        views = plan.config.pseudo_label.views
        result = run_round(
            plan,
            node.name,
            lambda rows, teacher: timed(reader.classify(rows, {"teacher": teacher}, views)),
            lambda rows, reading: timed(reader.embed(rows, {"teacher": reading})),
        )
        for name in ("report.md", "report.json"):
            self.tracker.log_bytes(self.run_id(node.name), name, node.artifact.read_bytes(name))
        for line in said_of_round(result):
            print(f"  {line}")
        return result | {"work_seconds": seconds[0]}

    def _evaluate(self, node: Node) -> dict[str, Any]:
        from raymae.evaluate import evaluate
        from raymae.inference import ClusterReader

        plan = self.plan
        result = evaluate(plan, ClusterReader(plan.store, plan.config.compute, lambda all: self._bar(node.name, all)))
        for name in ("report.md", "report.html", "report.json"):
            self.tracker.log_bytes(self.run_id(node.name), name, node.artifact.read_bytes(name))
        self.tracker.log_numbers(self.run_id(node.name), scores(result["metrics"]), prefix="")
        return result

    def _register(self, node: Node) -> dict[str, Any]:
        plan = self.plan
        evaluation = plan.nodes["evaluate"].artifact.result()
        metadata = {
            "recipe": plan.config.recipe,
            "stages": {name: other.key for name, other in plan.nodes.items() if name != "register"},
            "metrics": evaluation["metrics"][plan.final],
        }
        tags = {"evaluation": plan.nodes["evaluate"].key, "model": plan.final}
        model_uri, version = self.tracker.register(self.parent_id, plan.nodes[plan.final].artifact, metadata, tags)
        return {"model_uri": model_uri, "version": version, "mlflow_run_id": self.parent_id}

    def commands(self) -> dict[str, str]:
        """Commands to look further."""
        config = self.plan.config
        model = f"models:/{config.tracking.registered_model}@{config.tracking.alias}"
        where = f"--storage {redact(config.storage)}"
        return {
            "mlflow_ui": ui_command(config.tracking, self.plan.storage),
            "predict": f"python jobs/predict.py {config.recipe} {where} --predict.model {model} "
            "--predict.inputs FILES… --predict.output scenes.csv",
        }

    # The result -------------------------------------------------------------------------------------------------

    def result(self, seconds: float) -> dict[str, Any]:
        """What `--json` writes and the run folder keeps."""
        plan = self.plan
        stages = {
            name: {
                "key": node.key,
                "folder": redact(node.artifact.url),
                "reused": node.reused,
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
            result["metrics"] = plan.nodes["evaluate"].artifact.result()["metrics"]
        if "register" in plan.nodes:
            result |= {key: plan.nodes["register"].artifact.result()[key] for key in ("model_uri", "mlflow_run_id")}
            result["commands"] = self.commands()
        plan.run_folder.write_json("result.json", result)
        return result


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as "section.field": text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found


def scores(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics as "model/split/score", without what is given by class, bin, city or device."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if (isinstance(value, dict) and prefix.count("/") < 2) or (key.startswith(("seen_", "unseen_")) and value):
            found |= scores(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def stage_settings(config: Config, name: str) -> dict[str, str]:
    """The settings that a stage reads, for MLflow."""
    sections = {
        "prepare": ("audio", "data"),
        "pretrain": ("model", "pretrain"),
        "pseudo_label": ("pseudo_label",),
        "consistency": ("model", "finetune", "consistency"),
        "evaluate": ("evaluate",),
        "register": ("tracking",),
    }.get(name, ("model", "finetune"))
    return flat({section: to_dict(getattr(config, section)) for section in sections})
