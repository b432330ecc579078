"""A sweep's trials, records and figures, without Ray."""

from __future__ import annotations

import csv
import io
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from safetensors.torch import load

from raymae.audio.errors import UnreachableError
from raymae.cluster import connect
from raymae.config import Config, DataConfig, PseudoLabelConfig, SweepConfig
from raymae.datasets.rows import rows_of
from raymae.evaluation.scores import Part
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.storage import lease
from raymae.storage.folder import Folder, open_storage
from raymae.sweep.heatmap import sweep_figure
from raymae.sweep.points import Planner, Point, effective_axes, sweep_key
from raymae.sweep.results import Record, best_of, ranked, read_records, write_record
from raymae.sweep.run import Sweep, run_sweep
from raymae.sweep.search.graph_search import AGAIN
from raymae.sweep.search.population import Segment
from raymae.sweep.space import grid, parse_axis, parse_space
from raymae.sweep.standing import read_predictions
from raymae.sweep.tables import table, table_csv
from raymae.sweep.trials import run_trials
from raymae.sweep.trials.sizes import AVOIDED, Sizes
from raymae.sweep.trials.trial import Trial, segment_spec
from raymae.training.guards.deadline import FOREVER, Deadline, TimeIsUpError
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY

SIZES = Sizes(workers=1, cpus=1, gpus=0, room=2, grows=False)
SPACE = ("model.mask_ratio=0.5,0.7", "pseudo_label.coverage=0.4,0.8")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A metadata table of 60 clips."""
    folder = tmp_path_factory.mktemp("recordings")
    clips = write_clips(folder, 60)
    return write_table(folder, clips), clips


def make_config(recordings: tuple[Path, pa.Table], folder: Path) -> Config:
    """A sweep whose trials take seconds."""
    return replace(
        TINY,
        recipe="tiny",
        storage=str(folder / "storage"),
        data=DataConfig(dataset="table", tables=(str(recordings[0]),)),
        pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, probe_clips=0),
        finetune=replace(TINY.finetune, epochs=6),
        pseudo_label=PseudoLabelConfig(confidence_threshold=None, coverage=0.5),
        sweep=SweepConfig(space=SPACE),
    )


@pytest.fixture
def config(recordings: tuple[Path, pa.Table], tmp_path: Path) -> Config:
    return make_config(recordings, tmp_path)


@pytest.fixture
def planner(config: Config) -> Planner:
    return make_planner(config)


def make_planner(config: Config) -> Planner:
    """A planner with a feature store made without Ray."""
    planner = Planner(config, open_storage(config.storage))
    make = make_store(Path(planner.storage.path()), planner.clips_of(config))
    node = replace(planner.plan({}), target="prepare").nodes["prepare"]
    for name in ("clips.parquet", "manifest.json"):
        node.artifact.write_bytes(name, make.folder.read_bytes(name))
    node.artifact.finish(make.folder.result())
    return planner


LOW, HIGH = {"pseudo_label.coverage": 0.4}, {"pseudo_label.coverage": 0.8}
Ended = tuple[Planner, dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def first(recordings: tuple[Path, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A trial of low coverage that has ended: its planner, its result and its reports."""
    torch.set_num_threads(1)
    planner, reports = make_planner(make_config(recordings, tmp_path_factory.mktemp("first"))), []
    return planner, Trial(planner.plan(LOW), reports.append).run(), reports


def points(planner: Planner) -> list[Point]:
    return [planner.point(values) for values in grid(parse_space(planner.config))]


# Trials --------------------------------------------------------------------------------------------------------------


