"""Arithmetic, results and timing of the benchmark, and its parts on small inputs."""

from __future__ import annotations

import json
import math
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.audio.spans import WHOLE
from raymae.benchmark.harness.memory import PeakMemory, process_tree, pss_mb
from raymae.benchmark.harness.noise_store import NoiseReader
from raymae.benchmark.harness.result import Result, Row, load_rows, markdown
from raymae.benchmark.harness.timing import cpu_between, cpu_seconds, interleave, pace
from raymae.benchmark.scale.plan import CORPORA, Cluster, Corpus, Plan, estimate, limits, measured
from raymae.benchmark.speed.front_end import FrontEnd, bands_below, require_equal
from raymae.benchmark.speed.ingest import batches, median, order_rows
from raymae.benchmark.speed.ingest import make_spec as make_store
from raymae.benchmark.speed.predict import JobPace, pace_of
from raymae.benchmark.speed.prepare import Job, bare
from raymae.cli import benchmark
from raymae.cli.benchmark import PARTS
from raymae.cli.jobs import JOBS
from raymae.cli.subcommands import choose_job
from raymae.config import AudioConfig, Config
from raymae.datasets.synthetic.tones import recording, write_corpus
from raymae.pipeline.dry_run.cost import Rates, duration, size
from raymae.serving.inputs import INPUTS
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO

ROW = Row("front-end", "LogMel", "5 ms", "20 ms (torch)", 4.0, 3.5)

# The plan -------------------------------------------------------------------------------------------------------------

RATES = Rates(prepare_clips=50, decode_clips=80, ingest_mb=100, gpu_clips=1000)


def test_worked_example() -> None:
    """100 h of ten-second clips: 36,000 clips, 36 GB of audio, 36,000 x 640 x 256 x 2 bytes = 11.8 GB of features."""
    plan = estimate(
        Corpus(name="x", hours=100, audio_mb_per_hour=360),
        Cluster(gpus=2, cpus=10, network_gbit=8),
        RATES,
    )
    assert plan.clips == 36_000
    assert plan.audio_gb == pytest.approx(36)
    assert plan.store_gb == pytest.approx(11.79648)
    assert plan.prepare_hours == pytest.approx(36_000 / 500 / 3600)  # the network needs 48 s only
    assert plan.prepare_bottleneck == "CPUs"
    assert plan.store_epoch_hours == pytest.approx(36_000 / 2000 / 3600)  # CPUs 11.8 s, network 11.8 s, GPUs 18 s
    assert plan.store_bottleneck == "GPUs"
    assert plan.stream_epoch_hours == pytest.approx(36_000 / 500 / 3600)
    assert plan.stream_bottleneck == "CPUs"
    assert plan.stream_cores_per_gpu == pytest.approx(20)
    assert plan.store_cores_per_gpu == pytest.approx(3.2768)
    assert plan.waveform_cores_per_gpu == pytest.approx(12.5)
    assert (plan.log_mel_feed_mb, plan.waveform_feed_mb) == (pytest.approx(327.68), pytest.approx(1280))
    assert plan.store_network_mb == pytest.approx(2 * 327.68)
    assert plan.stream_network_mb == pytest.approx(2000)
    assert plan.epochs_repaid == pytest.approx(72 / (72 - 18))
    assert plan.driver_gb == pytest.approx(0.036)
    assert plan.windows_gb == pytest.approx((2048 + 16 * 128) * 0.00032768)  # 16 steps of a round, of 128 clips each
    assert plan.worker_gb == pytest.approx(plan.windows_gb + 36_000 * 360e-9)


def test_traffic_of_gradients_and_checkpoints() -> None:
    rates = replace(RATES, parameters=1e6, gpu_batch=10)
    one, four = (estimate(Corpus(name="x", hours=1), Cluster(gpus=gpus), rates) for gpus in (1, 4))
    assert (one.gradients_mb, four.gradients_mb) == (0, pytest.approx(1.5 * 4 * rates.gpu_clips / 10))
    assert one.commit_gb == pytest.approx(0.012)
    assert one.commit_network_mb == pytest.approx(0.04)


def test_slow_network_is_the_bottleneck() -> None:
    plan = estimate(Corpus(name="x", hours=100), Cluster(gpus=8, cpus=1000, network_gbit=0.08), RATES)
    assert plan.prepare_bottleneck == plan.store_bottleneck == plan.stream_bottleneck == "network"
    assert plan.stream_epoch_hours == pytest.approx(47_600 / 10 / 3600)


def test_store_that_saves_no_time_is_never_repaid() -> None:
    plan = estimate(Corpus(name="x", hours=1), Cluster(gpus=1, cpus=100), RATES)
    assert plan.stream_bottleneck == "GPUs"
    assert plan.epochs_repaid is None


