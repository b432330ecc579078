"""Impulse responses: offsets that approximate convolution, identified by content, refused with the file's name."""

import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve, firwin2, minimum_phase

from raymae.audio.impulse_responses import band_offsets, levelled, read_responses, share_outside
from raymae.audio.logmel import LogMel, band_centres
from raymae.config import FRONT_ENDS, AudioConfig, AugmentConfig, Config, FinetuneConfig, PretrainConfig
from raymae.config.recipes import SMALL_AUDIO
from raymae.features.augment import random_eq
from raymae.features.draws import Draws
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO
from tests.support.paths import SHARED

RATE = 44_100
MICROPHONES = SHARED / "data/micirp"


def device(seed: int = 0, rate: int = RATE, seconds: float = 0.3) -> np.ndarray:
    """A synthetic device: a minimum-phase filter with an uneven response, a resonance and a tail 50 dB below."""
    rng = np.random.default_rng(seed)
    knots = np.concatenate([[-8.0], rng.normal(scale=2.5, size=11), [-6.0]])  # nats of power
    filtered = minimum_phase(firwin2(1025, np.linspace(0, 1, 13) ** 2, np.exp(knots / 2)), half=False)
    time = np.arange(round(seconds * rate)) / rate
    response = 0.003 * np.exp(-time / 0.02) * rng.normal(size=len(time))
    response += 0.05 * np.exp(-time / 0.004) * np.sin(2 * np.pi * 1200 * time)
    response[: len(filtered)] += filtered
    return response


def sound(kind: str, rate: int = RATE, seconds: float = 4.0) -> np.ndarray:
    """Pink noise, or a gliding harmonic tone in some noise."""
    rng = np.random.default_rng(7)
    count = round(rate * seconds)
    spectrum = np.fft.rfft(rng.normal(size=count)) / np.sqrt(np.maximum(np.fft.rfftfreq(count, 1 / rate), 20))
    pink = np.fft.irfft(spectrum, count)
    pink *= 0.1 / pink.std()
    if kind == "noise":
        return pink
    time = np.arange(count) / rate
    phase = 2 * np.pi * 220 * time + 0.5 * np.sin(2 * np.pi * 4 * time)
    return 0.1 * sum(np.sin(k * phase + k) / k for k in range(1, 60)) + 0.2 * pink


