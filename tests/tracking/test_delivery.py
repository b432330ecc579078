"""The outbox and its delivery, to a receiver that fails before or after it has executed a request."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymae.config import TrackingConfig
from raymae.features.store import FeatureStore
from raymae.storage.events import committed_events, read_events, take_back_events, write_event
from raymae.storage.folder import Folder
from raymae.tracking import delivery
from raymae.tracking.delivery import Delivery
from raymae.tracking.outbox import Outbox, left_over, server_id
from raymae.tracking.receiver import AwayError
from raymae.tracking.reporter import begin
from raymae.training import figures
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

SERVER = "0123456789abcdef"
SECRET = "hunter2"
PATIENCE = 30.0


class RefusedError(Exception):
    """A permanent refusal of the receiver."""


class Memory:
    """An in-memory receiver with MLflow's semantics: runs by key, points and files once."""

    def __init__(self, share: float = 0.0) -> None:
        self.share, self.random = share, random.Random(0)
        self.down = False
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: list[tuple[str, str, int, float, float]] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.refused: set[str] = set()
        self.failures = 0

    def _do(self, act: Callable[[], Any]) -> Any:
        """Fail before or after the act; the caller can't know which."""
        if self.down or self.random.random() < self.share / 2:
            self.failures += 1
            raise ConnectionError(f"https://me:{SECRET}@host is away")
        found = act()
        if self.random.random() < self.share / 2:
            self.failures += 1
            raise TimeoutError
        return found

    def run(
        self,
        key: str,
        name: str,
        *,
        parent: str | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        when: float | None = None,
    ) -> str:
        run_id = f"{parent}/{key}"

        def act() -> str:
            run = self.runs.setdefault(run_id, {"name": name, "params": params, "begin": when})
            run["status"] = "RUNNING"
            return run_id

        return str(self._do(act))

    def _point(self, *point: Any) -> None:
        if point not in self.points:
            self.points.append(point)

    def log_events(self, run_id: str, events: list[dict[str, Any]]) -> None:
        seen = max((step for run, name, step, *_ in self.points if run == run_id and name == "loss"), default=-1)
        for event in events:
            if event["step"] > seen:
                for name, value in event["metrics"].items():
                    self._do(lambda event=event, name=name, value=value: self._point(
                        run_id, name, event["step"], value, event["time"]
                    ))  # fmt: skip

    def log_numbers(
        self, run_id: str, numbers: dict[str, float], prefix: str = "stage/", when: float | None = None
    ) -> None:
        for name, value in numbers.items():
            self._do(lambda name=name, value=value: self._point(run_id, prefix + name, 0, value, when))

    def log_bytes(self, run_id: str, name: str, content: bytes) -> None:
        if name in self.refused:
            raise RefusedError(f"no {name} for https://me:{SECRET}@host")
        self._do(lambda: self.files.__setitem__((run_id, name), content))

    def finish(self, run_id: str, status: str = "FINISHED", when: float | None = None) -> None:
        self._do(lambda: self.runs[run_id].update(status=status, end=when))

    def forget(self) -> None:
        pass

    def refuses(self, error: Exception) -> bool:
        return isinstance(error, RefusedError)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "FIRST_DELAY", "LONGEST_DELAY", "WAIT_SECONDS"):
        monkeypatch.setattr(delivery, name, 0.001)


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


def outbox_of(storage: Folder, name: str = "one", server: str = SERVER) -> Outbox:
    return Outbox(storage / f"runs/{name}", server)


def filled(storage: Folder, name: str = "one") -> Outbox:
    """The outbox of a run whose only stage reported ten steps and is finished."""
    outbox, artifact = outbox_of(storage, name), storage / f"artifacts/pretrain/{name}"
    outbox.write(begin("", f"job {name}", "job", {"a": "1", "uri": f"s3://me:{SECRET}@bucket/x"}, {}))
    outbox.write(begin("pretrain", "key", "pretrain", {}, {}, f"artifacts/pretrain/{name}"))
    for step in range(1, 11):
        figures = ["figures/curves.png"] if step == 5 else []
        write_event(artifact, {"step": step, "time": 1e9 + step, "metrics": {"loss": 1 / step}, "figures": figures})
    artifact.write_bytes("figures/curves.png", b"curves")
    artifact.write_bytes("report.md", b"report")
    artifact.finish({})
    numbers = {"stage/": {"seconds": 2.0, "steps": 10.0}, "": {"score": 0.5}}
    tell = {"do": "tell", "run": "pretrain", "artifact": f"artifacts/pretrain/{name}", "numbers": numbers}
    outbox.write(tell | {"files": ["report.md", "gone.md"]}, {"do": "finish", "run": "pretrain", "status": "FINISHED"})
    outbox.write({"do": "finish", "run": "", "status": "FINISHED"})
    return outbox


