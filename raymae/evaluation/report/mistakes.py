"""Mistakes to listen to: their recordings as MP3s and pictures, small enough to be embedded in a page."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image

from raymae.audio.clip_reader import WaveformReader
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.config import AudioConfig, redact
from raymae.evaluation.report.document import Sample

log = logging.getLogger(__name__)

SECONDS = 10.0
"""The longest sound that is embedded of a clip: its beginning."""
RATE = 16_000
"""Its sample rate, Hz."""
COMPRESSION = 0.7
"""libsndfile's compression level: about 56 kbit/s at `RATE`, 70 kB for `SECONDS`."""
PEAK = 0.7
"""Its peak: quiet recordings are made louder, or a player would be silent."""
COLUMNS, RANGE_NATS = 320, 14.0
"""Columns of a picture at most, and the range of its colours below the loudest value (60 dB)."""
MOST_BYTES = 3_000_000
"""Of all sounds and pictures together; base64 makes them a third larger."""


def read_samples(
    mistakes: Mapping[str, Sequence[Mapping[str, Any]]], most: int, audio: AudioConfig, timeout: float
) -> list[Sample]:
    """The most confident mistakes over all splits, at most `most` and `MOST_BYTES`, with sound and picture.

    A recording that can't be read any more is left out, with a warning.

    Args:
        mistakes: those of `scores.mistakes`.
        most: their number.
        audio: the front end of the pictures.
        timeout: for each recording, seconds.
    """
    listed = [(split, one) for split, found in mistakes.items() for one in found]
    listed.sort(key=lambda item: -item[1]["confidence"])
    if not most or not listed:
        return []
    reader, log_mel = WaveformReader(audio, timeout), LogMel(audio)
    found: list[Sample] = []
    size = 0
    for split, one in listed[: 2 * most]:
        if len(found) == most:
            break
        try:
            clip, *_ = reader(one["path"], (one.get("start_seconds"), one.get("end_seconds")))
        except AudioError as error:
            log.warning("%s is a mistake that the report can't play: %s", redact(one["path"]), redact(str(error)))
            continue
        waveform = np.asarray(clip[: round(SECONDS * audio.sample_rate)], np.float32)
        sample = Sample(
            title=f"{one['true']}, taken for {one['predicted']}",
            lines=list(lines(split, one)),
            picture=picture(log_mel(waveform) * audio.norm_scale),
            audio=mp3(waveform, audio.sample_rate),
        )
        size += len(sample.picture) + len(sample.audio)
        if size > MOST_BYTES:
            break
        found.append(sample)
    return found


def lines(split: str, one: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a mistake."""
    yield f"{split}, confidence {one['confidence']:.3f}"
    known = [f"{name} {one[name]}" for name in ("device", "city") if one[name]]
    if known:
        yield ", ".join(known)
    start = one.get("start_seconds")
    yield redact(one["path"]) + (f" from {start:g} s" if start else "")


def mp3(waveform: NDArray[np.float32], rate: int) -> bytes:
    """A waveform (n,) as an MP3 at `RATE`, with its peak at `PEAK`."""
    if rate != RATE:  # MP3 has few rates, and a front end any
        waveform = soxr.resample(waveform, rate, RATE)
    peak = float(np.abs(waveform).max())
    sink = io.BytesIO()
    quality = {"bitrate_mode": "CONSTANT", "compression_level": COMPRESSION}
    soundfile.write(sink, waveform * (PEAK / peak if peak else 1.0), RATE, format="MP3", **quality)
    return sink.getvalue()


def picture(nats: NDArray[np.float32]) -> bytes:
    """A log-mel (T, F), nats, as a PNG with a column per frame, or of long ones per mean of several."""
    from matplotlib import colormaps

    edges = np.linspace(0, len(nats), min(COLUMNS, len(nats)), endpoint=False).astype(int)
    means = np.add.reduceat(nats, edges) / np.diff(edges, append=len(nats))[:, None]
    shades = np.round(255 * np.clip(1 + (means - means.max()) / RANGE_NATS, 0, 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(shades.T[::-1]))
    image.putpalette((colormaps["viridis"](np.arange(256), bytes=True)[:, :3]).tobytes())
    sink = io.BytesIO()
    image.save(sink, "png", optimize=True)
    return sink.getvalue()
