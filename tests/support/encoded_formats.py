"""Recordings in the formats of telephones, browsers and recorders, encoded by PyAV and damaged as programs damage them.

Every maker returns a file's bytes from mono samples.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np
import soundfile

RATE = 16_000


HERTZ = (211, 397, 563, 797, 1103, 1511, 2003, 2711, 3407, 4201, 5003, 6101)


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """A sound of inharmonic tones (n_samples,), float32: a shift by a sample shows, and codecs keep it."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.04 * sum(np.sin(2 * np.pi * hertz * time) for hertz in HERTZ).astype(np.float32)  # type: ignore[union-attr]


def bursts(seconds: float, rate: int = RATE) -> np.ndarray:
    """Noise, silence, noise: its bit rate varies."""
    wave = 0.1 * np.random.default_rng(7).standard_normal(round(seconds * rate))
    wave[len(wave) * 2 // 7 : len(wave) * 6 // 7] = 0
    return wave.astype(np.float32)


def encode(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    bit_rate: int = 48_000,
    options: dict[str, str] | None = None,
    video: bool = False,
) -> bytes:
    """A file of FFmpeg's container and codec; `video` adds some pictures."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container, options=options or {}) as file:
        pictures = file.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p") if video else None
        stream = file.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.bit_rate = bit_rate
        if pictures is not None:
            for _ in range(round(10 * len(samples) / rate)):
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                file.mux(pictures.encode(picture))
            file.mux(pictures.encode())
        kind = stream.codec_context.format.name
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        if not stream.codec_context.is_open:
            stream.codec_context.open()
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(format=kind, layout="mono", rate=rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode())
    return sink.getvalue()


def mp3(samples: np.ndarray, rate: int = RATE, *, xing: bool = True, vbr: bool = False) -> bytes:
    """An MP3 without tags, with or without a Xing frame, of constant or variable bit rate."""
    sink = io.BytesIO()
    mode = "VARIABLE" if vbr else "CONSTANT"
    soundfile.write(sink, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.8)
    return sink.getvalue() if xing else without_xing(sink.getvalue())


def without_xing(content: bytes) -> bytes:
    """An MP3 without its first frame, which holds the number of frames."""
    return content[content.index(content[:2], 4) :]


def wav(samples: np.ndarray, size: int | None = None, rate: int = RATE) -> bytes:
    """A 16 bit WAV whose header states `size` as the length of its data."""
    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    size = len(data) if size is None else size
    riff = struct.pack("<4sI4s", b"RIFF", min(size + 36, 2**32 - 1), b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return riff + form + struct.pack("<4sI", b"data", size) + data


def mp3_in_wav(content: bytes, rate: int = RATE) -> bytes:
    """An MP3 in a WAV file (format tag 0x55)."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate, 4000, 1, 0, 12, 1, 2, 144, 1, 0)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks
