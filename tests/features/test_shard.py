"""Damage of shards is found wherever it is; the manifest describes the store; float16 is precise enough."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.logmel import LogMel, fit_length
from raymae.config import AudioConfig, DataConfig
from raymae.evaluation.baselines import statistics
from raymae.features.manifest import Tally
from raymae.features.shard import DAMAGED, intact, moments, read_summary, widen
from raymae.features.store import SHARDS, FeatureStore
from raymae.features.write import ShardPlan, plan_shards, write_shard
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_clips
from tests.support.odd_audio import ODD
from tests.support.training import TINY

ESC10 = ODD.parent / "esc10/audio"


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, bytes, dict[str, Any]]:
    """A shard of twenty clips of which one is bad, its bytes and its summary."""
    folder = tmp_path_factory.mktemp("sound")
    clips = write_clips(folder / "audio", 20)
    Path(clips["path"][3].as_py()).write_bytes(b"")
    shards = Folder(str(folder))
    summary = write_shard(shards, "one.parquet", clips, ClipReader(TINY_AUDIO, 10))
    return shards, shards.read_bytes("one.parquet"), summary


def flip(path: Path, place: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_byte_is_found(shard: tuple[Folder, bytes, dict[str, Any]], data: st.DataObject) -> None:
    shards, content, summary = shard
    assert intact(content)
    assert read_summary(shards, "one.parquet", verify=True) == summary
    tail = st.integers(len(content) - 4000, len(content) - 1)
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), tail))
    broken = bytearray(content)
    broken[place] ^= data.draw(st.integers(1, 255))
    assert not intact(bytes(broken))


@given(length=st.integers(0, 100_000))
def test_a_shortened_shard_is_found(shard: tuple[Folder, bytes, dict[str, Any]], length: int) -> None:
    content = shard[1]
    assert not intact(content[: min(length, len(content) - 1)])


def finished(storage: Path | str, clips: pa.Table, compression: str = "none") -> tuple[Plan, FeatureStore]:
    """A finished `prepare` stage, made without Ray, and its plan."""
    config = replace(TINY, storage=str(storage), data=DataConfig(shard_mb=0.1))
    plan = Plan(config, clips, Folder(str(storage)), "prepare")
    artifact, shards = plan.nodes["prepare"].artifact, Folder(str(storage)) / SHARDS
    plans = plan_shards(clips, TINY_AUDIO, 0.1)
    tally, reader = Tally(clips, plans), ClipReader(TINY_AUDIO, 10)
    for number, one in reversed(list(enumerate(plans))):
        part = clips.slice(one.start, one.stop - one.start)
        tally.add(number, write_shard(shards, one.name, part, reader, compression))
    artifact.write_table("clips.parquet", clips)
    artifact.write_json("manifest.json", tally.manifest(TINY_AUDIO))
    artifact.finish({})
    return again(plan), FeatureStore(artifact, shards)


def again(plan: Plan, **data: Any) -> Plan:
    """The same plan, as the next command makes it."""
    return replace(plan, config=replace(plan.config, data=replace(plan.config.data, **data)))


@pytest.fixture
def forty(tmp_path: Path) -> pa.Table:
    return write_clips(tmp_path / "audio", 40)


@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
def test_every_compression_is_read_alike(tmp_path: Path, forty: pa.Table, compression: str) -> None:
    _, plain = finished(tmp_path / "plain", forty)
    plan, other = finished(tmp_path / "other", forty, compression)
    assert plan.nodes["prepare"].reused
    assert other.manifest["compression"] == {compression: 3}
    assert [one["name"] for one in other.manifest["shards"]] == [one["name"] for one in plain.manifest["shards"]]
    np.testing.assert_array_equal(other.read(np.arange(40))[0], plain.read(np.arange(40))[0])


def test_a_lost_or_shortened_shard_is_noticed_by_the_plan(tmp_path: Path, forty: pa.Table) -> None:
    plan, store = finished(tmp_path / "storage", forty)
    assert plan.nodes["prepare"].reused
    assert not again(plan, verify=True).nodes["prepare"].reused
    path = Path(store.shards.path(store.manifest["shards"][1]["name"]))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert not again(plan).nodes["prepare"].reused
    path.unlink()
    assert not again(plan).nodes["prepare"].reused
    with pytest.raises(ValueError, match=rf"{path.name} is missing"):
        store.read(np.arange(40))
    path.write_bytes(content)
    assert again(plan).nodes["prepare"].reused
    store.folder.write_bytes("manifest.json", b"{")
    assert not again(plan).nodes["prepare"].reused
    store.folder.write_json("manifest.json", store.manifest)
    assert again(plan).nodes["prepare"].reused
    shutil.rmtree(tmp_path / "storage" / SHARDS)
    assert not again(plan).nodes["prepare"].reused


def test_damage_in_an_object_store_is_found_alike(forty: pa.Table) -> None:
    plan, store = finished("memory://raymae-shards", forty)
    first, second, third = (shard["name"] for shard in store.manifest["shards"])
    assert plan.nodes["prepare"].reused
    content = store.shards.read_bytes(second)
    store.shards.write_bytes(second, content[:50_000] + bytes(100) + content[50_100:])
    assert again(plan).nodes["prepare"].reused
    with pytest.raises(ValueError, match=f"{second} is damaged"):
        store.read(np.arange(40))
    assert not again(plan).nodes["prepare"].reused
    store.shards.write_bytes(second, content)
    store.shards.remove(second + DAMAGED)
    assert again(plan).nodes["prepare"].reused
    store.shards.remove(third)
    assert not again(plan).nodes["prepare"].reused
    assert store.read(np.arange(32))[0].shape == (32, TINY_AUDIO.n_frames, TINY_AUDIO.n_mels)
    assert first in store.shards.sizes()


@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_reading_finds_a_flipped_byte_and_marks_it_for_the_plan(
    tmp_path: Path, forty: pa.Table, compression: str, share: float
) -> None:
    plan, store = finished(tmp_path / "storage", forty, compression)
    name = store.manifest["shards"][1]["name"]
    path = Path(store.shards.path(name))
    group = pq.ParquetFile(path).metadata.row_group(2).column(1)
    flip(path, group.data_page_offset + int(share * group.total_compressed_size))
    assert again(plan).nodes["prepare"].reused, "the size is the same"
    assert read_summary(store.shards, name, verify=True) is None
    with pytest.raises(ValueError, match=rf"{name} is damaged .*the same command computes it again"):
        store.read(np.arange(40))
    assert store.shards.exists(name + DAMAGED)
    assert not again(plan).nodes["prepare"].reused
    assert len(store.read(np.arange(16))[0]) == 16, "the other shards are read as before"


def test_an_error_of_an_intact_shard_is_not_called_damage(
    tmp_path: Path, forty: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = finished(tmp_path / "storage", forty)

    def fail(*args: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(FeatureStore, "_read_shard", fail)
    with pytest.raises(ConnectionError, match="no network"):
        store.read(np.arange(3))
    assert not any(name.endswith(DAMAGED) for name in store.shards.names())


def test_the_manifest_describes_the_store(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 40)
    Path(clips["path"][1].as_py()).write_bytes(b"")
    plans = plan_shards(clips, TINY_AUDIO, 0.1)
    tally, reader, shards = Tally(clips, plans), ClipReader(TINY_AUDIO, 10), Folder(str(tmp_path))
    for number, one in enumerate(plans):
        tally.add(number, write_shard(shards, one.name, clips.slice(one.start, one.stop - one.start), reader))
    manifest = json.loads(json.dumps(tally.manifest(TINY_AUDIO)))
    assert (manifest["clips"], manifest["quarantined"]) == (39, 1)
    assert {name: (one["clips"], one["quarantined"]) for name, one in manifest["splits"].items()} == {
        "train": (15, 1),
        "pool": (8, 0),
        "val": (8, 0),
        "test_a": (8, 0),
    }
    assert manifest["hours"] == pytest.approx(39 * 0.64 / 3600)
    for entry in manifest["shards"]:
        content = shards.read_bytes(entry["name"])
        assert entry["size"] == len(content)
        assert entry["crc32"].encode() in content[-20_000:]
    train = [
        reader(row["path"])[0].astype(np.float64)
        for row in clips.to_pylist()
        if row["split"] == "train" and row["clip_id"] != "clip001.wav"
    ]
    assert manifest["statistics"]["split"] == "train"
    assert manifest["statistics"]["mean"] == pytest.approx(np.mean(train), rel=1e-5)
    assert manifest["statistics"]["std"] == pytest.approx(np.std(train), rel=1e-5)
    assert tally.quarantine()["clip_id"].to_pylist() == ["clip001.wav"]


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_in_which_shards_arrive_changes_no_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = {"clip_id": [f"{row:03d}" for row in range(240)], "split": rng.choice(["train", "pool"], 240)}
    clips, plans = pa.table(columns), [ShardPlan(f"{n}", 8 * n, 8 * n + 8) for n in range(30)]
    numbers = {name: rng.lognormal(size=(30, 8)) for name in ("seconds", "frames", "mean", "mean_square")}
    written = {"rows": 8, "size": 1, "crc32": "", "compression": "none", "quarantine": []}
    found = []
    for order in (range(30), rng.permutation(30)):
        tally = Tally(clips, plans)
        for number in order:
            tally.add(number, {**written, "clips": {name: values[number] for name, values in numbers.items()}})
        found.append(json.dumps(tally.manifest(TINY_AUDIO)))
    assert found[0] == found[1]


def test_without_training_clips_the_pool_gives_the_statistics(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 10).slice(4, 6)
    (plan,) = plan_shards(clips, TINY_AUDIO, 0.1)
    tally = Tally(clips, [plan])
    tally.add(0, write_shard(Folder(str(tmp_path)), plan.name, clips, ClipReader(TINY_AUDIO, 10)))
    assert tally.statistics()["split"] == "pool"


def test_padding_is_no_part_of_the_moments() -> None:
    log_mel = np.random.default_rng(0).normal(1, 2, (60, 32)).astype(np.float16)
    mean, square = moments(log_mel, 40)
    valid = log_mel[:40].astype(np.float64)
    assert mean == pytest.approx(valid.mean(), rel=1e-5)
    assert square == pytest.approx((valid**2).mean(), rel=1e-5)


def test_every_finite_half_is_widened_exactly() -> None:
    torch.set_flush_denormal(False)  # training sets it: numbers below 6e-5 would count as 0
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(2, -1)
    np.testing.assert_array_equal(widen(finite).view(np.uint32), finite.astype(np.float32).view(np.uint32))


# float16 ------------------------------------------------------------------------------------------------------------


def rounding(log_mels: list[np.ndarray]) -> tuple[float, float]:
    """Largest and root-mean-square error of float16, in the log-mels' own standard deviations."""
    exact = np.concatenate(log_mels).astype(np.float64)
    error = exact.astype(np.float16) - exact
    return float(abs(error).max() / exact.std()), float(np.sqrt((error**2).mean()) / exact.std())