def test_trials_share_their_stages_and_reach_the_pipelines_keys(first: Ended) -> None:
    planner, one, reports = first
    second = Trial(planner.plan(HIGH), lambda report: None).run()
    names = ["prepare", "pretrain", "finetune", "pseudo_label", "student"]
    assert list(one["stages"]) == names
    assert [stage["reused"] for stage in one["stages"].values()] == [True, False, False, False, False]
    assert [stage["reused"] for stage in second["stages"].values()] == [True, True, True, False, False]
    assert not (planner.storage / "claims").names() or not any(
        (planner.storage / "claims" / name).names() for name in (planner.storage / "claims").names()
    )

    config = planner.config_of(LOW)
    whole = Plan(config, planner.clips_of(config), planner.storage, "register")
    assert all(whole.nodes[name].reused for name in names[1:]), "the pipeline finds what the trial made"
    result = whole.nodes["student"].artifact.result()
    assert one["score"] == result["selection"]["value"] == result["metrics"]["val/macro_accuracy"]

    scored = [report for report in reports if "percent" in report]
    assert [report["percent"] for report in scored] == sorted({report["percent"] for report in scored})
    assert all(report["stage"] == "student" and 0 < report["percent"] < 100 for report in scored)
    events = [event for report in [*reports, one] for event in report["events"]]
    assert [event["step"] for event in events] == sorted({event["step"] for event in events})
    assert {name.partition("/")[0] for event in events for name in event["metrics"]} == {
        "pretrain",
        "finetune",
        "student",
    }


def test_a_trial_keeps_the_predictions_that_its_score_is_of(first: Ended, tmp_path: Path) -> None:
    planner, one, _ = first
    folder, trial = Folder(str(tmp_path)), Trial(planner.plan(LOW), lambda report: None)
    again = trial.run()
    score = trial.predict(folder, Point(LOW).key)
    record = Record(key=Point(LOW).key, changes=LOW, status="finished", score=one["score"])
    tables, names = read_predictions(folder, [record.key])
    part = Part(tables[record.key], names, "single")
    assert part.scores()["macro_accuracy"] == score == pytest.approx(one["score"])
    assert len(part.groups) == len(val_rows := rows_of(planner.clips_of(planner.config), "val", labelled=True)) > 0
    assert len(val_rows) == part.scores()["clips"]
    assert again["flops"] == one["flops"] > 0, "whoever ran the stages"


def test_a_stopped_trial_can_be_run_again(first: Ended) -> None:
    planner, changes = first[0], {"pseudo_label.coverage": 0.6}

    def stop(report: dict[str, Any]) -> None:
        if "percent" in report:
            raise SystemExit(0)  # as Tune ends a trial's thread

    with pytest.raises(SystemExit):
        Trial(planner.plan(changes), stop).run()
    again = Trial(planner.plan(changes), lambda report: None).run()
    assert [name for name, stage in again["stages"].items() if not stage["reused"]] == ["student"]
    assert again["score"] is not None


def test_a_trial_ends_at_its_deadline(planner: Planner) -> None:
    over = Deadline(1e-9, time.time() - 60)
    with pytest.raises(TimeIsUpError, match="before pretrain"):
        Trial(planner.plan({}), lambda report: None, partial(InProcess, deadline=over)).run()


def test_a_trial_needs_the_feature_store(config: Config) -> None:
    planner = Planner(config, open_storage(config.storage))
    with pytest.raises(ValueError, match=r"the feature store .* is missing"):
        Trial(planner.plan({}), lambda report: None).run()