@given(factor=st.integers(2, 1000), hours=st.floats(1, 1e4), cpus=st.integers(1, 500), gpus=st.integers(1, 64))
def test_all_but_cores_per_gpu_grows_with_the_corpus(factor: int, hours: float, cpus: int, gpus: int) -> None:
    cluster = Cluster(gpus=gpus, cpus=cpus)
    small = estimate(Corpus(name="x", hours=hours), cluster, RATES)
    large = estimate(Corpus(name="x", hours=factor * hours), cluster, RATES)
    for name in ("prepare_hours", "store_epoch_hours", "stream_epoch_hours", "audio_gb", "store_gb"):
        assert getattr(large, name) == pytest.approx(factor * getattr(small, name), rel=1e-2)
    assert large.stream_cores_per_gpu == small.stream_cores_per_gpu
    assert large.store_cores_per_gpu == pytest.approx(small.store_cores_per_gpu, rel=1e-2)


@given(cpus=st.integers(1, 10_000), gpus=st.integers(1, 64))
def test_cores_per_gpu_remove_the_cpu_bottleneck(cpus: int, gpus: int) -> None:
    cluster = Cluster(gpus=gpus, cpus=cpus, network_gbit=1e9)
    plan = estimate(Corpus(name="x", hours=1000), cluster, RATES)
    assert (plan.stream_bottleneck == "GPUs") == (cpus >= gpus * plan.stream_cores_per_gpu * (1 - 1e-9))
    assert (plan.store_bottleneck == "GPUs") == (cpus >= gpus * plan.store_cores_per_gpu * (1 - 1e-9))


def test_short_clips_cost_by_their_seconds() -> None:
    whole = estimate(Corpus(name="x", hours=10), Cluster(), RATES)
    short = estimate(Corpus(name="x", hours=10, clip_seconds=1), Cluster(), RATES)
    assert short.clips == 10 * whole.clips
    assert short.store_gb == pytest.approx(whole.store_gb)  # 64 frames a second in both
    assert short.stream_epoch_hours == whole.stream_epoch_hours


def test_plan_without_arguments() -> None:
    result = Plan().run()
    assert [plan["name"] for plan in result.values["plans"]] == [corpus.name for corpus in CORPORA]
    assert [plan["clips"] for plan in result.values["plans"]] == [8_640, 23_040, 1_800_000, 360_000_000]
    assert "| 1 M hours (1,000,000 h) | 360,000,000 | 476.0 TB | 118.0 TB |" in result.text
    assert "AMD EPYC" in result.text
    assert "1 M hours: the driver's memory" in result.text


def test_the_scarcest_resource_comes_first() -> None:
    cluster = Cluster(gpus=64, cpus=512, network_gbit=400)
    small, large = (estimate(Corpus(name="x", hours=hours), cluster, Rates()) for hours in (5_000, 1_000_000))
    assert limits(small, cluster)[0][1].startswith("the averaging of gradients")
    assert "memory" in limits(large, cluster)[0][1]
    slow = replace(cluster, network_gbit=1)
    assert limits(small, slow)[0] == (pytest.approx(64 * 1370 * 0.32768 / 125), limits(small, slow)[0][1])


def test_measured_rates_replace_the_defaults(tmp_path: Path) -> None:
    front_end = {"part": "front-end", "clips_per_second": 80.0, "clip_seconds": 5.0}
    prepare = {"part": "prepare", "cpu_ms": 20.0}
    ingest = {"part": "ingest", "mb_per_core_second": 300.0}
    (tmp_path / "a.json").write_text(json.dumps(front_end))
    (tmp_path / "b.json").write_text(json.dumps({"part": "all", "parts": {"i": ingest, "p": prepare, "f": front_end}}))
    (tmp_path / "c.json").write_text(json.dumps({"part": "plan"}))
    (tmp_path / "e.json").write_text(json.dumps({"part": "scale", "reading": {"mb_per_core_second": 200.0}}))
    alone = measured([str(tmp_path / "a.json")], Rates())
    assert alone == replace(Rates(), prepare_clips=40.0, decode_clips=pytest.approx(209 / 119 * 40))
    (tmp_path / "d.json").write_text(json.dumps(front_end | {"decode_ms": 5.0}))
    assert measured([str(tmp_path / "d.json")], Rates()) == replace(Rates(), prepare_clips=40.0, decode_clips=100.0)
    together = measured([str(tmp_path / "b.json"), str(tmp_path / "a.json")], Rates())
    assert together == replace(Rates().featurizing(50.0), decode_clips=pytest.approx(209 / 119 * 50), ingest_mb=300.0)
    assert measured([str(tmp_path / "e.json"), str(tmp_path / "b.json")], Rates()).ingest_mb == 200.0
    with pytest.raises(ValueError, match=r"c\.json holds no rates"):
        measured([str(tmp_path / "c.json")], Rates())
    given_too = Plan(measured=(str(tmp_path / "a.json"),), prepare_clips=7.0).run()
    assert given_too.values["rates"]["prepare_clips"] == 7.0


