"""Broken and unusual audio files and other files: each is read or refused with the right reason, and nothing hangs."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.formats.headers import find_audio, find_fault
from raymae.datasets.tables.table import read_table
from raymae.features.write import plan_shards, write_shard
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.odd_audio import RATE, changing_flac, encode, noise, ogg_with_serial, write_odd_files


def verdict(content: bytes) -> str | None:
    """Why a file is refused, or None."""
    try:
        waveform = load(content, RATE)
    except AudioError as error:
        return str(error)
    assert np.isfinite(waveform).all()
    return None


class Counted(io.BytesIO):
    """A file that counts what is read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        self.count += size
        return size


# Formats ------------------------------------------------------------------------------------------------------------

FORMATS = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "W64", "CAF", "FLAC")

SUBTYPES = ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")

EXACT = [
    (file_format, subtype, endian)
    for file_format in FORMATS
    for subtype in SUBTYPES
    for endian in ("FILE", "BIG", "LITTLE")
    if soundfile.check_format(file_format, subtype, endian)
]


def test_all_the_layouts_are_there() -> None:
    wanted = {("WAV", "PCM_24", "BIG"), ("WAV", "ALAW", "FILE"), ("AIFF", "PCM_24", "FILE"), ("AU", "FLOAT", "BIG")}
    assert wanted | {("RF64", "PCM_24", "FILE"), ("AIFF", "PCM_16", "LITTLE"), ("FLAC", "PCM_24", "FILE")} <= set(EXACT)


@pytest.mark.parametrize(("file_format", "subtype", "endian"), EXACT)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_layout_gives_the_samples_that_went_in(
    file_format: str, subtype: str, endian: str, channels: int
) -> None:
    wave = noise(1000, channels)
    content = encode(wave, file_format, subtype, endian=endian)
    step = {"PCM_S8": 2**-7, "PCM_16": 2**-15, "ALAW": 2**-5, "ULAW": 2**-5}.get(subtype, 2**-22)
    np.testing.assert_allclose(load(content, RATE), wave.mean(axis=1), atol=step, rtol=0)


SIZED = [item for item in EXACT if item[0] != "FLAC"] + [("CAF", "ALAC_16", "FILE"), ("WAV", "MS_ADPCM", "FILE")]


@pytest.mark.parametrize(("file_format", "subtype", "endian"), SIZED)
def test_a_file_that_ends_before_its_data(file_format: str, subtype: str, endian: str) -> None:
    content = encode(noise(20_000), file_format, subtype, endian=endian)
    assert verdict(content) is None
    assert verdict(content + bytes(1000)) is None
    for lost in (100, len(content) - 5000):
        message = verdict(content[:-lost]) or ""
        assert message.startswith("truncated: "), message


@pytest.mark.parametrize(("file_format", "offset"), [("AU", 8), ("WAV", 40)])
def test_an_unknown_length_is_the_files(file_format: str, offset: int) -> None:
    wave = noise(3000)
    content = bytearray(encode(wave, file_format, "PCM_16"))
    content[offset : offset + 4] = b"\xff" * 4
    np.testing.assert_allclose(load(bytes(content), RATE), wave[:, 0], atol=2**-15)


def test_a_fault_leaves_the_file_at_its_start() -> None:
    for kind in (*SIZED, ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):
        stream = io.BytesIO(encode(noise(5000), *kind[:2]))
        assert find_fault(stream, find_audio(stream)) is None
        assert stream.tell() == 0
    assert find_fault(io.BytesIO(), None) == "empty file"


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
def test_ogg_streams_one_after_the_other(first: int, second: int) -> None:
    one = ogg_with_serial(encode(noise(20_000, first), "OGG", "VORBIS"), 1)
    two = ogg_with_serial(encode(noise(30_000, second), "OGG", "VORBIS"), 2)
    assert verdict(one) is verdict(two) is None
    assert soundfile.info(io.BytesIO(one + two)).frames == 20_000  # libsndfile ignores the second stream
    assert verdict(one + two) == "several Ogg streams one after the other"
    assert verdict(one + b"a comment behind the last page" * 99) is None


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("counted", [True, False])
def test_channels_that_change_within_a_flac(first: int, second: int, counted: bool) -> None:
    assert "channel" in (verdict(changing_flac(first, second, counted)) or "")