# Points --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "planned", "status"),
    [
        (ValueError("no such class"), True, "failed"),
        (ValueError("no such class"), False, "refused"),
        (FileNotFoundError("/data/x"), False, "failed"),
        (UnreachableError("no answer"), False, "failed"),
    ],
)
def test_what_one_node_cannot_plan_is_tried_again(
    planner: Planner, monkeypatch: pytest.MonkeyPatch, error: Exception, planned: bool, status: str
) -> None:
    def plan(*_: Any) -> None:
        raise error

    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(run_trials.tune, "report", reports.append)
    monkeypatch.setattr(Planner, "plan", plan)
    monkeypatch.setattr(run_trials.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    run_trials.train_trial({run_trials.POINT: {}}, planner, (), planner.storage, FOREVER, SIZES, planned=planned)
    assert [one["status"] for one in reports] == [status]
    assert str(error) in reports[0]["error"]
    # another node may see what this one doesn't; a mistake in the settings is the same everywhere
    again = None if type(error) is ValueError else "here"
    assert reports[0].get(AGAIN) == again
    run_trials.train_trial(
        {run_trials.POINT: {}, AVOIDED: "here"}, planner, (), planner.storage, FOREVER, SIZES, planned=planned
    )
    assert AGAIN not in reports[1], "tried once more, and no more"


def test_the_key_depends_on_the_results_and_not_on_the_resources(config: Config) -> None:
    def key(**sweep: Any) -> str:
        changed = replace(config, sweep=replace(config.sweep, **sweep))
        planner = Planner(changed, open_storage(config.storage))
        return sweep_key(planner, parse_space(changed))

    random = {"search": "random", "trials": 4}
    assert key() == key(cpus_per_worker=2.0, max_concurrent=1)
    assert key(**random) == key(**random | {"trials": 9})
    assert len({key(), key(**random), key(space=SPACE[:1]), key(stopping="none"), key(grace=0.5)}) == 5


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (("evaluate.probe_clips=1,2",), r"evaluate\.probe_clips changes nothing that the stages .*student compute"),
        (("storage=a,b",), "storage changes nothing"),
        (("pretrain.report_steps=1,2",), "changes nothing"),
        (
            ("pseudo_label.confidence_threshold=.7,.8",),
            r"takes the place of pseudo_label\.coverage, now 0\.5: vary that one, or set --pseudo-label\.coverage None",
        ),
        (("pseudo_label.confidence_threshold=.7,.8", SPACE[1]), r"which is varied, too: vary one of them"),
        (
            (SPACE[1], "pseudo_label.rule=fixed,freematch"),
            r"pseudo_label\.coverage has an effect with pseudo_label\.rule = fixed only, not with freematch: leave "
            r"freematch out of pseudo_label\.rule",
        ),
        (("pseudo_label.threshold_floor=.1,.2",), r"with pseudo_label\.rule = flexmatch only.*rule flexmatch, or"),
        (("consistency.ratio=2,4",), r"consistency\.ratio has no effect: this recipe has no --unlabelled consistency"),
        (
            (SPACE[1], "unlabelled=pseudo_labels,consistency"),
            r"coverage=0\.4 or pseudo_label\.coverage=0\.8 beside unlabelled=consistency compute the same: name one of "
            r"them, or leave unlabelled=consistency to a sweep of its own",
        ),
        (("model.embed_dim=31,33",), "every trial would be refused"),
    ],
)
def test_a_space_without_effect_is_refused_at_once(
    config: Config, space: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=message):
        run_sweep(replace(config, sweep=SweepConfig(space=space)))


def test_a_sweep_without_labels_in_val_says_how_to_get_some(config: Config, tmp_path: Path) -> None:
    rows = write_clips(tmp_path, 60).to_pylist()
    for row in rows:
        row["split"] = "train" if row["split"] == "val" else row["split"]
    table = write_table(tmp_path, pa.Table.from_pylist(rows))
    other = replace(config, data=DataConfig(dataset="table", tables=(str(table),)))
    with pytest.raises(ValueError, match=r"no clip of split val has a scene_label.*--data\.split\.val-share"):
        run_sweep(other)


def test_a_val_of_one_group_cannot_choose(config: Config, tmp_path: Path) -> None:
    rows = write_clips(tmp_path, 60).to_pylist()
    for row in rows:
        row["group"] = "street" if row["split"] == "val" else row["group"]
    table = write_table(tmp_path, pa.Table.from_pylist(rows))
    other = replace(config, data=DataConfig(dataset="table", tables=(str(table),)))
    with pytest.raises(ValueError, match=r"split val are of one group, 'street'.*--data\.split\.val-share"):
        run_sweep(other)


def test_other_validation_clips_are_refused(config: Config, tmp_path: Path) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 80))
    planner = Planner(config, open_storage(config.storage))
    point = planner.point({"data.tables": (str(table),)})
    assert "other clips or labels" in point.refused


