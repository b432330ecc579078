"""Unusual and damaged audio files: odd formats, wrong headers, streams that change."""

from __future__ import annotations

import csv
import io
import os
import struct
from pathlib import Path

import numpy as np
import soundfile

from tests.support.paths import SHARED

ODD = SHARED / "data/odd_audio"


def flac_of_count(samples: np.ndarray, count: int) -> bytes:
    """A FLAC file whose header claims `count` samples."""
    content = bytearray(encode(samples, "FLAC", "PCM_24"))
    content[21] &= 0xF0  # the last 36 bits of STREAMINFO's bytes 10-17 count the samples
    content[22:26] = count.to_bytes(4, "big")
    return bytes(content)


REFUSED_BY_RAYMAE = {
    "scipy/test-44100Hz-le-1ch-4bytes-early-eof.wav": "truncated: 16696 bytes of its data chunk are missing"
}
"""Files that libsndfile reads, and why raymae refuses them."""


def odd_files() -> list[dict[str, str]]:
    if not ODD.exists():
        return []
    with open(ODD / "files.csv", newline="") as file:
        return list(csv.DictReader(file))


RATE = 32_000


def noise(n_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    wave = 0.1 * np.random.default_rng(seed).standard_normal((n_samples, channels))
    return wave.clip(-1, 1)


def encode(wave: np.ndarray, file_format: str, subtype: str, **more: object) -> bytes:
    """Encode a file, written in pieces: libsndfile's Vorbis encoder overflows its stack with a long one."""
    stream = io.BytesIO()
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    with soundfile.SoundFile(stream, "w", RATE, channels, subtype, format=file_format, **more) as file:
        for start in range(0, len(wave), 100_000):
            file.write(wave[start : start + 100_000])
    return stream.getvalue()


# Streams that change ------------------------------------------------------------------------------------------------


def ogg_with_serial(content: bytes, serial: int) -> bytes:
    """An Ogg file with another serial number in its pages, and valid checksums."""
    pages, at = [], 0
    while at < len(content):
        segments = content[at + 26]
        size = 27 + segments + sum(content[at + 27 : at + 27 + segments])
        page = bytearray(content[at : at + size])
        page[14:18], page[22:26] = struct.pack("<I", serial), bytes(4)
        check = 0
        for byte in page:
            check ^= byte << 24
            for _ in range(8):
                check = (check << 1) ^ (0x104C11DB7 if check >> 31 else 0)
        page[22:26] = struct.pack("<I", check)
        pages.append(bytes(page))
        at += size
    return b"".join(pages)


def changing_flac(first: int, second: int, counted: bool) -> bytes:
    """A FLAC file whose number of channels changes, with or without its count of samples."""

    def split(content: bytes) -> tuple[bytes, bytes]:
        at, last = 4, 0
        while not last:
            last = content[at] >> 7
            at += 4 + int.from_bytes(content[at + 1 : at + 4], "big")
        return content[:at], content[at:]

    header, frames = split(encode(noise(20_000, first), "FLAC", "PCM_16"))
    more = split(encode(noise(30_000, second), "FLAC", "PCM_16"))[1]
    header = header[:21] + bytes([header[21] & 0xF0]) + struct.pack(">I", 50_000 * counted) + header[26:]
    return header + frames + more


# Verdicts -----------------------------------------------------------------------------------------------------------


def float_wave(*values: float) -> bytes:
    return encode(np.array([0.1, *values, 0.2] * 500, np.float32), "WAV", "FLOAT")


def write_odd_files(folder: Path) -> dict[str, str | None]:
    """Write files; the reason why each has to be refused, None for a good one."""
    good = encode(noise(20_000), "WAV", "PCM_16")
    flac = encode(noise(20_000), "FLAC", "PCM_16")
    one, two = (ogg_with_serial(encode(noise(20_000, n), "OGG", "VORBIS"), n) for n in (1, 2))
    files = {
        "good.wav": (good, None),
        "no_count.flac": (flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:], None),
        "a_law.wav": (encode(noise(20_000), "WAV", "ALAW"), None),
        "rifx.wav": (encode(noise(20_000), "WAV", "PCM_24", endian="BIG"), None),
        "big.aiff": (encode(noise(20_000), "AIFF", "PCM_24"), None),
        "rf64.wav": (encode(noise(20_000), "RF64", "PCM_24"), None),
        "peak_16411.wav": (float_wave(16_411, -16_411), None),
        "nan.wav": (float_wave(np.nan), "NaN or infinite samples"),
        "inf.wav": (float_wave(-np.inf), "NaN or infinite samples"),
        "huge.wav": (float_wave(1e30), "samples up to 1e+30 are not a waveform"),
        "empty.wav": (b"", "empty file"),
        "zero_length.wav": (encode(noise(0), "WAV", "PCM_16"), "no samples"),
        "cut.wav": (good[:-1000], "truncated: 1000 bytes of its data chunk are missing"),
        "cut.flac": (flac[: len(flac) // 2], "can't be decoded: "),
        "chained.ogg": (one + two, "several Ogg streams one after the other"),
        "page.wav": (b"<html>404 Not Found</html>", "can't be decoded: "),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.wav")
    (folder / "folder.wav").mkdir()
    (folder / "nowhere.wav").symlink_to(folder / "absent")
    special = {"fifo.wav": "not a regular file", "folder.wav": "not a regular file"}
    missing = dict.fromkeys(("nowhere.wav", "absent.wav"), "No such file or directory")
    return {name: reason for name, (_, reason) in files.items()} | special | missing