def assert_delivered(memory: Memory, outbox: Outbox, name: str = "one") -> None:
    """Everything in `filled` was logged once, with its times."""
    times = {(entry["do"], entry["run"]): entry["time"] for _, entries in outbox.entries() for entry in entries}
    job, stage = f"None/job {name}", f"None/job {name}/key"
    assert {run: memory.runs[run]["status"] for run in (job, stage)} == {job: "FINISHED", stage: "FINISHED"}
    for run, short in ((job, ""), (stage, "pretrain")):
        assert memory.runs[run]["begin"] == times["begin", short]
        assert memory.runs[run]["end"] == times["finish", short]
    mine = [point[1:] for point in memory.points if point[0] == stage]
    assert sorted(point for point in mine if point[0] == "loss") == [
        ("loss", step, 1 / step, 1e9 + step) for step in range(1, 11)
    ]
    logged = times["tell", "pretrain"]
    assert sorted(point for point in mine if point[0] != "loss") == [
        ("score", 0, 0.5, logged),
        ("stage/seconds", 0, 2.0, logged),
        ("stage/steps", 0, 10.0, logged),
    ]
    assert memory.files == {
        **memory.files,
        (stage, "report.md"): b"report",
        (stage, "figures/curves.png"): b"curves",
    }


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.001)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_everything_arrives_once(storage: Folder, share: float, caplog: pytest.LogCaptureFixture) -> None:
    memory, outbox = Memory(share), filled(storage)
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    assert sender.close(PATIENCE) == 0
    assert_delivered(memory, outbox)
    assert bool(memory.failures) == bool(share)
    assert len(memory.points) == len(set(memory.points)) == 13
    assert memory.runs["None/job one"]["params"] == {"a": "1", "uri": "s3://***@bucket/x"}
    assert SECRET not in caplog.text
    assert "gone.md" in caplog.text