def test_a_field_with_an_effect_is_kept(planner: Planner) -> None:
    axes = [*parse_space(planner.config), parse_axis("finetune.lr=log:1e-4..1e-2")]
    assert effective_axes(planner, axes) == axes


def test_the_default_space_keeps_the_axes_with_an_effect(planner: Planner) -> None:
    unasked = replace(planner, config=replace(planner.config, sweep=SweepConfig()))
    axes = parse_space(unasked.config)
    assert effective_axes(unasked, [*axes, parse_axis("evaluate.probe_clips=1,2")]) == axes
    with pytest.raises(ValueError, match="the default space changes nothing"):
        effective_axes(unasked, [])


# Records -------------------------------------------------------------------------------------------------------------


def record(first: float, second: float, status: Any = "finished", score: float | None = 0.5, **more: Any) -> Record:
    values = {"model.mask_ratio": first, "pseudo_label.coverage": second}
    return Record(key=Point(values).key, changes=values, status=status, score=score, **more)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    finished = record(0.5, 0.4, history=[{"percent": 10.0, "step": 3, "score": 0.2}], seconds=2.5)
    tuples = Record(key="k", changes={"model.patch_size": (8, 8)}, status="failed", error="ValueError: no")
    for one in (finished, tuples):
        write_record(folder, one)
    assert read_records(folder) == {finished.key: finished, "k": tuples}
    write_record(folder, replace(tuples, status="finished", error=""))
    write_record(folder, finished)
    found = read_records(folder)
    assert found["k"].status == "finished", "what failed is run again and replaced"
    assert set(found) == {"k", finished.key, f"{finished.key}-2"}
    (tmp_path / "trials" / "x.json").write_text('{"key": 1}')
    with pytest.raises(ValueError, match=r"trials/x\.json is damaged"):
        read_records(folder)


@given(st.lists(st.tuples(st.sampled_from(["finished", "stopped", "failed"]), st.floats(0, 1)), max_size=9))
def test_the_best_is_the_best_of_the_finished(ended: list[tuple[Any, float]]) -> None:
    records = [record(k / 10, 0.5, status, None if status == "failed" else x) for k, (status, x) in enumerate(ended)]
    finished = [x for status, x in ended if status == "finished"]
    best = best_of(records)
    assert (best.score if best else None) == max(finished, default=None)
    assert not best or ranked(records)[0].score == best.score
    assert [one.status for one in ranked(records)] == sorted(
        (status for status, _ in ended), key=["finished", "stopped", "failed"].index
    )


def test_tables_say_how_every_trial_ended() -> None:
    axes = [parse_axis(text) for text in SPACE]
    stages = {"prepare": {"reused": True}, "pretrain": {"reused": True}}
    records = [record(0.5, 0.4, "failed", None, error="ValueError: a|b"), record(0.7, 0.4, score=0.75, stages=stages)]
    lines = table(records, axes, "val/macro_accuracy").splitlines()
    assert [word in lines[2] for word in ("0.7500", "finished", "shared: pretrain")] == [True] * 3
    assert [word in lines[3] for word in ("failed", "a\\|b")] == [True] * 2
    rows = list(csv.DictReader(io.StringIO(table_csv(records, axes, "val/macro_accuracy"))))
    assert [row["score"] for row in rows] == ["", "0.75"]
    assert rows[0]["error"] == "ValueError: a|b"
    assert [row["model.mask_ratio"] for row in rows] == ["0.5", "0.7"]


def test_every_cell_of_the_heat_map_says_what_it_is() -> None:
    axes = [parse_axis(text) for text in SPACE]
    records = [record(0.5, 0.4, score=0.61), record(0.5, 0.8, "stopped", 0.3), record(0.7, 0.4, "failed", None)]
    plot, _ = sweep_figure(records, axes, "val/macro_accuracy", "tiny").axes
    assert {text.get_text() for text in plot.texts} == {"0.610", "(0.300)\nstopped", "failed", "missing"}
    hatched = [one.get_hatch() for one in plot.patches if isinstance(one, Rectangle)]
    assert hatched.count(None) == 1
    assert (plot.get_ylabel(), plot.get_xlabel()) == ("model.mask_ratio", "pseudo_label.coverage")
    assert [tick.get_text() for tick in plot.get_yticklabels()] == ["0.5", "0.7"]