def scenes() -> list[np.ndarray]:
    """Two seconds of coloured noise with tones and clicks, from loud to a hundred dB below."""
    rng, audio = np.random.default_rng(0), AudioConfig()
    found = []
    for level in (1, 1e-2, 1e-5):
        wave = np.cumsum(rng.normal(size=64_000)) * 1e-3 + 0.1 * np.sin(np.arange(64_000) * rng.uniform(0.01, 1))
        wave[rng.integers(0, 64_000, 20)] += 0.5
        found.append(LogMel(audio)((level * wave / abs(wave).max()).astype(np.float32)))
    return found


def recordings() -> list[np.ndarray]:
    """Forty ESC-10 clips of all classes."""
    if not ESC10.exists():
        pytest.skip("the ESC-10 recordings are not here")
    files = sorted(path for path in ESC10.rglob("*") if path.is_file())
    audio = AudioConfig()
    return [LogMel(audio)(load(path, audio.sample_rate)) for path in files[:: max(1, len(files) // 40)]]


@pytest.mark.parametrize("make", [scenes, recordings])
def test_float16_does_not_matter(make: Any) -> None:
    log_mels, audio = make(), AudioConfig()
    largest, typical = rounding(log_mels)
    print(f"{make.__name__}: largest {largest:.2e}, rms {typical:.2e} standard deviations")
    assert largest < 2e-3
    assert typical < 5e-4
    exact = np.stack([statistics(one, len(one), audio) for one in log_mels])
    stored = np.stack([statistics(one.astype(np.float16).astype(np.float32), len(one), audio) for one in log_mels])
    apart = abs(stored - exact).max() / exact.std()
    print(f"{make.__name__}: SVM statistics {apart:.2e} of their deviation apart")
    assert apart < 5e-3
    # what reconstruction is scored on: patches normalised to their own mean and deviation, as the model's targets
    patches = [fit_length(one, 64, audio.silence)[0].reshape(4, 16, 16, 16).swapaxes(1, 2) for one in log_mels]
    target, rounded = (normalised(np.stack(kind)) for kind in (patches, [p.astype(np.float16) for p in patches]))
    loss = float(((target - rounded) ** 2).mean())
    print(f"{make.__name__}: reconstruction loss between both {loss:.2e}")
    assert loss < 1e-3, "of 1 for a guess of the mean"


def normalised(patches: np.ndarray) -> np.ndarray:
    patches = patches.astype(np.float64)
    axes = (-3, -1)
    return (patches - patches.mean(axes, keepdims=True)) / np.sqrt(patches.var(axes, keepdims=True) + 1e-6)