def errors(
    response: np.ndarray, rate: int, audio: AudioConfig, kind: str, offset: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean error of the offset (by default that of `band_offsets`) against true convolution, in nats.

    Returns the error of a band's mean and that of a single value. The device filters at its own rate, then the front
    end resamples; overall gain is ignored, as are values within a factor of 100 of log_offset before or after.
    """
    before = sound(kind, rate)
    after = fftconvolve(before, response)[: len(before)]
    after *= before.std() / after.std()
    waves = (soxr.resample(wave, rate, audio.sample_rate, quality="HQ") for wave in (before, after))
    one, two = (LogMel(audio)(wave)[8:-8] * audio.norm_scale + audio.norm_mean for wave in waves)
    well = np.minimum(one, two) > np.log(100 * audio.log_offset)
    bands = well.mean(axis=0) > 0.5
    assert bands.mean() > 0.6
    offset = band_offsets(response, rate, audio) if offset is None else offset
    error = np.ma.array(two - one - offset * audio.norm_scale, mask=~well)[:, bands]
    error -= np.ma.median(error)
    return float(np.abs(error.mean(axis=0)).mean()), float(np.abs(error).mean())


@pytest.mark.parametrize(("kind", "of_mean"), [("noise", 0.04), ("tone", 0.12)])
@pytest.mark.parametrize(
    ("audio", "of_value"), [(FRONT_ENDS["paper"], 0.08), (SMALL_AUDIO, 0.2), (FRONT_ENDS["cas_baseline"], 0.15)]
)
def test_the_offset_approximates_convolution(audio: AudioConfig, kind: str, of_mean: float, of_value: float) -> None:
    offset = band_offsets(device(), RATE, audio) * audio.norm_scale
    assert offset.std() > 1  # zero offsets would be wrong
    mean, value = errors(device(), RATE, audio, kind)
    assert mean < of_mean
    assert value < of_value


@pytest.mark.skipif(not MICROPHONES.exists(), reason="measured responses (../shared/data/micirp) are not here")
@pytest.mark.parametrize("kind", ["noise", "tone"])
@pytest.mark.parametrize("audio", [FRONT_ENDS["paper"], SMALL_AUDIO])
def test_the_offset_approximates_convolution_with_real_microphones(audio: AudioConfig, kind: str) -> None:
    found = [errors(*sf.read(path), audio, kind) for path in sorted(MICROPHONES.glob("*.wav"))]
    mean, value = np.mean(found, axis=0)
    assert mean < (0.04 if kind == "noise" else 0.12)
    assert value < 0.3


@pytest.mark.parametrize(("kind", "of_mean"), [("noise", 0.05), ("tone", 0.18)])
@pytest.mark.parametrize("audio", [FRONT_ENDS["paper"], SMALL_AUDIO])
def test_random_eq_approximates_its_filter(audio: AudioConfig, kind: str, of_mean: float) -> None:
    curve = random_eq(AugmentConfig(eq_p=1.0), audio, Draws(0, np.zeros(1, np.int64)))[0]
    mel = np.linspace(*(1127 * np.log1p(np.array([audio.f_min, audio.f_high]) / 700)), audio.n_mels + 2)[1:-1]
    share = np.linspace(0, 1, 4001)
    nats = np.interp(share * audio.sample_rate / 2, 700 * np.expm1(mel / 1127), curve * audio.norm_scale)
    response = minimum_phase(firwin2(2049, share, np.exp(nats / 2)), half=False)
    mean, value = errors(response, audio.sample_rate, audio, kind, curve)
    assert mean < of_mean
    assert value < 0.2


def test_a_response_longer_than_the_window_is_more_than_an_offset() -> None:
    rng = np.random.default_rng(0)
    room = rng.normal(size=RATE) * 10 ** (-3 * np.arange(RATE) / RATE)  # T60 = 1 s
    assert errors(room, RATE, SMALL_AUDIO, "noise")[1] > 0.7
    assert share_outside(room, RATE, SMALL_AUDIO) > 0.5
    assert share_outside(device(), RATE, SMALL_AUDIO) < 0.02


@pytest.mark.parametrize("audio", [*FRONT_ENDS.values(), SMALL_AUDIO])
def test_a_device_that_changes_nothing_has_no_offset(audio: AudioConfig) -> None:
    np.testing.assert_allclose(band_offsets(np.ones(1), 2 * RATE, audio), 0, atol=1e-6)


@given(seed=st.integers(0, 99), gain=st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3), delay=st.integers(0, 5000))
@settings(max_examples=20)
def test_gain_delay_and_polarity_change_nothing(seed: int, gain: float, delay: int) -> None:
    response = device(seed)
    offset = band_offsets(response, RATE, TINY_AUDIO)
    assert offset.dtype == np.float32
    assert abs(offset.mean()) < 1e-6
    moved = np.concatenate([np.zeros(delay), gain * response])
    np.testing.assert_allclose(band_offsets(moved, RATE, TINY_AUDIO), offset, atol=1e-4)


def test_the_rate_of_the_file_changes_nothing() -> None:
    response = np.concatenate([np.zeros(1000), device()])  # resampling rings before the beginning, too
    offsets = [
        band_offsets(soxr.resample(response, RATE, rate, quality="VHQ"), rate, SMALL_AUDIO)
        for rate in (22_050, RATE, 96_000)
    ]
    np.testing.assert_allclose(offsets[0], offsets[1], atol=0.01)
    np.testing.assert_allclose(offsets[2], offsets[1], atol=0.01)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three responses, and a text file beside them."""
    folder = tmp_path / "devices"
    (folder / "old").mkdir(parents=True)
    for name, rate in (("a.wav", 44_100), ("b.flac", 48_000), ("old/c.WAV", 16_000)):
        response = device(seed=len(name), rate=rate)
        sf.write(folder / name, 0.5 * response / np.abs(response).max(), rate, subtype="PCM_24")
    (folder / "LICENCE.txt").write_text("free")
    return folder


def test_folders_globs_files_and_urls_name_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_responses([str(folder)], TINY_AUDIO, "x")
    assert whole.offsets.shape == (3, TINY_AUDIO.n_mels)
    by_name = [str(folder / "old/c.WAV"), str(folder / "*.*")]
    monkeypatch.chdir(folder.parent)
    fsspec.filesystem("memory").put(str(folder), "/bucket/devices", recursive=True)
    for names in (by_name, ["devices"], [f"file://{folder}"], ["memory://bucket/devices"]):
        again = read_responses(names, TINY_AUDIO, "x")
        assert again.digests == whole.digests
        np.testing.assert_array_equal(again.offsets, whole.offsets)


def test_offsets_follow_the_content_not_the_name(folder: Path) -> None:
    before = read_responses([str(folder)], TINY_AUDIO, "x")
    (folder / "a.wav").rename(folder / "old/z.wav")
    after = read_responses([str(folder)], TINY_AUDIO, "x")
    assert after.digests == before.digests
    np.testing.assert_array_equal(after.offsets, before.offsets)
    shutil.copy(folder / "b.flac", folder / "again.flac")  # twice as likely
    assert len(read_responses([str(folder)], TINY_AUDIO, "x").offsets) == 4


def write_bad(folder: Path) -> None:
    """Write files that are no impulse responses."""
    folder.mkdir()
    (folder / "text.wav").write_text("no sound")
    sf.write(folder / "silent.wav", np.zeros(400), 16_000)
    sf.write(folder / "song.wav", np.random.default_rng(0).normal(size=60_000) / 9, 16_000)
    sf.write(folder / "phone.wav", device(rate=6000)[:900], 6000, subtype="FLOAT")
    sf.write(folder / "nan.wav", np.full(400, np.nan), 16_000, subtype="FLOAT")
    (folder / "huge.wav").write_bytes(bytes(2**25 + 1))
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.wav", r"text\.wav: .*(decoded|not audio|format)"),
        ("silent.wav", r"silent\.wav: silent"),
        ("song.wav", r"song\.wav: 3\.8 s long: .*at most 3 s"),
        ("phone.wav", r"phone\.wav: its sample rate of 6000 Hz covers nothing above 3000 Hz; .*at least 8000 Hz"),
        ("nan.wav", r"nan\.wav: NaN"),
        ("huge.wav", r"huge\.wav: larger than 32 MB"),
        ("empty", "no audio file .*empty, nor one below"),
        ("missing.wav", r"no audio file .*missing\.wav"),
        ("*.mp3", r"no audio file .*\*\.mp3"),
        ("nosuchscheme://me:word@host/x", r"nosuchscheme://\*\*\*@host/x can't be read: .*nosuchscheme"),
    ],
)
def test_a_file_that_is_no_response_is_named(tmp_path: Path, name: str, message: str) -> None:
    write_bad(tmp_path / "bad")
    with pytest.raises(ValueError, match=f"^pretrain.augment.responses: .*{message}") as error:
        read_responses(
            [name if "://" in name else str(tmp_path / "bad" / name)], TINY_AUDIO, "pretrain.augment.responses"
        )
    assert "word" not in str(error.value)