def test_a_third_field_leaves_the_best_in_its_cell_and_ranges_are_points() -> None:
    axes = [parse_axis(text) for text in (*SPACE, "seed=0,1")]
    place = {"model.mask_ratio": 0.5, "pseudo_label.coverage": 0.4}
    records = [
        Record(key=str(seed), changes={**place, "seed": seed}, status="finished", score=score)
        for seed, score in enumerate((0.2, 0.4))
    ]
    plot, _ = sweep_figure(records, axes, "val/mAP", "tiny").axes
    assert "0.400" in [text.get_text() for text in plot.texts]
    assert "best over seed" in plot.get_title()
    ranges = [parse_axis("finetune.lr=log:1e-4..1e-2"), axes[1]]
    drawn = [replace(one, changes={"finetune.lr": 1e-3, "pseudo_label.coverage": 0.4}) for one in records]
    plot, _ = sweep_figure([*drawn, replace(drawn[0], status="failed", score=None)], ranges, "val/mAP", "tiny").axes
    assert (plot.get_xscale(), plot.get_xlabel()) == ("log", "finetune.lr")


# Replay --------------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_not_run_again(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, sweep=SweepConfig(space=("model.patch_size=8+8,8+40", SPACE[1])))
    storage = open_storage(config.storage)
    sweep = Sweep(config, storage)
    assert sweep.points is not None
    known = [point for point in sweep.points if point.plan is not None]
    refused = len(sweep.points) - len(known)
    assert (len(known) + refused, sweep.left) == (4, len(known))
    assert refused == 2
    for number, point in enumerate(known):
        write_record(
            sweep.folder,
            Record(key=point.key, changes=point.values, status="finished", score=0.5 + number / 10, seconds=1),
        )
        assert Sweep(config, storage).left == len(known) - number - 1
    failed = replace(Record(key=known[0].key, changes=known[0].values, status="failed"), error="OSError: gone")
    sweep.folder.write_json(f"trials/{failed.key}.json", {**failed.__dict__})
    assert Sweep(config, storage).left == 1, "what failed is tried again"
    sweep.folder.write_json(f"trials/{failed.key}.json", {**failed.__dict__, "status": "finished", "score": 0.5})

    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    result = run_sweep(replace(config, storage=storage.url))
    assert result["best"]["changes"] == known[-1].values
    assert [one["status"] for one in result["trials"]].count("refused") == refused
    assert sweep.folder.read_json("best.json")["pseudo_label.coverage"] == 0.8
    assert {"sweep.csv", "sweep.md", "best.json", "result.json"} <= set(sweep.folder.names())
    assert sweep.folder.read_bytes("figures/heatmap.png").startswith(b"\x89PNG")
    assert "run the best:      python jobs/pipeline.py tiny --settings" in capsys.readouterr().out


