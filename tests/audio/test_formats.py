"""MP3s without a count, WAVs of unknown size, FLACs that change, phones' containers: read whole or refused."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raymae.audio.decode import AudioError, load
from raymae.audio.length import length
from tests.support.encoded_formats import RATE, bursts, encode, mp3, tone, wav
from tests.support.format_cases import CASES, ID3, near
from tests.support.odd_audio import encode as encode_soundfile
from tests.support.odd_audio import noise

READ = [name for name, (_, right) in CASES.items() if isinstance(right, float)]


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_read_whole_or_refused(name: str, tmp_path: Path) -> None:
    make, right = CASES[name]
    content = make()
    (tmp_path / name).write_bytes(content)
    for source in (content, tmp_path / name, io.BytesIO(content)):
        if isinstance(right, float):
            assert near(load(source, RATE), RATE, right)
        else:
            with pytest.raises(AudioError) as caught:
                load(source, RATE)
            assert str(caught.value).startswith(right)


@pytest.mark.parametrize("name", READ)
def test_the_length_is_what_is_read(name: str) -> None:
    content = CASES[name][0]()
    found = length(content)
    if found is None:  # of WMA only decoding tells
        assert name.endswith(".wma")
        return
    assert len(load(content, found.sample_rate)) == found.frames
    assert abs(len(load(content, 22_050)) - found.seconds * 22_050) <= 1


LIBSNDFILE = [("WAV", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("W64", "PCM_16"), ("CAF", "ALAC_16")]
LIBSNDFILE += [("RF64", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("file_format", "subtype"), LIBSNDFILE)
def test_the_length_of_what_libsndfile_reads(file_format: str, subtype: str) -> None:
    content = encode_soundfile(noise(20_000), file_format, subtype)
    found = length(content)
    assert found is not None
    assert len(load(content, found.sample_rate)) == found.frames


def shift(part: np.ndarray, whole: np.ndarray, start: int) -> int:
    """By how many samples a part lies beside its place in the whole."""
    around = whole[start - 40 : start + len(part) + 40]
    return int(np.argmax(np.correlate(around, part, "valid"))) - 40


@pytest.mark.parametrize("name", READ)
def test_parts_are_those_of_the_whole(name: str) -> None:
    content = CASES[name][0]()
    rate = found.sample_rate if (found := length(content)) else 48_000
    whole = load(content, rate)
    for start in (0.25, 1.9):
        part = load(content, rate, start_seconds=start, seconds=0.05)
        assert len(part) == round(0.05 * rate)
        assert not part.any() or shift(part, whole, round(start * rate)) == 0


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("matroska", "flac")])
def test_parts_far_into_a_container(container: str, codec: str) -> None:
    content = encode(tone(20, 48_000), 48_000, container, codec)
    whole = load(content, 48_000)
    assert near(whole, 48_000, 20)
    part = load(content, 48_000, start_seconds=15.3, seconds=0.2)
    assert shift(part, whole, round(15.3 * 48_000)) == 0


def test_the_sound_of_a_container_is_that_of_its_samples() -> None:
    wave = tone(3, 48_000)
    for name in ("phone.m4a", "browser.webm", "video.mp4", "flac.oga"):
        found = load(CASES[name][0](), 48_000)[4800:-4800]
        assert np.corrcoef(found, wave[4800 : 4800 + len(found)])[0, 1] > 0.98, name


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"phone.m4a": "MP4", "phone.aac": "AAC", "browser.webm": "WebM or Matroska", "windows.wma": "WMA"}
    files = {name: CASES[name][0]() for name in names}
    monkeypatch.setitem(sys.modules, "av", None)
    for name, known in names.items():
        with pytest.raises(AudioError, match=rf"^{known} needs PyAV: pip install 'raymae\[formats\]'$"):
            load(files[name], RATE)


def test_a_sum_of_sizes_beyond_two_gigabytes_is_one_file(tmp_path: Path) -> None:
    """A file longer than the size that a pipe's header states: its end can be read, too."""
    path = tmp_path / "day.wav"
    with open(path, "wb") as file:  # sparse
        file.write(wav(np.zeros(0, np.float32), 0x7FFFF000))
        file.seek(2**32 + 2**20)
        file.write(b"\1\0" * RATE)
    found = length(path)
    assert found is not None
    assert found.frames == (2**32 + 2**20 + 2 * RATE - 44) // 2
    assert np.abs(load(path, RATE, start_seconds=found.seconds - 0.5)).max() > 0


def test_the_decoder_prints_nothing(tmp_path: Path) -> None:
    damaged = bytearray(ID3.replace(b"\0" * 100, b"COMM" + b"\xff" * 96, 1) + mp3(bursts(7), vbr=True))
    damaged[3000:3400] = b"\xff" * 400
    (tmp_path / "a.mp3").write_bytes(bytes(damaged) + b"no frame" * 500)
    (tmp_path / "b.mp3").write_bytes(mp3(bursts(7))[:-1] * 3)
    (tmp_path / "c.mp3").write_bytes(b"\xff\xe3\xdc\x27" * 5000)
    code = (
        "import sys\nfrom raymae.audio.decode import AudioError, load\n"
        "for name in sys.argv[1:]:\n    try:\n        load(name, 16000)\n    except AudioError:\n        pass\n"
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "libc.fprintf(ctypes.c_void_p.in_dll(libc, 'stderr'), b'others do')\nlibc.fflush(None)\n"
    )
    files = sorted(map(str, tmp_path.glob("*.mp3")))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr == b"others do"