def test_a_room_is_used_but_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decay = 10 ** (-2 * np.arange(16_000) / 16_000)
    sf.write(tmp_path / "room.wav", 0.1 * decay * np.random.default_rng(0).normal(size=16_000), 16_000)
    assert len(read_responses([str(tmp_path)], TINY_AUDIO, "x").offsets) == 1
    assert "room.wav" in caplog.text
    assert "outside one window of 25 ms" in caplog.text


# In a plan -----------------------------------------------------------------------------------------------------------


def make_plan(clips: pa.Table, storage: Path, pretrain: AugmentConfig, finetune: AugmentConfig) -> Plan:
    config = Config(
        audio=TINY_AUDIO,
        pretrain=PretrainConfig(augment=pretrain),
        finetune=FinetuneConfig(augment=finetune),
    )
    return Plan(config, clips, Folder(str(storage)), "evaluate")


def keys(*arguments) -> dict[str, str]:
    return {name: node.key for name, node in make_plan(*arguments).nodes.items()}


def test_keys_depend_on_content_and_probability_only(clips: pa.Table, folder: Path, tmp_path: Path) -> None:
    off, here = AugmentConfig(), AugmentConfig(responses=(str(folder),))
    shutil.copytree(folder, tmp_path / "elsewhere")
    there = AugmentConfig(responses=(str(tmp_path / "elsewhere/old"), f"{tmp_path}/elsewhere/*"), response_p=0.5)
    used = keys(clips, tmp_path, here, off)
    assert keys(clips, tmp_path, there, off) == used
    without = keys(clips, tmp_path, off, off)
    assert keys(clips, tmp_path, replace(here, response_p=0.0), off) == without
    for other in (off, replace(here, response_p=0.6), AugmentConfig(responses=(str(folder / "a.wav"),))):
        assert keys(clips, tmp_path, other, off)["pretrain"] != used["pretrain"]


def test_each_stage_has_its_own(clips: pa.Table, folder: Path, tmp_path: Path) -> None:
    off = AugmentConfig()
    one, two = AugmentConfig(responses=(str(folder),)), AugmentConfig(responses=(str(folder / "a.wav"),))
    plan = make_plan(clips, tmp_path, one, two)
    counts = {name: len(plan.spec(name).responses) for name in ("pretrain", "finetune", "cnn", "student")}
    assert counts == {"pretrain": 3, "finetune": 1, "cnn": 1, "student": 1}
    assert keys(clips, tmp_path, off, two)["pretrain"] == keys(clips, tmp_path, off, off)["pretrain"]
    assert make_plan(clips, tmp_path, off, two).spec("pretrain").responses is None
    with pytest.raises(ValueError, match=r"^finetune\.augment\.responses: there is no audio file /nowhere"):
        keys(clips, tmp_path, one, AugmentConfig(responses=("/nowhere",)))


@pytest.mark.parametrize("audio", [FRONT_ENDS["paper"], SMALL_AUDIO])
def test_a_response_as_a_waveform_is_at_the_level_of_its_offsets(audio: AudioConfig) -> None:
    """Convolution at the front end's rate changes each band's mean by the offset."""
    audio, response = replace(audio, log_offset=1e-12), device(seed=3)
    x = soxr.resample(sound("noise"), RATE, audio.sample_rate).astype(np.float32)
    heard = fftconvolve(x, levelled(response, RATE, audio))[: len(x)]
    log_mel = LogMel(audio)
    frames = slice(20, -20)
    change = log_mel(heard.astype(np.float32))[frames].mean(0) - log_mel(x)[frames].mean(0)
    inside = band_centres(audio) < 0.9 * audio.sample_rate / 2  # above it the resampler's filter begins
    assert np.abs(change - band_offsets(response, RATE, audio))[inside].max() < 0.15 / audio.norm_scale