def test_no_finished_trial_is_an_error_with_the_commonest_reason(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(config.storage)
    sweep = Sweep(config, storage)
    for point in sweep.points or ():
        write_record(
            sweep.folder, Record(key=point.key, changes=point.values, status="failed", error="ValueError: bad")
        )
    monkeypatch.setattr(Sweep, "search", lambda self: None)
    with pytest.raises(ValueError, match="no trial finished: ValueError: bad"):
        run_sweep(replace(config, storage=storage.url))


def test_a_dry_run_starts_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    found = run_sweep(replace(config, dry_run=True))
    assert found["points"][0] == "model.mask_ratio=0.5 pseudo_label.coverage=0.4"


def test_optuna_gets_the_scores_of_known_trials(config: Config) -> None:
    from raymae.sweep.search.graph_search import as_text, values_of
    from raymae.sweep.search.optuna_study import study_of

    axes = [parse_axis("finetune.lr=log:1e-4..1e-2"), parse_axis("model.patch_size=8+8,4+8"), parse_axis("seed=0..5")]
    values = {"finetune.lr": 1e-3, "model.patch_size": (4, 8), "seed": 5}
    assert values_of(as_text(values, axes), axes) == values_of({"point": as_text(values, axes)}, axes) == values
    known = [
        Record(key="a", changes=values, status="finished", score=0.7),
        Record(key="b", changes=values, status="failed"),
    ]
    study = study_of(SweepConfig(search="optuna"), axes, known, seed=0)
    assert [trial.value for trial in study.trials] == [0.7]
    suggested = study.ask("one")
    study.tell("one", {"score": 0.8})
    study.ask("two")
    study.tell("two", None)
    assert [trial.value for trial in study.trials] == [0.7, 0.8, None]
    assert 1e-4 <= suggested["finetune.lr"] <= 1e-2
    assert suggested["model.patch_size"] in ((8, 8), (4, 8))


def test_optuna_is_for_spaces_larger_than_the_trials(config: Config) -> None:
    other = replace(config, sweep=SweepConfig(space=SPACE, search="optuna", trials=4))
    with pytest.raises(ValueError, match="the space has 4 points, no more than the 4 trials: choose grid"):
        Sweep(other, open_storage(config.storage))


def test_two_processes_run_a_sweep_once(config: Config, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first, and ends with its table."""
    first, second = (Sweep(config, planner.storage) for _ in range(2))
    inside, go_on, started = threading.Event(), threading.Event(), []

    def search(sweep: Sweep) -> None:
        started.append(sweep)
        inside.set()
        assert go_on.wait(60)
        for point in sweep.points or ():
            write_record(sweep.folder, Record(key=point.key, changes=point.values, status="finished", score=0.5))

    monkeypatch.setattr(Sweep, "_search", search)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    threads = [threading.Thread(target=first.search)]
    threads[0].start()
    assert inside.wait(60)
    threads.append(threading.Thread(target=second.search))
    threads[1].start()
    threads[1].join(0.5)
    assert threads[1].is_alive()
    assert started == [first]
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert started == [first], "the second computed the points, too"
    assert len(second.before) == 4
    assert second.left == 0


def test_segments_of_a_population_are_trained_and_scored(config: Config) -> None:
    """Two generations of a member with unchanged values are the whole stage to the bit; another begins from its
    weights."""
    planner = make_planner(replace(config, unlabelled=()))
    plan = planner.plan({})
    common: dict[str, Any] = {"generations": 2, "values": {}}
    first = Segment(key="a1", generation=0, member=0, **common)
    last = Segment(key="a2", generation=1, member=0, parent="a1", **common)
    other = replace(last, key="b2", values={"finetune.lr": 1e-2}, member=1)
    scores = {}
    for one in (first, last, other):
        trial = Trial(plan, lambda report: None, part=segment_spec(plan, one))
        found = trial.run()
        assert list(found["stages"]) == ["prepare", "pretrain", "finetune"]
        assert found["stages"]["finetune"] | {"seconds": 0} == {"key": one.key, "reused": False, "seconds": 0}
        scores[one.key] = trial.predict(planner.storage, one.key)
    whole = Trial(plan, lambda report: None)
    whole.run()
    weights = {
        name: read_weights(folder)
        for name, folder in (
            ("whole", whole.classifier),
            ("last", plan.storage / "artifacts/finetune/a2"),
            ("other", plan.storage / "artifacts/finetune/b2"),
        )
    }
    assert all(torch.equal(value, weights["last"][name]) for name, value in weights["whole"].items())
    assert not all(torch.equal(value, weights["other"][name]) for name, value in weights["whole"].items())
    assert Trial(plan, lambda report: None, part=segment_spec(plan, last)).run()["stages"]["finetune"]["reused"]


def read_weights(folder: Folder) -> dict[str, torch.Tensor]:
    return load(folder.read_checked("model.safetensors"))