@pytest.mark.parametrize("name", ["hours", "gpus", "cpus", "ingest_mb", "clip_seconds"])
def test_plan_needs_positive_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} 0 must be positive"):
        Plan(**{name: 0}).run()


def test_sizes_and_durations_in_few_digits() -> None:
    assert [size(value) for value in (2.84, 589.8, 2380)] == ["2.8 GB", "589.8 GB", "2.4 TB"]
    assert [duration(hours) for hours in (30 / 3600, 0.5, 1234.5)] == ["30.0 s", "30.0 min", "1,234.5 h"]


# Results --------------------------------------------------------------------------------------------------------------


def test_row_verdict_names_a_missed_goal() -> None:
    assert ROW.verdict == "4.00 x  (goal ≥ 3.5)"
    assert replace(ROW, ratio=3.4).verdict == "3.40 x  (goal ≥ 3.5, missed)"
    assert replace(ROW, ratio=3.4, at_most=True).verdict == "3.40 x  (goal ≤ 3.5)"
    assert not replace(ROW, at_most=True).met


def test_results_save_load_and_print_as_a_table(tmp_path: Path) -> None:
    result = Result("front-end", [ROW, replace(ROW, what="floor", at_most=True)], {"log_mel_ms": 5.0})
    result.save(str(tmp_path / "x.json"))
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["log_mel_ms"] == 5.0
    assert content["machine"]["cores"] >= 1
    assert [row["met"] for row in content["rows"]] == [True, False]
    assert content["rows"][0]["raymae"] == "5 ms"
    assert load_rows(content) == list(result.rows)
    lines = markdown(result.rows).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| front-end | LogMel | 5 ms | 20 ms (torch) | 4.00 x  (goal ≥ 3.5) |"


# Time and memory ------------------------------------------------------------------------------------------------------


def test_sides_alternate() -> None:
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=2)
    assert calls == ["a", "b"] * 3  # with one warm-up turn
    assert set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in times.values())


def test_sleep_uses_no_cpu_time() -> None:
    assert interleave({"sleep": lambda: time.sleep(0.02)}, repetitions=1)["sleep"] < 0.01


def test_cpu_time_of_processes() -> None:
    assert cpu_seconds([os.getpid()])[os.getpid()] > 0
    assert cpu_seconds([2**22 + 1]) == {}
    assert cpu_between({1: 2.0, 3: 1.0}, {1: 2.5, 4: 1.0}) == pytest.approx(1.5)  # 3 has ended, 4 has started


def test_memory_of_the_process_tree() -> None:
    code = "x = b'1' * 50_000_000; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert {os.getpid(), child.pid} <= set(process_tree(os.getpid()))
        assert pss_mb(child.pid) > 50
    assert child.pid not in process_tree(os.getpid())
    assert pss_mb(child.pid) == 0


def test_peak_memory_is_kept() -> None:
    before = pss_mb(os.getpid())
    with PeakMemory(interval=0.01) as memory:
        with mmap.mmap(-1, 80_000_000) as space:
            space[::4096] = b"1" * len(range(0, 80_000_000, 4096))
            time.sleep(0.2)
        time.sleep(0.1)
    assert memory.mb > before + 70


# The parts ------------------------------------------------------------------------------------------------------------


def test_front_end_on_a_short_recording() -> None:
    result = FrontEnd(repetitions=1, clip_seconds=1.0).run()
    sides = ("log_mel", "reference", "tuned", "transforms", "fft", "wav", "wav_reference", "flac", "flac_reference")
    assert all(result.values[f"{side}_ms"] > 0 for side in sides)
    assert result.values["largest_difference"] < 1e-3
    assert result.values["chain_difference"] < 0.1
    assert [row.goal for row in result.rows] == [3.5, 3.5, 3.5, 2.2, 2.5, 2.5]
    assert result.rows[0].ratio == pytest.approx(result.values["reference_ms"] / result.values["log_mel_ms"], rel=0.01)


def test_unequal_outputs_raise() -> None:
    require_equal("x", 0.1, 0.1)
    for largest in (0.11, math.inf, math.nan):
        with pytest.raises(ValueError, match="outputs of both sides differ"):
            require_equal("x", largest, 0.1)


def test_bands_below_a_frequency() -> None:
    config = AudioConfig()
    edges = 700 * (np.exp(np.linspace(0, np.log1p(16_000 / 700), config.n_mels + 2)) - 1)
    low = bands_below(config, 10_000)
    assert edges[low + 1] <= 10_000 < edges[low + 3]


