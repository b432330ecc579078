"""What a sweep logs to MLflow: stored first, so that nothing is lost when the server is down or the driver dies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymae.config import TrackingConfig
from raymae.storage.folder import Folder
from raymae.sweep.results import read_records
from raymae.sweep.trials.recorder import Recorder
from raymae.tracking.reporter import Reporter, begin


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


def reporter_of(storage: Folder, folder: str = "sweeps/one") -> Reporter:
    return Reporter(TrackingConfig(), storage, storage / folder)


def test_a_storage_at_a_url_without_a_tracking_uri_has_nothing_waiting() -> None:
    assert not Reporter(TrackingConfig(), Folder("memory://storage"), Folder("memory://storage/runs/one")).has_waiting()


def recorder_of(reporter: Reporter) -> Recorder:
    return Recorder(reporter.folder, lambda values: dict(values), reporter, "key", known=0, total=3, tensorboard=None)


def trial(ratio: float) -> Any:
    return SimpleNamespace(trial_id=f"trial{ratio}", config={"model.mask_ratio": ratio})


def report(recorder: Recorder, one: Any, steps: list[int], **result: Any) -> None:
    events = [{"step": step, "time": 1000.0 + step, "metrics": {"loss": 1.0 / step}} for step in steps]
    recorder.on_trial_result(0, [], one, {"events": events, **result})


def test_the_next_job_delivers_what_a_dead_sweep_logged(storage: Folder) -> None:
    from mlflow.tracking import MlflowClient

    reporter = reporter_of(storage)
    reporter.write(begin("", "sweep-key", "small-sweep", {"seed": "0"}, {}))
    recorder = recorder_of(reporter)
    good, bad, open_one = trial(0.6), trial(0.7), trial(0.8)
    for one in (good, bad, open_one):
        recorder.on_trial_start(0, [], one)
        report(recorder, one, [1, 2])
    report(recorder, good, [2, 3], status="finished", score=0.75)  # its process died after step 1 and was restarted
    recorder.on_trial_complete(0, [], good)
    recorder.on_trial_error(0, [], SimpleNamespace(**vars(bad), error_msg="no memory", get_error=lambda: None))
    # the driver dies here; another job with the same storage finds what it logged
    reporter.outbox.mark()
    other = reporter_of(storage, "runs/other")
    assert other.has_waiting()
    other.start(begin("", "other", "another", {}, {}))
    assert other.close("FINISHED") is None

    client = MlflowClient(reporter.uri)
    experiment = client.get_experiment_by_name(TrackingConfig().experiment)
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    children = {name: run for name, run in found.items() if "mlflow.parentRunId" in run.data.tags}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {found["small-sweep"].info.run_id}
    assert {run.data.params["model.mask_ratio"]: run.info.status for run in children.values()} == {
        "0.6": "FINISHED",
        "0.7": "FAILED",
        "0.8": "RUNNING",
    }
    (best,) = (run for run in children.values() if run.data.params["model.mask_ratio"] == "0.6")
    history = client.get_metric_history(best.info.run_id, "loss")
    assert sorted((point.step, point.timestamp) for point in history) == [(1, 1001000), (2, 1002000), (3, 1003000)]
    assert best.data.metrics["score"] == 0.75
    assert {one.status for one in read_records(reporter.folder).values()} == {"finished", "failed"}

    again = reporter_of(storage)
    again.start()
    assert again.close("FINISHED") is None
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses["small-sweep"] == "FINISHED"
    assert sorted(statuses.values()) == ["FAILED", "FINISHED", "FINISHED", "FINISHED", "KILLED"]


def test_a_record_costs_as_many_requests_however_many_there_are(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver of a sweep of a thousand trials would otherwise read half a million records."""
    recorder, requests = recorder_of(reporter_of(storage)), list[str]()
    for name in ("read_bytes", "exists", "names"):
        real = getattr(Folder, name)

        def counted(*given: Any, real: Any = real, name: str = name, **named: Any) -> Any:
            requests.append(name)
            return real(*given, **named)

        monkeypatch.setattr(Folder, name, counted)
    counts = []
    for number in range(30):
        one = trial(number / 100)
        recorder.on_trial_start(0, [], one)
        report(recorder, one, [1], status="finished", score=0.5)
        before = len(requests)
        recorder.on_trial_complete(0, [], one)
        counts.append(len(requests) - before)
    assert max(counts[5:]) <= counts[5]


def test_tensorboard_shows_a_trials_values_beside_its_score(storage: Folder, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    reporter = reporter_of(storage)
    recorder = Recorder(
        reporter.folder,
        lambda values: dict(values),
        reporter,
        "key",
        known=0,
        total=1,
        tensorboard=str(tmp_path / "tb"),
    )
    one = trial(0.6)
    recorder.on_trial_start(0, [], one)
    report(recorder, one, [1, 2], status="finished", score=0.75)
    recorder.on_trial_complete(0, [], one)
    (file,) = (tmp_path / "tb").rglob("events.*")
    content, place, values, found = file.read_bytes(), 0, {}, {}
    while place < len(content):  # length, its checksum, an event, its checksum
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            values[value.tag] = value.simple_value
            data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            found |= {name: one.number_value for name, one in data.session_start_info.hparams.items()}
    assert found == {"model.mask_ratio": 0.6}
    assert values["score"] == 0.75
    assert "_hparams_/experiment" in values
    assert values["loss"] == 0.5
