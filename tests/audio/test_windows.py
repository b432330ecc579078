"""Windows of long recordings: the same however they are read, together the whole recording, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio import windows
from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.errors import AudioError, SilentError, TooLongError
from raymae.audio.spans import WHOLE
from raymae.audio.windows import least_samples, read_spans, read_windows, window_starts
from tests.support.audio_files import TINY_AUDIO

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples
RATES = [8000, 11025, 16000, 22050, 44100, 96000]


def write_noise(path: Path, seconds: float, rate: int, **kind: str) -> str:
    wave = 0.1 * np.random.default_rng(rate).standard_normal(round(seconds * rate))
    soundfile.write(path, wave, rate, **({"subtype": "PCM_16"} | kind))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    folder = tmp_path_factory.mktemp("audio")
    return {rate: write_noise(folder / f"{rate}.wav", 5.0, rate) for rate in RATES}


@pytest.mark.parametrize("rate", RATES)
def test_the_windows_are_the_recording(files: dict[int, str], rate: int) -> None:
    found = list(read_windows(files[rate], TINY_AUDIO))
    whole = load(files[rate], RATE)
    assert [start for start, _ in found] == list(window_starts(len(whole), TINY_AUDIO))
    joined = np.concatenate([wave for _, wave in found])
    np.testing.assert_allclose(joined, whole[: len(joined)], atol=1e-6)
    assert len(whole) - len(joined) < least_samples(TINY_AUDIO)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rate=st.sampled_from(RATES))
def test_a_window_is_the_same_whatever_is_read_with_it(files: dict[int, str], data: st.DataObject, rate: int) -> None:
    every = [(start / RATE, (start + len(wave)) / RATE, wave) for start, wave in read_windows(files[rate], TINY_AUDIO)]
    chosen = sorted(data.draw(st.sets(st.integers(0, len(every) - 1), min_size=1)))
    found = read_spans(files[rate], TINY_AUDIO, [every[place][:2] for place in chosen])
    for place, wave in zip(chosen, found, strict=True):
        np.testing.assert_array_equal(wave, every[place][2])


def test_a_jump_reads_what_decoding_does(files: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [(4.48, 4.9)]
    (decoded,) = read_spans(files[44100], TINY_AUDIO, spans)
    monkeypatch.setattr(windows, "JUMP_SECONDS", 1.0)
    (jumped,) = read_spans(files[44100], TINY_AUDIO, spans)
    np.testing.assert_array_equal(decoded, jumped)


@given(st.integers(0, 10 * CLIP))
def test_every_second_is_in_a_window(n_samples: int) -> None:
    starts = window_starts(n_samples, TINY_AUDIO)
    heard = sum(min(CLIP, n_samples - start) for start in starts)
    assert n_samples - heard < least_samples(TINY_AUDIO)
    assert list(starts) == [CLIP * number for number in range(len(starts))]


def test_a_few_more_milliseconds_make_no_window(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.wav", (CLIP + least_samples(TINY_AUDIO) - 1) / RATE, RATE)
    assert len(list(read_windows(path, TINY_AUDIO))) == 1


def test_only_a_window_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held = write_noise(tmp_path / "long.flac", 60, 16000), []
    real = windows._Parts.read

    def read(self: windows._Parts, start: int, stop: int) -> windows.FloatArray:
        found = real(self, start, stop)
        held.append(len(self.samples))
        return found

    monkeypatch.setattr(windows._Parts, "read", read)
    assert len(list(read_windows(path, TINY_AUDIO))) == 94
    assert max(held) < 2 * 16000


def test_floats_have_one_scale(tmp_path: Path) -> None:
    quiet, loud = np.full(CLIP, 10.0), 20000 * np.sin(np.arange(CLIP))
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, loud]), RATE, subtype="FLOAT")
    first, second = (wave for _, wave in read_windows(str(tmp_path / "a.wav"), TINY_AUDIO))
    np.testing.assert_allclose(first, 10 / 2**15, rtol=1e-6)
    assert 0.5 < second.max() < 1


def test_faults_are_named(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.wav", 3.0, RATE)
    with pytest.raises(AudioError, match=r"only 3\.00 s long, but the part starts at 4 s"):
        list(read_spans(path, TINY_AUDIO, [(4.0, 4.5)]))
    far = write_noise(tmp_path / "far.flac", 60.0, RATE)
    with pytest.raises(AudioError, match=r"only 60\.00 s long, but the part starts at 3600 s"):
        list(read_spans(far, TINY_AUDIO, [(3600.0, 3601.0)]))
    with pytest.raises(TooLongError, match="longer than"):
        list(read_windows(path, TINY_AUDIO, max_seconds=2.0))
    content = Path(write_noise(tmp_path / "b.flac", 30.0, RATE)).read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError):
        list(read_windows(str(tmp_path / "cut.flac"), TINY_AUDIO))


def test_one_request_decodes_once_and_names_silent_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(CLIP)
    soundfile.write(tmp_path / "a.wav", np.concatenate([noise, np.zeros(CLIP), noise]), RATE)
    reader, opened = ClipReader(TINY_AUDIO, 10), []
    real = windows.open_audio
    monkeypatch.setattr(windows, "open_audio", lambda source: opened.append(source) or real(source))
    spans = [(number * 0.64, (number + 1) * 0.64) for number in range(5)]
    first, second, third, *beyond = reader.each(str(tmp_path / "a.wav"), spans)
    assert not isinstance(first, AudioError)
    assert not isinstance(third, AudioError)
    np.testing.assert_array_equal(first[0], third[0])
    assert isinstance(second, SilentError)
    assert [str(one) for one in beyond] == ["only 1.92 s long, but the part starts at 1.92 s"] * 2
    assert len(opened) == 1
    whole = reader(str(tmp_path / "a.wav"), WHOLE)
    np.testing.assert_array_equal(whole[0], first[0])