def test_recordings_are_seeded() -> None:
    one, other = recording(0.5, seed=1), recording(0.5, seed=2)
    np.testing.assert_array_equal(one, recording(0.5, seed=1))
    assert np.abs(one).max() <= 1
    assert np.abs(one - other).max() > 0.1


def test_bare_process_writes_shards(tmp_path: Path) -> None:
    config = Config(audio=TINY_AUDIO)
    clips = write_corpus(tmp_path, clips=40, distinct=4, seconds=TINY_AUDIO.clip_seconds)
    assert len({os.stat(path).st_ino for path in clips["path"].to_pylist()}) == 4
    rate, cpu = bare(clips, Folder(str(tmp_path / "shards")), config)
    assert rate > 0
    assert cpu > 0
    assert len(list((tmp_path / "shards").iterdir())) == 3


def test_job_rate_skips_the_first_shards() -> None:
    arrivals = [(1.0, 10), (2.0, 10), (3.0, 10), (4.0, 10), (5.0, 10), (8.0, 10)]
    job = Job(None, Folder("x"), Config(), cpus=2, arrivals=arrivals)
    assert job.first_seconds == 4
    assert job.rate == pytest.approx(20 / 4)


def test_prediction_rate_skips_the_first_parts() -> None:
    arrived = [(1.0, 8, {1: 1.0}), (2.0, 8, {1: 2.0, 2: 1.0}), (3.0, 8, {1: 3.0}), (6.0, 4, {1: 5.0, 2: 4.0})]
    assert pace_of(arrived, 2, started=0.5) == JobPace(rate=12 / 4, cpu=6 / 12, first_seconds=1.5)


def test_plain_loop_and_job_agree(tmp_path: Path) -> None:
    from raymae.benchmark.speed import predict
    from raymae.inference.labeller import Labeller
    from raymae.inference.predictor import Predictor
    from raymae.serving.predict import plan_parts
    from tests.support.training import TINY

    classifier = predict.write_untrained(Folder(str(tmp_path / "classifier")), TINY)
    files = write_corpus(tmp_path, clips=20, distinct=4, seconds=TINY_AUDIO.clip_seconds).select(INPUTS.names)
    sides = predict.bare_sides(classifier, files["path"].to_pylist(), 1)
    assert min(sides[name] for name in ("decode", "forward", "plain")) > 0
    labels = Folder(str(tmp_path / "labels"))
    for part in plan_parts(files):
        labels.write_table(part.name, Labeller(Predictor(classifier), "file", 2)(part.work["paths"]))
    predict.check(classifier, labels, files)
    with pytest.raises(ValueError, match="the outputs of both sides differ"):
        predict.check(predict.write_untrained(Folder(str(tmp_path / "other")), TINY), labels, files)


def test_noise_clips_are_distinct(tmp_path: Path) -> None:
    spec = make_store(Folder(str(tmp_path)), TINY_AUDIO, clips=70, epochs=2)
    features, _ = spec.store.read(np.arange(70))
    for row in (0, 33, 69):
        np.testing.assert_array_equal(features[row], next(NoiseReader(TINY_AUDIO).each(str(row), [WHOLE]))[0])
    assert len({clip.tobytes() for clip in features}) == 70
    assert np.isfinite(features).all()
    rows = order_rows(spec)
    assert len(rows) == spec.order().steps * 32
    assert set(rows.tolist()) == set(range(70))
    np.testing.assert_array_equal(np.concatenate(list(batches(spec))), features[rows])


def test_pace_skips_the_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *range(10, 18), 18.5, 19.0, 19.5, 20.0])
    monkeypatch.setattr("raymae.benchmark.harness.timing.time.perf_counter", lambda: next(clock))
    found = pace([[0] * 5] * 12, skipped=8)
    monkeypatch.undo()
    assert found.start_seconds == 10
    assert found.rate == pytest.approx(4 * 5 / 3)
    assert found.cpu >= 0
    assert median([found, replace(found, rate=0.0), replace(found, cpu=99.0)]) == found
    with pytest.raises(ValueError, match="too few batches"):
        pace([[0]] * 9, skipped=8)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    choose_job(JOBS, ["benchmark", "plan", "--hours", "100", "--gpus", "1", "--cpus", "4", "--json", str(path)])
    assert "| corpus (100 h) | 36,000 |" in capsys.readouterr().out
    assert json.loads(path.read_text())["cluster"]["cpus"] == 4
    with pytest.raises(SystemExit, match=r"--hours -1\.0 must be positive"):
        choose_job(JOBS, ["benchmark", "plan", "--hours", "-1"])
    assert set(PARTS) >= {"front-end", "prepare", "ingest", "plan"}
    assert set(benchmark.NOT_IN_ALL) <= set(PARTS)


def test_plan_imports_neither_ray_nor_torch() -> None:
    code = "import raymae.cli.benchmark, sys; print([n for n in ('ray', 'mlflow', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
