"""A sweep from its space to its best settings; trials that an earlier start finished are not run again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raymae.config import Config, redact, to_dict
from raymae.pipeline.run import run_plan
from raymae.storage.folder import LEASE, Folder, open_storage
from raymae.storage.lease import leased
from raymae.sweep.conditions import check_conditions, check_different
from raymae.sweep.outcome import HEAT_MAP, Outcome
from raymae.sweep.page.page import PAGE, Progress, State, write_page
from raymae.sweep.points import (
    Planner,
    Point,
    copy_weights,
    effective_axes,
    shared,
    store_values,
    sweep_key,
    val_fingerprint,
)
from raymae.sweep.results import BEST, CSV, TABLE, Record, read_records, write_record
from raymae.sweep.search.population import check_changeable
from raymae.sweep.space import Axis, drawn, grid, parse_space, size
from raymae.sweep.tables import table
from raymae.tracking.reporter import Reporter, begin, flat, log_entry
from raymae.tracking.uri import tracking_uri, ui_command
from raymae.training.guards.deadline import Deadline, TimeIsUpError
from raymae.training.interval import Interval

if TYPE_CHECKING:
    from raymae.sweep.trials.sizes import Sizes

PAGE_SECONDS = 5.0
"""Least seconds between two writings of the page."""
PAGE_SHARE = 0.05
"""Most of the driver's time that goes into the page, which takes the longer the more trials there are."""


def run_sweep(config: Config) -> dict[str, Any]:
    """Run a sweep, or the rest of it, and return its result (see jobs/README.md for the keys).

    Raises:
        ValueError: the space can't be read or changes nothing, split val has no labelled clip, MLflow has no URI, no
            machine has the resources of a trial; at the end, no trial finished.
        TimeIsUpError: `max_hours` are over; finished trials are recorded, the others resume from their last checkpoint.
    """
    return complete(Sweep(config, open_storage(config.storage)))


def complete(sweep: Sweep) -> dict[str, Any]:
    """Run what is left of a sweep and return its result, as `run_sweep`."""
    sweep.announce()
    if sweep.left:
        sweep.check()
    if sweep.config.dry_run:
        return {"sweep_folder": redact(sweep.folder.url), "points": [point.label for point in sweep.points or ()]}
    waiting = sweep.search() if sweep.left else sweep.deliver()
    result = sweep.conclude()
    if waiting:
        print(waiting)
        result["undelivered"] = waiting
    return result