def test_channels_that_change_within_an_mp3() -> None:
    def frames(channels: int, n_samples: int) -> bytes:
        content = encode(noise(n_samples, channels), "MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT")
        return content[content.index(content[:2], 100) :]  # without the frame that holds their number

    one, two = frames(1, 60_000), frames(2, 120_000)
    assert verdict(one) is verdict(two) is None
    assert (verdict(one + two) or "").startswith("several MP3 streams of different sample rates or channels")


# Parts --------------------------------------------------------------------------------------------------------------

PARTS = [("WAV", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("W64", "PCM_16"), ("CAF", "PCM_16")]

PARTS += [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("file_format", "subtype"), PARTS)
def test_only_the_part_is_read(file_format: str, subtype: str) -> None:
    mp3 = file_format == "MP3"  # slow to write, and seeking decodes all frames before
    content = encode(noise((15 if mp3 else 60) * RATE), file_format, subtype)
    for start in (0.0,) if mp3 else (0.0, 40.0):
        file = Counted(content)
        assert len(load(file, RATE, start_seconds=start, seconds=1)) == RATE
        assert file.count < len(content) * (0.7 if file_format == "OGG" else 0.1)


def test_each_odd_file_gets_its_verdict(tmp_path: Path) -> None:
    expected = write_odd_files(tmp_path)
    (tmp_path / "meta.csv").write_text("\n".join(["filename", *expected]))
    rows = read_table(str(tmp_path / "meta.csv"))
    summary = write_shard(Folder(str(tmp_path / "out")), "s.parquet", rows, ClipReader(TINY_AUDIO, 20))
    found = dict.fromkeys(expected) | {entry["clip_id"]: entry["reason"] for entry in summary["quarantine"]}
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert found[name] == reason or (reason and found[name].startswith(reason)), name
    assert summary["rows"] == sum(reason is None for reason in expected.values())


def test_a_device_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    with pytest.raises(AudioError, match="not a regular file"):
        ClipReader(TINY_AUDIO, 20)(str(tmp_path / "zero.wav"))
    (tmp_path / "meta.csv").write_text("filename\nzero.wav\n")
    with pytest.raises(ValueError, match=r"row 2: 'zero.wav': should stay in"):
        read_table(str(tmp_path / "meta.csv"))


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.03, 0.5, 1.0]))
def test_the_quarantine_is_exactly_the_broken_files(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(seed)
    sound = encoded(0, 5120)
    ways = [b"", sound[:-100], b"no audio", sound[:20], None]
    broken = []
    for index in range(70):
        bad = rng.random() < share
        content = ways[rng.integers(len(ways))] if bad else sound
        if content is not None:
            (folder / f"{index}.wav").write_bytes(content)
        broken += [f"{index}.wav"] * bad
    (folder / "meta.csv").write_text("\n".join(["filename", *(f"{index}.wav" for index in range(70))]))
    rows = read_table(str(folder / "meta.csv"))
    shards, reader = Folder(str(folder / "shards")), ClipReader(TINY_AUDIO, 20)
    plans = plan_shards(rows, TINY_AUDIO, 0.1)
    assert len(plans) > 3
    parts = [write_shard(shards, plan.name, rows.slice(plan.start, plan.stop - plan.start), reader) for plan in plans]
    assert [entry["clip_id"] for part in parts for entry in part["quarantine"]] == broken
    assert sum(part["rows"] for part in parts) == 70 - len(broken)


# Anything -----------------------------------------------------------------------------------------------------------

SEEDS = [
    encode(noise(3000), *kind)
    for kind in (
        *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("AU", "FLOAT"), ("W64", "PCM_16")),
        *(("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("WAV", "ALAW"), ("WAV", "MS_ADPCM"), ("AIFF", "PCM_24")),
    )
]


@settings(deadline=None, max_examples=200)
@given(
    content=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8))),
        min_size=1,
        max_size=5,
    ),
    length=st.one_of(st.none(), st.integers(0, 9000)),
    part=st.sampled_from([{}, {"start_seconds": 0.03, "seconds": 0.02}]),
)
def test_mutated_files_are_read_or_refused(
    content: bytes, changes: list[tuple[int, bytes]], length: int | None, part: dict[str, float]
) -> None:
    mutated = bytearray(content)
    for where, what in changes:
        mutated[where : where + len(what)] = what
    try:
        waveform = load(bytes(mutated[:length]), RATE, **part)
    except AudioError as error:
        assert 0 < len(str(error)) < 200  # noqa: PT017
        return
    assert waveform.ndim == 1
    assert len(waveform)
    assert np.isfinite(waveform).all()
