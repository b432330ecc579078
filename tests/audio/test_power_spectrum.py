"""Power spectra against numpy's FFT in double precision."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio.power_spectrum import CompiledSpectra, PowerSpectra, _compiled, power_spectra


def reference(samples: np.ndarray, window: np.ndarray, n_fft: int, hop: int, count: int) -> np.ndarray:
    frames = np.stack([samples[i * hop : i * hop + len(window)] for i in range(count)]).astype(np.float64)
    return np.abs(np.fft.rfft(frames * window, n_fft, axis=1)) ** 2


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from(
        [(4096, 3072), (4096, 2048), (4096, 2999), (4096, 4096), (4096, 400), (1024, 400), (200, 77)]
    ),
    hop=st.integers(1, 700),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_powers_equal_numpys(shape: tuple[int, int], hop: int, count: int, seed: int) -> None:
    n_fft, win_length = shape
    rng = np.random.default_rng(seed)
    window = np.hanning(win_length).astype(np.float32)
    samples = rng.standard_normal((count - 1) * hop + n_fft).astype(np.float32)
    out = np.full((count, n_fft // 2 + 1), np.nan, np.float32)
    power_spectra(window, n_fft, hop)(samples, out)
    expected = reference(samples, window, n_fft, hop, count)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-6 * expected.max())


@pytest.mark.parametrize("where", [0, 1, 1023, 1024, 2047, 3071])
def test_an_impulse_has_a_flat_spectrum(where: int) -> None:
    samples = np.zeros(4096, np.float32)
    samples[where] = 2
    out = np.empty((1, 2049), np.float32)
    CompiledSpectra(np.ones(3072, np.float32), 4096, 500)(samples, out)
    np.testing.assert_allclose(out, 4, rtol=1e-6)


@pytest.mark.parametrize("bin_number", [0, 1, 511, 512, 1023, 1024, 1025, 2047, 2048])
def test_a_tone_lies_in_its_bin(bin_number: int) -> None:
    samples = np.cos(2 * np.pi * bin_number / 4096 * np.arange(4096)).astype(np.float32)
    out = np.empty((1, 2049), np.float32)
    CompiledSpectra(np.hanning(3072), 4096, 500)(samples, out)
    assert out.argmax() == bin_number


def test_only_the_sizes_of_the_paper_are_compiled() -> None:
    assert isinstance(power_spectra(np.hanning(3072), 4096, 500), CompiledSpectra)
    for n_fft, win_length in [(4096, 4096), (4096, 1000), (1024, 400), (8192, 3072)]:
        assert type(power_spectra(np.hanning(win_length), n_fft, 500)) is PowerSpectra


def test_too_few_samples_are_refused() -> None:
    spectra, out = power_spectra(np.hanning(3072), 4096, 500), np.empty((3, 2049), np.float32)
    spectra(np.zeros(4072, np.float32), out)
    with pytest.raises(ValueError, match="4071 samples are too few for 3 frames"):
        spectra(np.zeros(4071, np.float32), out)


def test_code_that_cannot_be_cached_is_still_compiled() -> None:
    space: dict = {}
    exec("def double(x):\n    return 2 * x", space)  # no file beside which the compiled code could be cached
    assert _compiled(space["double"])(21) == 42


def test_the_process_that_compiles_computes_the_same_bits_as_later_ones(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np; from raymae.audio.logmel import LogMel; "
        "noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32); "
        "print(hashlib.sha256(LogMel()(noise).tobytes()).hexdigest())"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    first, second = (subprocess.run(command, env=environment, capture_output=True, check=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert len(first.stdout) > 60
