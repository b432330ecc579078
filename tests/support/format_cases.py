"""A file of each odd format, and its seconds or the start of the reason why it is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import soundfile

from tests.support.encoded_formats import bursts, encode, mp3, mp3_in_wav, tone, wav
from tests.support.odd_audio import changing_flac

Case = tuple[Callable[[], bytes], float | str]

ID3 = b"ID3\3\0\0\0\0\2\0" + bytes(256)
ID3V1 = b"TAG" + b"x" * 125
APE = b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(16)


def flac(rate: int, seconds: float = 2.0) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, tone(seconds, rate), rate, format="FLAC", subtype="PCM_16")
    return sink.getvalue()


def flac_of_two_rates() -> bytes:
    """A FLAC stream whose frames change their sample rate in mid-stream, counted as one."""
    one, two = flac(16_000), flac(24_000)
    start = 4
    last = False
    while not last:
        last = bool(one[start] & 0x80)
        start += 4 + int.from_bytes(one[start + 1 : start + 4], "big")
    count = 5 * 16_000
    header = one[:21] + bytes([one[21] & 0xF0]) + count.to_bytes(4, "big") + one[26:start]
    return header + one[start:] + two[start:]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def phone(container: str, codec: str, **options: object) -> Callable[[], bytes]:
    return lambda: encode(tone(3, 48_000), 48_000, container, codec, **options)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    "cbr_no_xing.mp3": (lambda: mp3(bursts(7), xing=False), 7.09),
    "cbr_no_xing_44k.mp3": (lambda: mp3(tone(5, 44_100), 44_100, xing=False), 5.04),
    "vbr_no_xing.mp3": (lambda: mp3(bursts(7), xing=False, vbr=True), 7.09),
    "vbr_xing.mp3": (lambda: mp3(bursts(7), vbr=True), 7.0),
    "vbr_xing_cut.mp3": (lambda: cut(mp3(bursts(7), vbr=True)), "truncated: "),
    "last_frame_cut.mp3": (lambda: mp3(bursts(7), xing=False)[:-10], "truncated: 10 bytes of its last frame"),
    "joined.mp3": (lambda: mp3(bursts(7), vbr=True) * 2, 14.09),
    "joined_rates.mp3": (lambda: mp3(bursts(7)) + mp3(tone(2, 24_000), 24_000), "several MP3 streams of different"),
    "tags.mp3": (lambda: ID3 + mp3(bursts(7), xing=False, vbr=True) + APE + ID3V1 + bytes(5000), 7.09),
    "tags_and_xing.mp3": (lambda: ID3 + mp3(bursts(7)) + APE + ID3V1 + bytes(5000), 7.0),
    "mp3_in_wav.wav": (lambda: mp3_in_wav(mp3(bursts(7), xing=False, vbr=True)), 7.09),
    "sox_pipe.wav": (lambda: wav(tone(2), 0x7FFFF000), 2.0),
    "arecord_pipe.wav": (lambda: wav(tone(2), 0x80000000), 2.0),
    "int_max.wav": (lambda: wav(tone(2), 0x7FFFFFFF), 2.0),
    "gstreamer_pipe.wav": (lambda: wav(tone(2), 0x7FFF0000), 2.0),
    "ffmpeg_pipe.wav": (lambda: wav(tone(2), 0xFFFFFFFF), 2.0),
    "size_zero.wav": (lambda: wav(tone(2), 0), 2.0),
    "really_empty.wav": (lambda: wav(tone(0)), "no samples"),
    "empty_and_a_list.wav": (lambda: wav(tone(0)) + b"LIST\4\0\0\0INFO", "no samples"),
    "really_cut.wav": (lambda: wav(tone(2), 4 * 16_000 * 2), "truncated: 64000 bytes of its data chunk"),
    "phone.m4a": (phone("ipod", "aac"), 3.0),
    "phone_cut.m4a": (lambda: cut(phone("ipod", "aac")()), "truncated: "),
    "phone_joined.m4a": (lambda: 2 * phone("ipod", "aac")(), "several MP4 files"),
    "phone.aac": (phone("adts", "aac"), 3.03),
    "browser.webm": (phone("webm", "libopus"), 3.0),
    "browser_cut.webm": (lambda: cut(phone("webm", "libopus")()), "truncated: "),
    "video.mp4": (phone("mp4", "aac", video=True), 3.0),
    "windows.wma": (phone("asf", "wmav2"), 2.99),
    "windows_cut.wma": (lambda: cut(phone("asf", "wmav2")()), "truncated: "),
    "flac.oga": (phone("ogg", "flac"), 3.0),
    "flac_cut.oga": (lambda: phone("ogg", "flac")()[:-100], "truncated: 100 bytes of its last page"),
    "flac_joined.oga": (lambda: 2 * phone("ogg", "flac")(), "several Ogg streams"),
    "two_rates.flac": (flac_of_two_rates, "changes from 1 channels at 16000 Hz to 1 channels at 24000 Hz"),
    "two_channels.flac": (lambda: changing_flac(1, 2, True), "can't be decoded: "),
    "joined.flac": (lambda: flac(16_000) + flac(24_000), "several FLAC streams"),
    "joined_twins.flac": (lambda: 2 * flac(16_000), "several FLAC streams"),
    "count_too_small.flac": (lambda: (one := flac(16_000))[:22] + (9_000).to_bytes(4, "big") + one[26:], 2.0),
}


def near(samples: np.ndarray, rate: int, seconds: float) -> bool:
    """Whether a waveform is as long as it should be, to a hundredth of a second."""
    return abs(len(samples) / rate - seconds) < 0.011
