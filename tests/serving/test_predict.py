"""jobs/predict.py: parts that are reused, one row per input in order, through kills of driver and worker."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raymae.benchmark.harness.memory import process_tree
from raymae.cluster.resources.pools import label_pool
from raymae.config import ComputeConfig, Config, PredictConfig
from raymae.inference.labeller import Labeller, schema
from raymae.inference.predictor import Predictor
from raymae.serving import predict
from raymae.serving.inputs import INPUTS
from raymae.serving.predict import LEAST, PART, PART_BYTES, Labels, classifier_key, label_files, part_rows, plan_parts
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_tone
from tests.support.classifiers import write_tiny
from tests.support.paths import ROOT

NAMES = ["high", "low", "middle"]
PATIENCE = 300


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_tiny(Folder(str(tmp_path_factory.mktemp("classifier"))), NAMES)


def files(count: int, size: int = 1000, start: int = 0) -> pa.Table:
    paths = [f"/rec/{number:07d}.wav" for number in range(start, start + count)]
    return pa.table([paths, np.full(count, size), np.full(count, 1e9)], INPUTS)


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, LEAST, LEAST + 1, 1000, 3 * PART, 100_001])
def test_parts_hold_every_file_once_in_order(count: int) -> None:
    parts = plan_parts(files(count))
    assert [path for part in parts for path in part.work["paths"]] == files(count)["path"].to_pylist()
    assert {part.size for part in parts[:-1]} <= {part_rows(count)}
    assert all(part.size == len(part.work["paths"]) for part in parts)
    assert len({part.name for part in parts}) == len(parts)


def test_long_recordings_make_small_parts() -> None:
    parts = plan_parts(files(1000, size=PART_BYTES // 10))
    assert max(part.size for part in parts) <= 11
    assert sum(part.size for part in parts) == 1000


def test_a_list_that_grows_keeps_its_parts() -> None:
    before, after = ([part.name for part in plan_parts(files(count))] for count in (100 * PART, 101 * PART - 5))
    assert after[:100] == before
    assert plan_parts(files(40))[0].name != plan_parts(files(40, size=1001))[0].name


def test_the_key_depends_on_the_content_of_the_classifier(classifier: Folder, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path))
    for name in classifier.names():
        copy.write_bytes(name, classifier.read_bytes(name))
    assert classifier_key(copy, "file") == classifier_key(classifier, "file") != classifier_key(classifier, "window")
    copy.write_json("classifier.json", copy.read_json("classifier.json") | {"class_names": ["a", "b", "c"]})
    assert classifier_key(copy, "file") != classifier_key(classifier, "file")


def test_only_complete_parts_with_reachable_files_are_finished(classifier: Folder, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 440)
    parts = plan_parts(files(5 * LEAST))
    labels = Labels(Folder(str(tmp_path)), parts, schema(NAMES, "file"))
    table = Labeller(Predictor(classifier), "file", 1)([str(tmp_path / "a.wav")])
    whole, cut, unreachable, empty, _ = (part.name for part in parts)
    for name in (whole, cut):
        labels.folder.write_table(name, table)
    labels.folder.write_bytes(cut, labels.folder.read_bytes(cut)[:-9])
    labels.folder.write_bytes(empty, b"")
    later = table.replace_schema_metadata({**table.schema.metadata, b"unreachable": b"1"})
    labels.folder.write_table(unreachable, later)
    assert labels.finished() == {whole}
    labels.remove({cut, unreachable, "neither"})
    assert labels.folder.names() == sorted(["a.wav", whole, empty])


# The pool -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "compute", "expected"),
    [
        ([{"CPU": 2}], {}, (2, 0, 1)),
        ([{"CPU": 64}, {"CPU": 64}, {"memory": 1}], {}, (4, 0, 32)),
        ([{"CPU": 16}], {"data_workers": 6}, (4, 0, 1)),
        ([{"CPU": 16}], {"data_workers": 2}, (2, 0, 1)),
        ([{"CPU": 16}], {"torch_threads": 8}, (8, 0, 2)),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 64}], {}, (4, 0.25, 4)),
        ([{"CPU": 16, "GPU": 8}], {}, (2, 1, 8)),
        ([{"CPU": 96, "GPU": 8}], {}, (4, 1 / 3, 24)),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 64}], {"use_gpu": False}, (4, 0, 20)),
    ],
)
def test_actors_fill_the_nodes(
    nodes: list[dict[str, float]], compute: dict[str, int], expected: tuple[int, float, int]
) -> None:
    pool, threads = label_pool(ComputeConfig(**compute), nodes, 1000)  # type: ignore[arg-type]
    assert (pool["num_cpus"], pool["num_gpus"], pool["compute"].max_size) == (threads, *expected[1:])
    assert threads == expected[0]
    assert label_pool(ComputeConfig(**compute), nodes, 1)[0]["compute"].max_size == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "compute", "message"),
    [
        ([{"CPU": 4}], {"use_gpu": True}, "has no GPU"),
        ([{"memory": 1}], {}, "no node with a CPU"),
        ([{"CPU": 4}], {"torch_threads": 8}, "more than the 4 CPUs"),
    ],
)
def test_a_cluster_without_enough_resources_is_an_error(
    nodes: list[dict[str, float]], compute: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label_pool(ComputeConfig(**compute), nodes, 10)  # type: ignore[arg-type]


# The job ------------------------------------------------------------------------------------------------------------


def make_config(folder: Path, classifier: Folder, output: str, *inputs: Path, level: str = "file") -> Config:
    predict = PredictConfig(
        model=classifier.url,
        inputs=tuple(map(str, inputs)),
        output=str(folder / output),
        level=level,  # type: ignore[arg-type]
    )
    return Config(storage=str(folder / "storage"), predict=predict)


def test_settings_that_do_not_go_together(classifier: Folder, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 440)
    config = make_config(tmp_path, classifier, "out.csv", tmp_path / "a.wav", level="window")
    with pytest.raises(ValueError, match=r"--predict.level window: --predict.submission"):
        label_files(replace(config, predict=replace(config.predict, submission="x.csv")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        label_files(make_config(tmp_path, classifier, "full", tmp_path / "a.wav"))


@pytest.mark.parametrize("place", ["here", pytest.param("on Ray", marks=pytest.mark.ray)])
def test_one_row_per_input_as_file_and_as_folder(
    place: str, classifier: Folder, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "alone_on_cpus", lambda compute: place == "here")
    if place == "on Ray":
        request.getfixturevalue("ray_cluster")
    else:
        for name in ("label_on_ray", "torch_device", "alive"):  # what asks Ray would start it
            monkeypatch.setattr(predict, name, None)
    folder = tmp_path / "recordings"
    for number in range(20):
        write_tone(folder / f"{number:02d}.wav", 200 + 60 * number, seconds=2 * TINY_AUDIO.clip_seconds, seed=number)
    (folder / "03.wav").write_bytes(b"RIFF")
    again, gone = folder / "05.wav", tmp_path / "gone.wav"
    config = make_config(tmp_path, classifier, "scenes.csv", folder, again, gone)
    paths = [*sorted(map(str, folder.iterdir())), str(again), str(gone)]

    result = label_files(config)
    (labels,) = (tmp_path / "storage/artifacts/labels").iterdir()
    assert (labels / "classifier.json").read_bytes() == classifier.read_bytes("classifier.json")
    assert {name: result[name] for name in ("files", "failed", "rows", "parts", "reused")} == {
        "files": 22,
        "failed": 2,
        "rows": 22,
        "parts": 2,
        "reused": 0,
    }
    with open(tmp_path / "scenes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == paths
    assert rows[5] == rows[20]
    assert rows[21]["error"] == "No such file or directory"
    predictor = Predictor(classifier)
    for row in rows:
        alone = predictor.row(row["path"])
        assert (row["scene_label"] or None, row["error"] or None) == (alone["scene_label"], alone["error"])
        if not row["error"]:
            columns = [f"p_{name}" for name in NAMES]
            assert [float(row[name]) for name in columns] == pytest.approx([alone[name] for name in columns], abs=1e-5)

    write_tone(gone, 440)  # the other part is reused, with another output, too
    config = replace(config, predict=replace(config.predict, output=str(tmp_path / "parts")))
    for reused in (1, 2):
        result = label_files(config)
        assert (result["failed"], result["reused"]) == (1, reused)
    table = pq.read_table(tmp_path / "parts")
    assert table["path"].to_pylist() == paths
    assert json.loads((tmp_path / "parts/_done.json").read_text()) == {"files": 22, "failed": 1, "rows": 22}
    with pytest.raises(ValueError, match="labels of other settings"):
        label_files(replace(config, predict=replace(config.predict, inputs=(str(folder),))))


def test_a_window_has_its_time(classifier: Folder, tmp_path: Path) -> None:
    write_tone(tmp_path / "tone.wav", 440, seconds=2 * TINY_AUDIO.clip_seconds)
    (tmp_path / "cut.wav").write_bytes(b"RIFF")
    rows = Labeller(Predictor(classifier), "window", 1)([str(tmp_path / "tone.wav"), str(tmp_path / "cut.wav")])
    assert rows["path"].to_pylist() == [*[str(tmp_path / "tone.wav")] * 2, str(tmp_path / "cut.wav")]
    assert rows["start_seconds"].to_pylist() == [0, TINY_AUDIO.clip_seconds, None]
    assert [bool(error) for error in rows["error"].to_pylist()] == [False, False, True]


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, "the job ended too early"
        assert time.monotonic() < until
        time.sleep(0.01)


def labelling_actors() -> list[int]:
    """Processes of the tests' own Ray that write parts."""
    found = []
    for pid in process_tree(os.getpid()):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if name.startswith("ray::") and "WriteParts" in name:
            found.append(pid)
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.fault
def test_killed_driver_and_worker_lose_no_finished_part(ray_cluster: None, classifier: Folder, tmp_path: Path) -> None:
    count = 6144
    folder = tmp_path / "recordings"
    for number in range(count):
        if number < 16:
            write_tone(folder / f"{number:05d}.wav", 200 + 60 * number, seconds=1.0, seed=number)
        else:
            os.link(folder / f"{number % 16:05d}.wav", folder / f"{number:05d}.wav")
    (folder / "broken.wav").write_bytes(b"RIFF")
    output, storage = tmp_path / "scenes.parquet", tmp_path / "storage"
    options = {
        "--predict.inputs": folder,
        "--predict.output": output,
        "--predict.model": classifier.url,
        "--storage": storage,
        "--json": tmp_path / "result.json",
        "--compute.address": ray.get_runtime_context().gcs_address,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(ROOT / "jobs/predict.py"), *words]

    def finished_parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in storage.glob("artifacts/labels/*/*.parquet")}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    driver = start()
    wait_for(lambda: len(finished_parts()) >= 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_for_end = time.monotonic() + PATIENCE
    while labelling_actors() and time.monotonic() < wait_for_end:  # Ray ends the dead driver's
        time.sleep(0.1)
    before = finished_parts()
    parts = -(-(count + 1) // part_rows(count + 1))
    assert 2 <= len(before) < parts - 2
    assert not output.exists()

    driver = start()
    wait_for(lambda: len(finished_parts()) > len(before), driver)
    actors = labelling_actors()
    assert actors
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    at_kill = finished_parts()
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, errors.decode()[-3000:]
    after = finished_parts()
    assert len(after) == parts
    assert {name: after[name] for name in at_kill} == at_kill, "a finished part was made again"
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["files"], result["failed"], result["parts"], result["reused"]) == (count + 1, 1, parts, len(before))
    table = pq.read_table(output)
    assert table["path"].to_pylist() == sorted(map(str, folder.iterdir()))
    for number, row in enumerate(table.slice(0, 64).to_pylist()):
        assert row["scene_label"] == table["scene_label"][number % 16].as_py()
