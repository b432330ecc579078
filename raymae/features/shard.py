"""Footer, checksum and damage of a shard.

The footer's entry `raymae` is JSON: the front end's settings and a summary (rows, seconds, quarantine, compression,
checksum, and the valid frames, seconds, mean, mean square and CRC-32 of every clip). The checksum is the CRC-32 of the
whole file with zeros in place of the checksum itself, so that it needs no second file.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.config import AudioConfig, from_dict, redact
from raymae.features.pages import page_starts
from raymae.storage.folder import Folder
from raymae.storage.retry import StorageError

META = b"raymae"
DAMAGED = ".damaged"
"""Name ending of an empty file that marks the shard beside it as damaged: the next listing finds it."""
SILENT = "silent"
"""Field of a quarantined clip that was read, but holds no sound."""
BLANK = "0" * 8
_SLOT = b'"crc32": "'  # a quote within a JSON string is escaped: nothing else in the footer matches
_TAIL = 8  # a Parquet file ends with the length of its footer and PAR1
_UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, TypeError)


def checksum(content: bytes | memoryview) -> tuple[int, str]:
    """Offset of a shard's checksum field and the checksum of its content; ValueError if it has no such field.

    zlib's CRC-32 does 7 GB/s on one core, more than a disk reads.
    """
    view = memoryview(content)
    start = max(0, len(view) - _TAIL - int.from_bytes(view[-_TAIL:-4], "little"))
    found = bytes(view[start:]).rfind(_SLOT)
    if found < 0:
        raise ValueError("no checksum")
    at = start + found + len(_SLOT)
    crc = zlib.crc32(view[at + len(BLANK) :], zlib.crc32(BLANK.encode(), zlib.crc32(view[:at])))
    return at, f"{crc:08x}"


def seal(shard: pa.Buffer) -> tuple[bytes, str]:
    """Write the checksum into a shard; returns the shard and the checksum."""
    view = memoryview(shard).cast("B")  # written in place: a copy would take another 128 MB
    at, crc = checksum(view)
    view[at : at + len(crc)] = crc.encode()
    return shard.to_pybytes(), crc


def intact(content: bytes) -> bool:
    """Whether a shard's checksum is right."""
    try:
        at, crc = checksum(content)
    except ValueError:
        return False
    return content[at : at + len(crc)] == crc.encode()


def read_summary(target: Folder, name: str, verify: bool = False) -> dict[str, Any] | None:
    """The summary of a shard and its size; None if it is missing or not a complete Parquet file.

    Only the footer is read; with `verify` every byte is read and checked.
    """
    try:
        with target.open(name) as file:
            if verify and not intact(file.read()):
                return None
            metadata = pq.read_metadata(file)
            entry = json.loads(metadata.metadata[META])
            found, shape = dict(entry["summary"]), from_dict(AudioConfig, entry["audio"])
            if found.get("sums"):
                found["starts"] = page_starts(metadata, 2 * shape.n_frames * shape.n_mels)
            return found | {"size": file.seek(0, 2)}
    except _UNREADABLE:
        return None


def asks_again(entry: dict[str, Any], timeout: float) -> bool:
    """Whether a quarantined clip should be read again: the reason may have passed, or the time limit is higher now."""
    return bool(entry.get("passing")) or entry.get("limit", timeout) < timeout


def usable_shards(shards: Folder) -> dict[str, int]:
    """Name and size of every shard that isn't marked as damaged, in one listing."""
    sizes = shards.sizes()
    return {name: size for name, size in sizes.items() if name + DAMAGED not in sizes}


def all_exist(shards: Folder, manifest: dict[str, Any]) -> bool:
    """Whether every shard of a manifest exists in its full size, in one listing."""
    found = usable_shards(shards)
    return all(found.get(shard["name"]) == shard["size"] for shard in manifest["shards"])


def explain(shards: Folder, name: str, error: Exception) -> Exception:
    """The error to raise for a shard that couldn't be read: `error` itself if it is intact or out of reach; a damaged
    one is marked."""
    if isinstance(error, StorageError):
        return error
    where = f"shard {redact(shards.url)}/{name}"
    if not shards.exists(name):
        return ValueError(f"{where} is missing; the same command computes it again")
    if intact(shards.read_bytes(name)):
        return error
    try:
        shards.write_bytes(name + DAMAGED, b"")
    except OSError:  # without permission to write
        return ValueError(f"{where} is damaged ({error}); the same command with --data.verify computes it again")
    return ValueError(f"{where} is damaged ({error}); the same command computes it again")


def moments(log_mel: NDArray[np.float16], valid_frames: int) -> tuple[float, float]:
    """Mean and mean square of the valid frames of a log-mel (T, F), in a fortieth of the front end's time."""
    values = widen(log_mel[:valid_frames]).ravel()
    return float(values.mean()), float(np.dot(values, values)) / len(values)


def widen(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """Convert finite float16 to float32, exactly and several times as fast as numpy.

    Exponent and mantissa are shifted to float32's positions, the sign is kept, and a factor of 2^112 corrects the
    exponent's bias (15 instead of 127).
    """
    bits = values.view(np.int16).astype(np.int32)  # the sign fills all upper bits
    bits <<= 13
    bits &= np.array(0x8FFFE000, np.uint32).view(np.int32)
    widened = bits.view(np.float32)
    widened *= np.float32(2.0**112)
    return widened
