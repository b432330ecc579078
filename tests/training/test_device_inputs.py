"""Log-mels that the training worker makes of waveforms: those of the CPU, with the same crops, masks and counts.

The device is the CPU here, as torch sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from raymae.audio.logmel import LogMel, fit_length
from raymae.cluster.feed import FILLER, WindowReader, windows_of
from raymae.config import AugmentConfig, Config, ConsistencyConfig, DataConfig, FinetuneConfig, PretrainConfig
from raymae.datasets.rows import Rows
from raymae.features.draws import Draws
from raymae.features.store import FeatureStore, Layout
from raymae.features.streaming import StreamedClips, WaveformClips
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from raymae.training.batches.passes import Clips
from raymae.training.batches.shifts import read_shifted
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import read_window
from raymae.training.tasks.device_inputs import DeviceInputs
from tests.support.audio_files import TINY_AUDIO, make_store, write_clips
from tests.support.training import EVERYTHING, RESPONSES, TINY, make_spec, passes
from tests.training.test_no_read_back import NoReads, make_step

TOLERANCE = 1e-3 + 2**-10  # two half floats between 1 and 2 are 2^-10 apart
HOST = replace(EVERYTHING, gain_db=0.0, roll_p=0.9)
WAVES = replace(
    EVERYTHING,
    responses_by="convolution",
    speed_p=0.6,
    wave_mix_p=0.8,
    noise_p=0.5,
    snr_db=(5.0, 30.0),
)
KINDS = ("pretrain", "finetune", "consistency")
each = pytest.mark.parametrize("kind", KINDS)
CPU = Transfer(torch.device("cpu"))
ECHOES = np.zeros((2, 700), np.float32)
ECHOES[:, 3], ECHOES[0, 400], ECHOES[1, 9] = 1.0, 0.5, -0.7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Noise of many lengths, with dropouts; the upper half of some clips' bands is empty."""
    folder = tmp_path_factory.mktemp("waveforms")
    clips = write_clips(folder, 60)
    for index, path in enumerate(clips["path"].to_pylist()):
        rng = np.random.default_rng(index)
        count = round(8000 * (0.64 if index % 3 else 0.05 + 0.01 * index))
        wave = 0.1 * rng.normal(size=count)
        if index % 4 == 0:
            spectrum = np.fft.rfft(wave)
            spectrum[len(spectrum) // 2 :] = 0
            wave = np.fft.irfft(spectrum, count)
        first, last = np.sort(rng.integers(0, count, 2))
        wave[first:last] *= index % 2
        soundfile.write(path, wave, 8000, subtype="FLOAT")
    return make_store(folder / "store", clips)


def config_of(augment: AugmentConfig, **more: Any) -> Config:
    """The tiny configuration with an augmentation in every stage."""
    pretrain = replace(TINY.pretrain, augment=augment, mixing_group=4, **more)
    labelled = replace(augment, mixup_p=0.0 if augment.wave_mix_p else 0.5)
    finetune = replace(TINY.finetune, augment=labelled, segment_seconds=0.3, mixing_group=4, **more)
    strong = AugmentConfig(eq_p=0.5, freq_mask_param=8, time_mask_param=8)
    audio, data = replace(TINY.audio, device="gpu"), DataConfig(store="none")
    stages = {"pretrain": pretrain, "finetune": finetune, "consistency": ConsistencyConfig(strong=strong)}
    return replace(TINY, audio=audio, data=data, **stages)


def steps(store: FeatureStore, folder: Path, kind: str, config: Config, kept: type[StreamedClips]) -> Any:
    clips = kept(store.folder, store.shards, timeout=10)
    more = {"responses": RESPONSES, "response_waveforms": ECHOES if config.pretrain.augment.of_waveforms else None}
    return passes(make_spec(clips, folder / kept.__name__, kind, config, **more))


@each
@pytest.mark.parametrize("crop_seconds", [None, 0.32, 0.2])
def test_batches_are_those_of_the_cpu(
    store: FeatureStore, tmp_path: Path, kind: str, crop_seconds: float | None
) -> None:
    """Log-mels within 1e-3, and everything else, so also the masks, to the bit."""
    config = config_of(replace(HOST, crop_seconds=crop_seconds))
    both = [steps(store, tmp_path, kind, config, one) for one in (StreamedClips, WaveformClips)]
    for _ in range(4):
        (_, host), (_, device) = (next(one) for one in both)
        assert np.array_equal(host.counts, device.counts)
        for one, other in zip(host.batches, device.batches, strict=True):
            np.testing.assert_allclose(other.log_mel, one.log_mel, atol=TOLERANCE, rtol=0)
            assert one.drawn.keys() == other.drawn.keys()
            assert all(torch.equal(value, other.drawn[name]) for name, value in one.drawn.items())


@each
def test_a_step_on_augmented_waveforms_reads_nothing_back(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    task, prepared = next(steps(store, tmp_path, kind, config_of(WAVES), WaveformClips))
    made = make_step(task, "cpu")
    with NoReads():
        made.run(prepared, 0.5)
    assert np.isfinite(made.read()["loss"])


@each
def test_passes_change_nothing(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """A clip's augmentation is by its place: the same in passes of any size."""
    found = []
    for size in (4, 16):
        config = config_of(WAVES, micro_batch_size=size)
        _, prepared = next(steps(store, tmp_path / str(size), kind, config, WaveformClips))
        found.append(prepared)
    assert len(found[0].batches) > len(found[1].batches)
    assert np.array_equal(found[0].counts, found[1].counts)
    # consistency's passes hold their labelled clips first
    values = [torch.cat([one.log_mel for one in prepared.batches]).float().numpy() for prepared in found]
    order = [value.reshape(len(value), -1).sum(1).argsort() for value in values]
    np.testing.assert_allclose(values[0][order[0]], values[1][order[1]], atol=TOLERANCE)


@pytest.mark.parametrize("config", [AugmentConfig(wave_mix_p=1.0), AugmentConfig(wave_mix_p=0.5, crop_seconds=0.3)])
def test_mixed_clips_are_log_mels_of_mixtures(store: FeatureStore, config: AugmentConfig) -> None:
    """With their targets; clips that aren't mixed keep both."""
    source = WaveformClips(store.folder, store.shards, timeout=10)
    rows = np.arange(24)
    waveforms, valid = source.read_for_training(rows)
    clips = Clips(rows, rows, list(waveforms), valid.astype(np.int64), np.ones(24, np.float32), 4)
    draws = Draws(1, rows, 4)
    frames = DeviceInputs(TINY_AUDIO, config, None).take(clips, draws, draws.select(slice(16), 4), CPU)
    weight, partner = frames.mix["wave_weight"].astype(np.float64), frames.mix["wave_partner"]
    assert (weight < 1).any()
    assert (partner // 4 == np.arange(16) // 4).all()
    target = np.eye(16, dtype=np.float32)
    np.testing.assert_allclose(
        frames.mixed_targets(target), weight[:, None] * target + (1 - weight)[:, None] * target[partner], atol=1e-6
    )
    if config.crop_seconds:
        return
    for clip, found in enumerate(frames.log_mel.float().numpy()):
        share, other = (weight[clip], partner[clip]) if clip < 16 else (1.0, clip)
        length = max(valid[clip], valid[other]) if share < 1 else valid[clip]
        mixture = (share * waveforms[clip] + (1 - share) * waveforms[other])[:length]
        expected, count = fit_length(LogMel(TINY_AUDIO)(mixture), TINY_AUDIO.n_frames, TINY_AUDIO.silence)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        assert frames.valid_frames[clip] == count


@dataclass(frozen=True)
class Ramp(FeatureStore):
    """A store of waveforms whose every sample is its number, from recordings of some lengths in samples."""

    lengths: tuple[int, ...] = ()
    _is_long = False

    def __post_init__(self) -> None:
        n = TINY_AUDIO.n_samples
        parts = [(k, s, min(n, size - s)) for k, size in enumerate(self.lengths) for s in range(0, size, n)]
        table = pa.table({"recording": [f"r{number}" for number, _, _ in parts]})
        self.__dict__.update(parts=parts, audio=TINY_AUDIO, clips=table)

    @property
    def layout(self) -> Layout:
        return Layout((TINY_AUDIO.n_samples,), np.float32, TINY_AUDIO.hop_length, 0.0)

    def read_for_training(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        found = np.zeros((len(rows), *self.layout.shape), np.float32)
        for place, row in enumerate(rows):
            number, start, count = self.__dict__["parts"][row]
            found[place, :count] = 1e6 * number + np.arange(start, start + count)
        return found, np.array([self.__dict__["parts"][row][2] for row in rows], np.int32)


def test_an_epoch_has_every_sample_of_long_recordings_once() -> None:
    store = Ramp(None, None, (30_000, 700, 11_111))  # type: ignore[arg-type]
    rows = np.arange(len(store.clips))
    values, valid = read_shifted(store, rows, np.full(len(rows), 3), seed=5)
    found = np.concatenate([one[:count] for one, count in zip(values, valid, strict=True)])
    expected = [1e6 * number + np.arange(size) for number, size in enumerate(store.lengths)]
    assert np.array_equal(np.sort(found), np.concatenate(expected).astype(np.float32))
    assert values[0, 0] != 0
    assert values[0, 0] % TINY_AUDIO.hop_length == 0


class Blocks:
    """What a training worker gets of Ray Data, from a reader in this process."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
        return iter(self.blocks)


def test_windows_of_waveforms_arrive_as_they_were_read(store: FeatureStore, tmp_path: Path) -> None:
    clips = WaveformClips(store.folder, store.shards, timeout=10)
    spec = make_spec(clips, tmp_path / "run")
    reader = WindowReader(spec)
    blocks = [reader({"window": [number]}) for number in (FILLER, 0, 1)]
    found = list(windows_of(Blocks(blocks), clips.layout))
    for number, window in enumerate(found):
        expected = read_window(clips, spec.order(), number)
        assert window.values.dtype == np.float32
        for name in ("positions", "rows", "values", "valid"):
            assert np.array_equal(getattr(window, name), getattr(expected, name))
    assert len(found) == 2


def test_what_needs_waveforms_says_so() -> None:
    for section, kind in (("pretrain", PretrainConfig), ("finetune", FinetuneConfig)):
        for change in ({"noise_p": 0.5}, {"responses_by": "convolution"}):
            with pytest.raises(ValueError, match=rf"{section}\.augment\.{next(iter(change))} = .*audio.device = gpu"):
                Config(**{section: kind(augment=AugmentConfig(**change))})
    with pytest.raises(ValueError, match=r"data.store = none"):
        Config(audio=replace(TINY_AUDIO, device="gpu"))
    with pytest.raises(ValueError, match=r"consistency.strong.speed_p has no effect"):
        ConsistencyConfig(strong=AugmentConfig(speed_p=0.5))


def test_keys_of_trainings_name_the_device_and_that_of_the_clips_does_not(store: FeatureStore, tmp_path: Path) -> None:
    cpu, gpu = (
        Plan(replace(TINY, audio=audio, data=DataConfig(store="none")), store.clips, Folder(str(tmp_path)), "pretrain")
        for audio in (TINY_AUDIO, replace(TINY_AUDIO, device="gpu"))
    )
    assert cpu.nodes["prepare"].key == gpu.nodes["prepare"].key
    assert cpu.nodes["pretrain"].key != gpu.nodes["pretrain"].key
    assert (type(cpu.store), type(gpu.store)) == (StreamedClips, WaveformClips)
