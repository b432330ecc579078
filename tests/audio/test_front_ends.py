"""The front ends of `FRONT_ENDS` and combinations of their settings, against torchaudio's fbank and torch's STFT."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import melscale_fbanks

from raymae.audio.decode import load
from raymae.audio.logmel import LogMel, mel_bank
from raymae.audio.power_spectrum import KaldiSpectra
from raymae.benchmark.harness.torchaudio_baselines import TorchLogMel, kaldi_bank
from raymae.config import FRONT_ENDS, AudioConfig, AugmentConfig
from raymae.config.recipes import RECIPES
from raymae.features.augment import crop_frames
from raymae.models.patches import grid_size
from tests.support.paths import SHARED

ESC10 = SHARED / "data/esc10/audio"

AUDIOMAE, CAS = FRONT_ENDS["audiomae"], FRONT_ENDS["cas_baseline"]
TINY = AudioConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=32, clip_seconds=0.64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def audiomae(waveform: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Reference: Audio-MAE's dataset.py, `_wav2fbank` and the normalisation after it."""
    x = torch.from_numpy(waveform).to(dtype)[None]
    features = fbank(
        x - x.mean(),
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return ((features + 4.2677393) / (2 * 4.5689974)).numpy()


def slaney_bank(config: AudioConfig) -> torch.Tensor:
    return melscale_fbanks(
        config.n_fft // 2 + 1, config.f_min, config.f_high, config.n_mels, config.sample_rate, "slaney", "slaney"
    ).T


def cas_baseline(waveform: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Reference: the CAS baseline's spectrum and bands with the logarithm that `AudioConfig` documents."""
    spectrum = torch.stft(
        torch.from_numpy(waveform).to(dtype),
        n_fft=2048,
        hop_length=882,
        win_length=1764,
        window=torch.hann_window(1764, periodic=True, dtype=dtype),
        center=True,
        return_complex=True,
    )
    mel = slaney_bank(CAS).to(dtype) @ spectrum.abs().square()
    return ((torch.log(mel + 1e-8) - CAS.norm_mean) / CAS.norm_scale).T.numpy()


REFERENCES = {"audiomae": audiomae, "cas_baseline": cas_baseline}
NAMES = sorted(REFERENCES)


def noise(n: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(n).standard_normal(n)).astype(np.float32)


def silence(n: int) -> np.ndarray:
    return np.zeros(n, np.float32)


def square_wave(n: int) -> np.ndarray:
    return np.where(np.arange(n) // 37 % 2, 1.0, -1.0).astype(np.float32)


def impulse(n: int) -> np.ndarray:
    return (np.arange(n) == n // 3).astype(np.float32)


def with_offset(n: int) -> np.ndarray:
    """A recording with a large offset and a low level."""
    return 0.7 + noise(n, 1e-3)


def lowest_bits(n: int) -> np.ndarray:
    """16 bit samples that use the lowest bits only."""
    return np.round(noise(n, 1.0)) / np.float32(2**15)


SIGNALS = [noise, silence, square_wave, impulse, with_offset, lowest_bits]


def check(name: str, waveform: np.ndarray) -> None:
    """Within 1e-3 of the reference, both as users run it (float32) and in float64."""
    log_mel = LogMel(FRONT_ENDS[name])(waveform)
    assert log_mel.dtype == np.float32
    assert log_mel.shape == (FRONT_ENDS[name].frames(len(waveform)), FRONT_ENDS[name].n_mels)
    for dtype in (torch.float32, torch.float64):
        np.testing.assert_allclose(log_mel, REFERENCES[name](waveform, dtype), atol=1e-3, rtol=0, err_msg=str(dtype))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("seconds", [3, 60])
def test_equals_the_reference(name: str, signal, seconds: int) -> None:
    check(name, signal(seconds * FRONT_ENDS[name].sample_rate + 123))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_on_recordings(name: str) -> None:
    if not ESC10.exists():
        pytest.skip("the ESC-10 recordings are not here")
    for path in sorted(ESC10.rglob("*.ogg"))[::20]:
        check(name, load(path, FRONT_ENDS[name].sample_rate))


@pytest.mark.parametrize(("name", "shortest"), [("audiomae", 400), ("cas_baseline", 1025)])
@pytest.mark.parametrize("more", [0, 1, 159, 160, 161, 881, 882, 883])
def test_equals_the_reference_from_the_shortest_on(name: str, shortest: int, more: int) -> None:
    check(name, noise(shortest + more))


@pytest.mark.parametrize(("name", "shortest"), [("audiomae", 400), ("cas_baseline", 1025)])
@pytest.mark.parametrize("n_samples", [0, 1, 2, 200, 399, 882, 1024])
def test_short_waveforms_are_zero_padded(name: str, shortest: int, n_samples: int) -> None:
    waveform = noise(n_samples)
    log_mel = LogMel(FRONT_ENDS[name])(waveform)
    assert len(log_mel) == FRONT_ENDS[name].frames(n_samples) >= 1
    padded = np.pad(waveform, (0, max(0, shortest - n_samples)))
    np.testing.assert_allclose(log_mel, REFERENCES[name](padded)[: len(log_mel)], atol=1e-3, rtol=0)


def test_shapes() -> None:
    assert FRONT_ENDS["paper"] == AudioConfig()
    assert (AUDIOMAE.n_frames, AUDIOMAE.frames(160_000), AUDIOMAE.n_mels) == (1024, 998, 128)
    assert (CAS.n_frames, CAS.n_mels) == (501, 64)


def test_the_recipe_has_audiomaes_grid() -> None:
    config = RECIPES["audiomae"]()
    assert config.audio == AUDIOMAE
    assert grid_size(config.audio.n_frames, config.audio.n_mels, config.model.patch_size) == (64, 8)


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    more=st.integers(0, 5_000),
    level=st.sampled_from([1e-6, 1e-3, 0.1, 1.0]),
    data=st.data(),
)
def test_equals_the_reference_at_any_length_and_level(name: str, more: int, level: float, data: st.DataObject) -> None:
    shortest = {"audiomae": 400, "cas_baseline": 1025}[name]
    start = data.draw(st.integers(0, shortest + more))
    waveform = noise(shortest + more, level)
    waveform[:start] = 0  # digital silence, then sound
    check(name, waveform)


# Combinations of the presets' settings -------------------------------------------------------------------------------

KINDS = [
    {"framing": framing, "window": window, "mel_scale": scale, "log_floor": floor}
    for framing in ("centred", "kaldi")
    for window in ("symmetric", "periodic")
    for scale in ("kaldi", "slaney")
    for floor in ("add", "clamp")
]


def reference(waveform: np.ndarray, config: AudioConfig) -> np.ndarray:
    """The front end as the fields of AudioConfig document it, in float64 and frame by frame."""
    x, a, n = waveform.astype(np.float64), config.pre_emphasis, config.win_length
    window = torch.hann_window(n, periodic=config.window == "periodic", dtype=torch.float64).numpy()
    if config.framing == "centred":
        x = x[1:] - a * x[:-1] if a else x
        x = np.pad(x, config.n_fft // 2, mode="reflect")[(config.n_fft - n) // 2 :]
    powers = []
    for index in range(config.frames(len(waveform))):
        frame = x[index * config.hop_length :][:n]
        if config.framing == "kaldi":
            frame = frame - frame.mean()
            frame = frame - a * np.concatenate([frame[:1], frame[:-1]])
        powers.append(np.abs(np.fft.rfft(frame * window, config.n_fft)) ** 2)
    bank = slaney_bank(config) if config.mel_scale == "slaney" else kaldi_bank(config)
    mel = np.array(powers) @ bank.numpy().T.astype(np.float64)
    mel = mel + config.log_offset if config.log_floor == "add" else np.maximum(mel, config.log_offset)
    return (np.log(mel) - config.norm_mean) / config.norm_scale


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(kinds.values()))
@pytest.mark.parametrize("pre_emphasis", [0.0, 0.97])
@pytest.mark.parametrize("sizes", [(256, 200), (256, 256), (4096, 3071)])
def test_every_combination(kinds: dict[str, str], pre_emphasis: float, sizes: tuple[int, int]) -> None:
    n_fft, win_length = sizes
    config = AudioConfig(
        sample_rate=16_000, n_fft=n_fft, win_length=win_length, hop_length=177, n_mels=20, f_min=100.0,
        f_max=7_000.0, pre_emphasis=pre_emphasis, log_offset=1e-6, **kinds,
    )  # fmt: skip
    waveform = noise(9_000) + np.float32(0.25)
    np.testing.assert_allclose(LogMel(config)(waveform), reference(waveform, config), atol=1e-3, rtol=0)
    np.testing.assert_allclose(LogMel(config)(silence(9_000)), config.silence, atol=1e-5)


@settings(max_examples=60)
@given(
    kinds=st.sampled_from(KINDS),
    n_samples=st.integers(0, 3_000),
    win_length=st.integers(3, 256),
    hop_length=st.integers(1, 400),
    pre_emphasis=st.sampled_from([0.0, 0.5]),
)
def test_frames_of_any_length(
    kinds: dict[str, str], n_samples: int, win_length: int, hop_length: int, pre_emphasis: float
) -> None:
    config = replace(TINY, win_length=win_length, hop_length=hop_length, pre_emphasis=pre_emphasis, **kinds)
    log_mel = LogMel(config)(noise(n_samples))
    assert log_mel.shape == (config.frames(n_samples), config.n_mels)
    assert np.isfinite(log_mel).all()
    assert log_mel.min() >= config.silence - 1e-4


@settings(max_examples=40)
@given(offset=st.floats(-1, 1, width=32), n_samples=st.integers(400, 2_000))
def test_an_offset_changes_no_kaldi_frame(offset: float, n_samples: int) -> None:
    """So Audio-MAE's subtraction of the recording's mean needs no step of its own."""
    waveform = noise(n_samples)
    shifted = LogMel(AUDIOMAE)(waveform + np.float32(offset))
    np.testing.assert_allclose(shifted, LogMel(AUDIOMAE)(waveform), atol=1e-3)


@pytest.mark.parametrize("config", [CAS, replace(CAS, n_mels=128, f_min=0.0), replace(TINY, mel_scale="slaney")])
def test_slaneys_bank_equals_torchaudios(config: AudioConfig) -> None:
    bank, expected = mel_bank(config), slaney_bank(config).numpy()
    np.testing.assert_allclose(bank, expected, atol=1e-4 * expected.max())


def test_slaneys_triangles_have_area_one() -> None:
    config = replace(CAS, n_fft=2**16)
    areas = mel_bank(config).sum(axis=1) * config.sample_rate / config.n_fft
    np.testing.assert_allclose(areas, 1, atol=1e-3)


def test_a_crop_is_never_longer_than_the_clip() -> None:
    assert crop_frames(AugmentConfig(crop_seconds=AUDIOMAE.clip_seconds), AUDIOMAE) == AUDIOMAE.n_frames
    assert crop_frames(AugmentConfig(crop_seconds=5.12), AUDIOMAE) == 512


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"framing": "snip"}, "audio.framing = 'snip' must be one of centred, kaldi"),
        ({"window": "hamming"}, "audio.window = 'hamming' must be one of symmetric, periodic"),
        ({"mel_scale": "htk"}, "audio.mel_scale = 'htk' must be one of kaldi, slaney"),
        ({"log_floor": ""}, "audio.log_floor = '' must be one of add, clamp"),
        ({"win_length": 2}, "audio.win_length = 2 must lie between 3 and audio.n_fft"),
        ({"log_offset": 1e-50}, "audio.log_offset = 1e-50 must be finite and at least 1e-37"),
        ({"norm_mean": float("nan")}, "audio.norm_mean = nan must be finite"),
        ({"norm_scale": float("inf")}, "audio.norm_scale = inf must be positive and finite"),
    ],
)
def test_wrong_settings_name_the_valid_ones(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioConfig(**wrong)


def test_the_benchmarks_reference_refuses_what_it_does_not_compute() -> None:
    for config in (AUDIOMAE, CAS):
        with pytest.raises(AssertionError):
            TorchLogMel(config)


@pytest.mark.parametrize("pre_emphasis", [0.0, 0.97])
def test_a_frames_first_sample_is_its_own_predecessor(pre_emphasis: float) -> None:
    """Tested without a Hann window, whose first weight is 0."""
    samples, powers = noise(500), np.empty((3, 129), np.float32)
    KaldiSpectra(np.ones(200, np.float32), 256, 150, pre_emphasis)(samples, powers)
    for start, power in zip((0, 150, 300), powers, strict=True):
        frame = samples[start : start + 200].astype(np.float64)
        frame -= frame.mean()
        frame -= pre_emphasis * np.r_[frame[0], frame[:-1]]
        np.testing.assert_allclose(power, np.abs(np.fft.rfft(frame, 256)) ** 2, atol=1e-5)