class Sweep:
    """One start of a sweep."""

    def __init__(self, config: Config, storage: Folder) -> None:
        self.started, self.config, self.storage = time.time(), config, storage
        if config.seeds > 1:
            raise ValueError(f"seeds = {config.seeds}: a sweep runs one seed; run the best settings with several")
        if config.folds:
            raise ValueError("folds: a sweep is judged by one split val; run the best settings with --folds")
        self.deadline = Deadline(config.max_hours, self.started)
        axes = parse_space(config)
        check_conditions(config, axes)
        self.planner = Planner(config, storage)
        if config.sweep.search == "population":
            plan = self.planner.plan({})
            check_changeable(axes, plan.nodes[plan.final].stage)
        val_fingerprint(self.planner.clips_of(config))
        self.axes = effective_axes(self.planner, axes)
        self.key = sweep_key(self.planner, self.axes)
        self.folder = storage / f"sweeps/{config.recipe or 'run'}-{self.key}"
        self.points = points_of(self.planner, self.axes)
        self.before = self._known()
        self.result_grid: Any = None
        self._outcome: Outcome | None = None
        self._recorded: dict[str, Record] | None = None
        """All records, from when this process alone writes them."""
        self._page = Interval(PAGE_SECONDS)
        self.trials_started, self.done = self.started, len(self.before)
        self.reporter = Reporter(config.tracking, storage, self.folder)

    @property
    def total(self) -> int:
        """Number of trials."""
        sweep = self.config.sweep
        if sweep.search == "population":
            return sweep.count * sweep.generations
        return sweep.count if self.points is None else len(self.points)

    @property
    def left(self) -> int:
        """Number of trials that have to run."""
        return max(0, self.total - len(self._known()))

    def check(self) -> None:
        """ValueError where MLflow has no URI, before anything starts."""
        tracking_uri(self.config.tracking, self.storage)

    def _known(self) -> dict[str, Record]:
        """The records of trials that are not run again, by name."""
        found = {name: one for name, one in read_records(self.folder).items() if one.counts}
        if self.points is None:
            return found
        found = {name: one for name, one in found.items() if one.status != "refused"}  # these are planned anew
        keys = {point.key for point in self.points if point.plan is not None}
        refused = {point.key: refusal(point) for point in self.points if point.plan is None}
        return {name: one for name, one in found.items() if one.key in keys} | refused

    def announce(self) -> None:
        """Print the space, the number of recorded trials, and what the trials share."""
        sweep = self.config.sweep
        print(f"sweep of recipe {self.config.recipe}, storage {redact(self.storage.url)}: {self.total} trials")
        for axis in self.axes:
            print(f"  {axis.text()}")
        rule = {"asha": "ASHA", "median": "the median rule"}.get(sweep.stopping)
        stopping = f"; {rule} stops bad trials from {sweep.grace:.0%} of the last stage on" if rule else ""
        if sweep.search == "population":
            stopping = f"; {sweep.count} members, {sweep.generations} generations, a trial is one of one member"
        print(f"  search {sweep.search}, compared by {self.planner.metric} on split val{stopping}")
        print(f"  {len(self.before)} recorded earlier, {self.left} to run")
        for one in self.before.values():
            if one.status == "refused":
                print(f"  {one.label}: refused: {one.error}")
        plans = [point.plan for point in self.points or [] if point.plan is not None]
        for text in shared(plans):
            print(f"  {text}")

    def deliver(self) -> str | None:
        """Deliver what an earlier start couldn't log to MLflow; a line about what still waits, or None."""
        if not self.reporter.has_waiting():
            return None
        self.reporter.start()
        return self.reporter.close("FINISHED")

    def search(self) -> str | None:
        """Run the trials that are left, unless another process does it meanwhile; a line about what couldn't be
        delivered to MLflow, or None."""

        def check() -> None:
            self.deadline.check("while another process runs the same sweep")

        with leased(self.folder / LEASE, lambda: not self.left, check) as lease:
            self.before = self._known()  # as another process may have left them
            return self._search() if lease else self.deliver()

    def _search(self) -> str | None:
        from raymae.cluster.connect import start_ray
        from raymae.sweep.trials.sizes import sizes_of

        self.folder.write_json("config.json", to_dict(self.config))
        for one in self.before.values():
            if one.status == "refused" and not self.folder.exists(f"trials/{one.key}.json"):
                write_record(self.folder, one)
        dashboard = start_ray(self.config.compute)
        sizes = sizes_of(self.config.sweep, self.config.compute, self.deadline)
        self._prepare()
        name = f"{self.config.recipe}-sweep"
        self.reporter.start(begin("", f"sweep-{self.key}", name, flat(to_dict(self.config)), {}))
        tensorboard = self.folder.path("tensorboard") if self.storage.is_local else None
        self._print_addresses(tensorboard, dashboard)
        try:
            self._check_end(self._run_trials(tensorboard, sizes))
        except TimeIsUpError:
            self._log_results()
            self._write_page("interrupted")
            self.reporter.abandon("KILLED")
            raise
        except BaseException as error:
            self._write_page("failed" if isinstance(error, Exception) else "interrupted")
            self.reporter.abandon("FAILED")
            raise
        self._log_results()
        return self.reporter.close("FINISHED")

    def _run_trials(self, tensorboard: str | None, sizes: Sizes) -> int:
        """Run the trials that are left; returns how many have ended, recorded ones included."""
        from raymae.sweep.search.graph_search import values_of
        from raymae.sweep.trials.recorder import Recorder
        from raymae.sweep.trials.run_trials import run_trials

        self.begin_records()
        points = self.points and [one for one in self.points if one.key not in self._known()]
        recorder = Recorder(
            self.folder,
            lambda found: values_of(found, self.axes),
            self.reporter,
            self.key,
            known=len(self.before),
            total=self.total,
            tensorboard=tensorboard,
            after_record=self.after_record,
        )
        self._write_page("running")
        self.result_grid = run_trials(
            self.planner, self.axes, points, list(self.before.values()), recorder, self.deadline, sizes
        )
        return recorder.done

    def _log_results(self) -> None:
        """Log the sweep's tables and its best score so far to MLflow."""
        if not self.records:
            return
        outcome = self.outcome
        outcome.write()
        best = outcome.winner
        numbers = {"": {f"best/{outcome.metric}": best.score or 0.0}} if best else {}
        files = [file for file in (CSV, TABLE, HEAT_MAP, BEST) if self.folder.exists(file)]
        self.reporter.write(log_entry("", numbers, f"sweeps/{self.folder.url.rpartition('/')[2]}", files))

    def _check_end(self, done: int) -> None:
        """TimeIsUpError where trials are left at the deadline."""
        if self.deadline.is_over() and done < self.total:
            raise self.deadline.error(f"after {done} of {self.total} trials")

    def _prepare(self) -> None:
        """Make the feature store of every front end and data set among the points, and copy given weights."""
        for values in store_values(self.axes):
            point = self.planner.point(values)
            if point.plan is None:
                continue
            copy_weights(point.plan)
            if not point.plan.nodes["prepare"].reused:
                run_plan(self.planner.config_of(values), "prepare", self.storage, self.started)

    def _print_addresses(self, tensorboard: str | None, dashboard: str | None) -> None:
        print(f"open MLflow:       {ui_command(self.config.tracking, self.storage)}")
        if tensorboard:
            print(f"open TensorBoard:  tensorboard --logdir '{tensorboard}'")
        print(f"the sweep's page:  {redact(self.folder.url)}/{PAGE}")
        if dashboard:
            print(f"Ray's dashboard:   http://{dashboard}")

    # The result -------------------------------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """The trials' records, failed ones included; those of a grid in its order."""
        found = read_records(self.folder) if self._recorded is None else self._recorded
        if self.points is None:
            return list(found.values())
        known = {point.key: refusal(point) for point in self.points if point.plan is None} | found
        return [known[point.key] for point in self.points if point.key in known]

    @property
    def outcome(self) -> Outcome:
        """What the trials recorded so far say; the same object while no other has ended, since comparing takes long."""
        records = self.records
        if self._outcome and self._outcome.records == records:
            return self._outcome
        self._outcome = Outcome(
            config=self.config,
            folder=self.folder,
            axes=self.axes,
            metric=self.planner.metric,
            records=records,
        )
        return self._outcome

    def _write_page(self, state: State, outcome: Outcome | None = None) -> None:
        """Write the page with the trials that have ended so far."""
        seconds, known = time.time() - self.trials_started, len(self.before)
        progress = Progress(state=state, total=self.total, known=known, done=self.done, seconds=seconds)
        write_page(outcome or self.outcome, progress)

    def begin_records(self) -> None:
        """From now on this process alone writes records."""
        self.trials_started, self._recorded = time.time(), read_records(self.folder)

    def after_record(self, name: str, record: Record, done: int) -> None:
        """Note a record that has been written, as its name, itself and the number of trials that have ended."""
        self.done = done
        if self._recorded is not None:
            self._recorded[name] = record
        if self._page.is_over():
            started = time.monotonic()
            self._write_page("running")
            self._page = Interval(max(PAGE_SECONDS, (time.monotonic() - started) / PAGE_SHARE))

    def conclude(self) -> dict[str, Any]:
        """Write and print the tables, the heat map and the best settings; ValueError where no trial finished."""
        outcome, url = self.outcome, redact(self.folder.url)
        outcome.write()
        self._write_page("finished", outcome)
        print(f"\n{table(outcome.records, self.axes, outcome.metric, outcome.standings)}\n")
        print(f"trials:            {url}/{CSV}, {TABLE}, {HEAT_MAP}")
        print(f"open the page:     {url}/{PAGE}")
        for line in outcome.closing():
            print(line)
        result = {
            "job": "sweep",
            "recipe": self.config.recipe,
            "seconds": time.time() - self.started,
            "sweep_folder": url,
            **outcome.result(),
        }
        self.folder.write_json("result.json", result)
        return result


def points_of(planner: Planner, axes: Sequence[Axis]) -> list[Point] | None:
    """The points of a grid or a random search; None for Optuna. ValueError where every point is refused, or
    two compute the same."""
    sweep = planner.config.sweep
    if sweep.search == "optuna":
        most = size(axes)
        if most is not None and most <= (sweep.count):
            raise ValueError(
                f"sweep.search = optuna: the space has {most} points, no more than the {sweep.count} "
                "trials: choose grid, which tries each once"
            )
        points = [planner.point({axis.path: axis.ends[place] for axis in axes}) for place in (0, 1)]
    elif sweep.search == "population":
        points = [planner.point({axis.path: axis.ends[place] for axis in axes}) for place in (0, 1)]
    else:
        several = grid(axes) if sweep.search == "grid" else drawn(axes, sweep.count, planner.config.seed)
        points = [planner.point(values) for values in several]
    if all(point.plan is None for point in points):
        raise ValueError(f"sweep.space: every trial would be refused; {points[0].label}: {points[0].refused}")
    check_different(points)
    return None if sweep.search in ("optuna", "population") else points


def refusal(point: Point) -> Record:
    """The record of a point that the configuration refuses."""
    return Record(key=point.key, changes=point.values, status="refused", error=point.refused)