def test_the_next_job_delivers_what_a_dead_one_left(storage: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raymae")
    memory, outbox = Memory(), filled(storage)
    memory.down = True
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    assert sender.close(0.02) == 4
    assert memory.points == []
    assert [text for text in caplog.messages if "nothing can be delivered" in text and "***@host is away" in text]
    memory.down = False
    other, foreign = outbox_of(storage, "other"), outbox_of(storage, server="another")
    assert left_over(storage, "another", storage / "runs/other") == []
    sender = Delivery(other, storage, lambda: memory, lambda: left_over(storage, SERVER, storage / "runs/other"))
    sender.start()
    assert sender.close(PATIENCE) == 0
    until(lambda: not outbox_of(storage).pending())
    assert_delivered(memory, outbox)
    assert foreign.pending() == outbox.names()  # it may be sent to another server in full
    assert left_over(storage, SERVER, storage / "runs/other") == []


def test_one_line_when_an_outage_begins_and_one_when_it_ends(storage: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raymae")
    memory, outbox = Memory(), filled(storage)
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    until(lambda: not outbox.pending())
    for _ in range(2):
        memory.down = True
        outbox.write({"do": "finish", "run": "", "status": "FINISHED"})
        until(lambda: sender.away_since is not None)
        time.sleep(0.05)
        memory.down = False
        until(lambda: sender.away_since is None)
    assert sender.close(PATIENCE) == 0
    lines = [record.getMessage() for record in caplog.records if "answers again" in record.getMessage()]
    assert len(lines) == 2
    assert sum("nothing can be delivered" in text for text in caplog.messages) == 2


def test_what_is_refused_is_logged_and_skipped(storage: Folder, caplog: pytest.LogCaptureFixture) -> None:
    memory, outbox = Memory(), filled(storage)
    memory.refused = {"report.md"}
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    assert sender.close(PATIENCE) == 0
    assert memory.runs["None/job one/key"]["status"] == "FINISHED"
    assert "not delivered to MLflow" in caplog.text
    assert "no report.md for https://***@host; it is kept, and the next job with this storage offers it" in caplog.text
    again = Delivery(Outbox(storage / "runs/one", SERVER), storage, lambda: memory)
    memory.refused = set()
    again.start()
    assert again.close(PATIENCE) == 0
    assert ("None/job one/key", "report.md") in memory.files


def test_the_second_of_two_jobs_of_a_run_starts_at_once_and_leaves_delivery_to_the_first(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "OTHERS_SECONDS", 0.01)
    memory, outbox = Memory(), filled(storage)
    first, second = (Delivery(Outbox(storage / "runs/one", SERVER), storage, lambda: memory) for _ in range(2))
    first.start()
    second.start()
    second.outbox.write(begin("", "job one/key", "again", {}, {}))
    assert second.call(lambda tracker, run_id: run_id, PATIENCE) == "None/job one/key"
    assert second.close(PATIENCE) == 0
    assert first.close(PATIENCE) == 0
    assert not outbox.pending()


def test_a_job_takes_over_the_delivery_of_one_that_died(storage: Folder) -> None:
    memory = Memory()
    outbox = filled(storage)
    code = f"from raymae.storage.lease import *; assert Lease(Folder({outbox.claims.url!r})).take()"
    subprocess.run([sys.executable, "-c", code], check=True)
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    assert sender.close(PATIENCE) == 0
    assert memory.runs["None/job one/key"]["status"] == "FINISHED"


def test_no_file_outside_the_storage_is_delivered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret").write_text(SECRET)
    storage = Folder(str(tmp_path / "storage"))
    memory, outbox, artifact = Memory(), filled(storage), storage / "artifacts/pretrain/one"
    told = {"do": "tell", "run": "pretrain", "numbers": {}}
    outbox.write(told | {"artifact": "artifacts/pretrain/one", "files": ["../../../../secret"]})
    for artifact_name in ("..", str(tmp_path)):
        outbox.write(told | {"artifact": artifact_name, "files": ["secret"]})
    event = {"step": 11, "time": 1e9 + 11, "metrics": {"loss": 0.1}, "figures": ["../../../../secret"]}
    write_event(artifact, event)
    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    assert sender.close(PATIENCE) == 0
    assert SECRET.encode() not in memory.files.values()
    assert caplog.text.count("leads out of the folder") >= 4
    assert ("None/job one/key", "report.md") in memory.files


def test_metrics_after_the_last_checkpoint_wait(storage: Folder) -> None:
    memory, outbox, artifact = Memory(), outbox_of(storage), storage / "artifacts/pretrain/one"
    outbox.write(
        begin("", "job", "job", {}, {}), begin("pretrain", "key", "pretrain", {}, {}, "artifacts/pretrain/one")
    )

    def report(*steps: int, loss: float = 1.0) -> None:
        for step in steps:
            write_event(artifact, {"step": step, "time": 1e9 + step, "metrics": {"loss": loss}})

    def steps() -> list[int]:
        return [step for _, _, step, *_ in memory.points]

    sender = Delivery(outbox, storage, lambda: memory)
    sender.start()
    report(1, 2, 3)
    artifact.write_json("commits/000000002/commit.json", {})
    until(lambda: steps() == [1, 2])
    report(4, 5)
    take_back_events(artifact, 2)  # the workers died and resume from the checkpoint, reporting other steps
    assert [event["step"] for event in read_events(artifact)] == [1, 2]
    report(4, 6, loss=0.5)
    artifact.write_json("commits/000000004/commit.json", {})
    until(lambda: steps() == [1, 2, 4])
    assert [event["step"] for event in committed_events(artifact, 2)] == [4]
    artifact.finish({})
    until(lambda: steps() == [1, 2, 4, 6])
    assert sender.close(PATIENCE) == 0
    assert [value for *_, value, _ in memory.points] == [1, 1, 0.5, 0.5]


def test_figures_arrive_while_the_stage_runs(
    store: FeatureStore, storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DRAW_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.1)
    train = replace(TINY.pretrain, epochs=1, warmup_epochs=0, commit_minutes=1e-9)
    spec = make_spec(store, Path(storage.path("artifacts/pretrain/one")), config=replace(TINY, pretrain=train))
    received: dict[str, bool] = {}

    class Recording(Memory):
        def log_bytes(self, run_id: str, name: str, content: bytes) -> None:
            assert content.startswith(b"\x89PNG")
            received.setdefault(name, spec.artifact.is_done())

    outbox = outbox_of(storage)
    outbox.write(
        begin("", "job", "job", {}, {}), begin("pretrain", "key", "pretrain", {}, {}, "artifacts/pretrain/one")
    )
    sender = Delivery(outbox, storage, Recording)
    sender.start()
    run_stage(spec, BareSession(store, spec.artifact))
    outbox.write({"do": "finish", "run": "pretrain", "status": "FINISHED"})
    assert sender.close(PATIENCE) == 0
    announced = {file for event in read_events(spec.artifact) for file in event.get("figures", ())}
    assert set(received) == announced
    assert not all(received.values())


# The first contact ----------------------------------------------------------------------------------------------------


def away(unknown_host: bool) -> AwayError:
    error = AwayError("MLflow can't be used")
    error.unknown_host = unknown_host
    return error


@pytest.mark.parametrize("error", [ValueError("MLflow can't be used: no such experiment"), away(unknown_host=True)])
def test_a_mistake_is_an_error_at_once(storage: Folder, error: Exception) -> None:
    def connect() -> Memory:
        raise error

    with pytest.raises(ValueError, match="MLflow can't be used"):
        Delivery(outbox_of(storage), storage, connect).start()


def test_a_late_mistake_is_an_error_at_the_next_check(storage: Folder) -> None:
    def connect() -> Memory:
        time.sleep(0.1)
        raise ValueError("MLflow can't be used")

    sender = Delivery(outbox_of(storage), storage, connect)
    sender.start(0.001)
    with pytest.raises(ValueError, match="MLflow can't be used"):
        until(lambda: sender.check() is not None)


def test_the_delivery_retries_while_the_server_is_down(storage: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Also if its host is unknown, once the run was meant for this server before."""
    memory, tries = Memory(), iter([away(True), away(True), away(False)])
    outbox = filled(storage)
    outbox.mark()

    def connect() -> Memory:
        for error in tries:
            raise error
        return memory

    sender = Delivery(outbox, storage, connect)
    sender.start()
    assert sender.close(PATIENCE) == 0
    assert_delivered(memory, outbox)
    assert sum("nothing can be delivered" in text for text in caplog.messages) == 1


# Calls with a result -------------------------------------------------------------------------------------------------


def test_a_call_comes_after_what_was_written_before(storage: Folder) -> None:
    memory = Memory(0.3)
    sender = Delivery(filled(storage), storage, lambda: memory)
    sender.start()
    assert sender.call(lambda tracker, run_id: (run_id, len(tracker.points)), PATIENCE) == ("None/job one", 13)
    sender.close(PATIENCE)


def test_a_call_waits_for_its_patience(storage: Folder) -> None:
    memory = Memory()
    sender = Delivery(filled(storage), storage, lambda: memory)
    sender.start()
    until(lambda: not sender.outbox.pending())

    def register(tracker: Memory, run_id: str) -> str:
        return str(tracker._do(lambda: "models:/one/1"))

    memory.down = True
    with pytest.raises(AwayError, match=r"\*\*\*@host is away"):
        sender.call(register, 0.02)
    memory.down = False
    assert sender.call(register, PATIENCE) == "models:/one/1"

    def refuse(tracker: Memory, run_id: str) -> None:
        raise RefusedError("a bad name")

    with pytest.raises(ValueError, match="a bad name"):
        sender.call(refuse, PATIENCE)
    assert sender.close(PATIENCE) == 0


def test_one_job_delivers_at_a_time(storage: Folder) -> None:
    memory, outbox = Memory(), filled(storage)
    first = Delivery(outbox, storage, lambda: memory)
    first.start()
    until(lambda: not outbox.pending())
    outbox.write({"do": "finish", "run": "", "status": "KILLED"})
    second = Delivery(outbox_of(storage), storage, lambda: memory)
    second.start(0.05)
    assert second.tracker is None
    first.close(PATIENCE)
    assert memory.runs["None/job one"]["status"] == "KILLED"
    assert second.close(PATIENCE) == 0
    assert second.tracker is memory


# On disk --------------------------------------------------------------------------------------------------------------


def test_the_outbox_holds_no_secret_and_works_on_any_storage() -> None:
    outbox = filled(Folder("memory://bucket/outbox"))
    assert [entries[0]["do"] for _, entries in outbox.entries()] == ["begin", "begin", "tell", "finish"]
    assert SECRET not in "".join(str(outbox.folder.read_bytes(name)) for name in outbox.folder.names())
    assert outbox.open_runs() == []
    outbox.write(begin("", "job", "job", {}, {}))
    assert outbox.open_runs() == [""]


def test_a_server_s_id_does_not_depend_on_the_password() -> None:
    config = TrackingConfig()
    one, two = (server_id(config, f"https://me:{word}@host") for word in ("old", "new"))
    assert one == two
    assert one != server_id(config, "https://other")
    assert one != server_id(replace(config, experiment="other"), "https://me:old@host")
