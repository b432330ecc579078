"""`scale`: training workers that read a feature store by themselves, from object storage and many at once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from fsspec.config import conf

from raymae.benchmark.harness.noise_store import NoiseReader, noise_audio
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.s3_server import CREDENTIALS, S3, s3_process
from raymae.benchmark.harness.timing import cpu_between, cpu_seconds
from raymae.benchmark.scale.reader import GROUP, Read, Reading, read_all
from raymae.benchmark.scale.simulation import Storage, Worker, wait_share
from raymae.config import AudioConfig
from raymae.datasets.synthetic.tones import noise_clips
from raymae.features.write import write_store
from raymae.pipeline.dry_run.cost import Rates
from raymae.storage.folder import Folder
from raymae.training.batches.windows import windows_ahead

LATENCY, CONNECTION_BYTES = 0.025, 90e6
"""Of the object storage: seconds until an answer begins, bytes per second of a connection."""
SHARD_MB = 128
TINY = noise_audio(16, 8)
"""The front end of clips that cost nothing to read."""
WINDOWS_PER_SECOND = 200.0
"""Of all processes that read at once: two cores have time left."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Read a feature store of noise as training workers do, without torch or Ray.

    From an S3 server behind a proxy with 25 ms latency and 90 MB/s per connection: one worker of 64 that takes what
    comes, against pyarrow and fsspec as they are, whose values are compared; one that sleeps for the time of its steps,
    at the highest rate (1,370 clips/s, or half of it, and so on) at which proxy and server leave a core free; the same
    for reads of which one in `late_every` is 2 s late, with clips of 256 bytes. From a disk: `processes` workers at
    once, each with its own rank's windows of clips of 256 bytes. A pause is the time for which a worker waits for its
    next step, after its first round of windows. The wait at 1,370 clips/s is simulated from what was measured. Needs
    the extra `test`.

    `--json` keys: `reading`, `former`, `paced`, `simulated`, `many`, `late`, with the figures of each.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    clips: int = 384
    """Ten-second clips of the store that is read from the S3 server."""
    rounds: int = 12
    """Rounds of 512 clips that a worker reads from the S3 server."""
    former_windows: int = 4
    """Windows of 32 clips that pyarrow and fsspec read; after more of them the shards, smaller than a large corpus's,
    would all lie in their read-ahead."""
    processes: int = 64
    """Workers that read at once."""
    windows: int = 320
    """Windows of each of them."""
    late_every: int = 1000
    """Reads of which one is late."""
    late_rounds: int = 120
    """Rounds of 512 clips with reads that are late, and without."""

    def run(self) -> Result:
        """Measure."""
        if min(self.clips, self.former_windows, self.processes, self.late_every) < 1:
            raise ValueError("--clips, --former-windows, --processes and --late-every must be 1 or more")
        if min(self.rounds, self.late_rounds, self.windows) < 4:
            raise ValueError("--rounds, --late-rounds and --windows must be 4 or more")
        with s3_process() as (s3, server), settings(s3):

            def cpu() -> dict[int, float]:
                return cpu_seconds([os.getpid(), server])

            stored, late = self._stored(s3, cpu), self._late(s3, cpu)
        many = self._many()
        rows = [*stored.rows, *late.rows, *many.rows]
        return Result(
            "scale",
            rows,
            {**stored.values, **late.values, **many.values},
            "\n".join([stored.text, late.text, many.text]),
        )

    def _stored(self, s3: S3, cpu: Callable[[], dict[int, float]]) -> Result:
        """Clips of real size from the S3 server."""
        folder = s3.folder("clips")
        audio = AudioConfig()
        write(folder, audio, self.clips)
        reading = Reading(url=folder.url, rounds=self.rounds)
        with slow(s3):
            sent, reads = s3.sent, s3.reads
            (free,) = read_all("windows", [reading])
            sent, reads = s3.sent - sent, s3.reads - reads
            (former,) = read_all("row-groups", [replace(reading, most_windows=self.former_windows)])
            if free.checksum != former.checksum:
                raise ValueError("scale: the clips of both sides differ")
            rate, paced, used = highest(reading, cpu)
        used_bytes = free.clips * 2 * audio.n_frames * audio.n_mels
        storage = Storage(
            latency=LATENCY,
            rate=CONNECTION_BYTES,
            request_bytes=sent / reads,
            requests=reads / free.windows,
            cpu_seconds=free.io_seconds / reads,
        )
        full = Rates().gpu_clips
        order, slots = reading.order, reading.batch // GROUP
        ahead = windows_ahead(order, 0, reading.workers, is_local=False)
        worker = Worker(windows=slots, ahead=ahead, round_seconds=order.window_steps * reading.batch / full)
        late = replace(storage, late_every=self.late_every)
        found = {name: wait_share(one, worker) for name, one in {"wait": storage, "late": late}.items()}
        rows = [
            Row(
                "scale",
                "one worker, S3 with 25 ms and 90 MB/s per connection",
                f"{free.rate:.0f} clips/s",
                f"{former.rate:.1f} clips/s (pyarrow and fsspec as they are)",
                free.rate / former.rate,
                10,
            ),
            Row("scale", "bytes read", mb(sent), f"{mb(used_bytes)} (used)", sent / used_bytes, 1.1, at_most=True),
            limit("CPU per clip", free.cpu_ms, 1, "ms"),
            limit(f"wait at {rate:.0f} clips/s", 100 * paced.wait_share, 3, "%"),
            limit(f"wait at {full:.0f} clips/s, simulated", 100 * found["wait"], 3, "%"),
            limit(f"the same, one read in {self.late_every} 2 s late, simulated", 100 * found["late"], 3, "%"),
        ]
        values = {
            "reading": figures(free)
            | {"bytes_read": sent, "bytes_used": used_bytes, "requests": reads}
            | {"mb_per_core_second": used_bytes / 1e6 / free.cpu_seconds},
            "former": figures(former),
            "paced": figures(paced) | {"clips_per_second": rate, "server_cores": used},
            "simulated": found | asdict(storage),
        }
        text = (
            f"Proxy and server used {used:.2f} cores at {rate:.0f} clips/s; a window of {GROUP * order.window_steps} "
            f"clips takes {storage.requests:.1f} requests, {ahead} windows are read ahead."
        )
        return Result("scale", rows, values, text)

    def _late(self, s3: S3, cpu: Callable[[], dict[int, float]]) -> Result:
        """Reads of which some are late, at the highest rate."""
        folder = s3.folder("tiny")
        write(folder, TINY, 4096)
        reading = Reading(url=folder.url, rounds=self.late_rounds)
        with slow(s3):
            rate, usual, _ = highest(reading, cpu)
            step_seconds, reads = reading.batch / rate, s3.reads
            s3.late_every = self.late_every
            (late,) = read_all("windows", [replace(reading, step_seconds=step_seconds)])
            s3.late_every = 0
        lost = 1 - (1 - late.wait_share) / (1 - usual.wait_share)
        what = f"throughput lost at {rate:.0f} clips/s, one read in {self.late_every} 2 s late"
        values = {"usual": figures(usual), "late": figures(late), "lost": lost, "rate": rate}
        met = (s3.reads - reads) // self.late_every
        return Result("scale", [limit(what, 100 * lost, 3, "%")], {"late": values}, f"{met} reads were 2 s late.")

    def _many(self) -> Result:
        """Many processes at once, from a disk."""
        pace = self.processes / WINDOWS_PER_SECOND
        with tempfile.TemporaryDirectory(prefix="raymae-scale-") as folder:
            write(Folder(folder), TINY, 4096)
            one = Reading(url=folder, workers=self.processes, batch=GROUP, rounds=self.windows)
            one = replace(one, step_seconds=pace / one.order.window_steps)
            ranks = [replace(one, rank=rank) for rank in range(self.processes)]
            found = read_all("windows", ranks)
            alone = read_all("one-by-one", [replace(rank, most_windows=max(4, self.windows // 4)) for rank in ranks])
        windows, own, reading = sum(read.windows for read in found), cpu_ms(found), cpu_ms(alone)
        pause, oversleep = max(read.longest_wait for read in found), max(read.longest_oversleep for read in found)
        early, late = (max(read.uss_mb[at] for read in found) for at in (0, 1))
        rows = [
            limit(f"longest pause of {self.processes} workers, {windows} windows", pause, 0.5, "s"),
            limit("CPU per window beside reading it", own - reading, 0.3, "ms"),
            Row(
                "scale",
                "a worker's own memory at the end",
                f"{late:.1f} MB",
                f"{early:.1f} MB (after a quarter)",
                late / early,
                1.05,
                at_most=True,
            ),
        ]
        values = {
            "windows": windows,
            "longest_pause": pause,
            "longest_oversleep": oversleep,
            "cpu_ms": own,
            "reading_cpu_ms": reading,
            "memory_growth": late / early,
            "torch": any(read.torch for read in found),
        }
        text = f"The longest sleep of a worker lasted {oversleep:.2f} s too long: it waited for a core."
        return Result("scale", rows, {"many": values}, text)


def write(folder: Folder, audio: AudioConfig, clips: int) -> None:
    """Write a store of noise."""
    write_store(folder, noise_clips(clips), audio, NoiseReader(audio), SHARD_MB)


def highest(reading: Reading, cpu: Callable[[], dict[int, float]]) -> tuple[float, Read, float]:
    """The highest rate of an H200, its half, and so on at which proxy and server would leave a core free; what was
    measured at it, and how many cores they would use."""
    rate, cores = Rates().gpu_clips, len(os.sched_getaffinity(0))
    while True:
        before = cpu()
        (found,) = read_all("windows", [replace(reading, step_seconds=reading.batch / rate)])
        used = cpu_between(before, cpu()) / found.clips * rate
        if used <= max(0.5, cores - 1) or rate < reading.batch:
            return rate, found, used
        rate /= 2


@contextmanager
def settings(s3: S3) -> Iterator[None]:
    """Let this process and those that it starts find the server."""
    given = {"endpoint_url": s3.url}
    environment, before = {**CREDENTIALS, "FSSPEC_S3": json.dumps(given), "OMP_NUM_THREADS": "1"}, dict(os.environ)
    os.environ.update(environment)
    configured = conf.get("s3")
    conf["s3"] = given
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        conf.pop("s3")
        if configured is not None:
            conf["s3"] = configured


@contextmanager
def slow(s3: S3) -> Iterator[None]:
    """Let the server answer as object storage does."""
    s3.seconds, s3.rate = LATENCY, CONNECTION_BYTES
    try:
        yield
    finally:
        s3.seconds = s3.rate = 0.0


def limit(what: str, found: float, most: float, unit: str) -> Row:
    """A row of a figure with an upper limit."""
    return Row("scale", what, f"{found:.2f} {unit}", f"{most:g} {unit} (limit)", found / most, 1, at_most=True)


def cpu_ms(reads: Sequence[Read]) -> float:
    """CPU milliseconds per window of some processes."""
    return 1000 * sum(read.cpu_seconds for read in reads) / sum(read.windows for read in reads)


def figures(read: Read) -> dict[str, float]:
    """What `--json` holds of a process."""
    return {key: value for key, value in asdict(read).items() if key != "checksum"} | {"cpu_ms": read.cpu_ms}


def mb(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:,.0f} MB"
