"""`prepare` on Ray: odd, broken and stuck files among many, each stored or quarantined exactly once."""

from __future__ import annotations

import csv
import io
import itertools
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymae.audio.clip_reader import ClipReader
from raymae.cluster.prepare import prepare
from raymae.config import AudioConfig, DataConfig
from raymae.features.store import SHARDS, FeatureStore, features_of
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, clip_table, encoded, tar, write_tone
from tests.support.odd_audio import (
    ODD,
    REFUSED_BY_RAYMAE,
    changing_flac,
    encode,
    noise,
    odd_files,
    ogg_with_serial,
    write_odd_files,
)
from tests.support.training import TINY

pytestmark = pytest.mark.ray


def run(
    root: Folder, clips: pa.Table, audio: AudioConfig = TINY_AUDIO, **data: Any
) -> tuple[dict[str, Any], dict[str, str], FeatureStore]:
    """Prepare clips: the job's result, the quarantine (clip id → reason) and the store."""
    config = replace(TINY, audio=audio, data=DataConfig(**data))
    counts: list[int] = []
    result = prepare(clips, root / "store", root / SHARDS, config, counts.append)
    assert sum(counts) == len(clips)
    entries = list(csv.DictReader(io.StringIO((root / "store").read_bytes("quarantine.csv").decode(), newline="")))
    quarantine = {entry["clip_id"]: entry["reason"] for entry in entries}
    store = FeatureStore(root / "store", root / SHARDS)
    kept = store.clips["clip_id"].to_pylist()
    # each clip exactly once, in the order of the clip table
    assert len(quarantine) == len(entries) == result["quarantined"] + result["silent"]
    assert len(kept) == len(store) == result["clips"]
    assert kept == [name for name in clips["clip_id"].to_pylist() if name not in quarantine]
    assert list(quarantine) == [name for name in clips["clip_id"].to_pylist() if name in quarantine]
    shards = [pq.read_table(store.shards.path(s["name"]), columns=["clip_id"]) for s in store.manifest["shards"]]
    assert pa.concat_tables(shards)["clip_id"].to_pylist() == kept
    return result, quarantine, store


def write_all_odd_files(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """All odd files: their paths, and the beginning of the expected reason, or None for files that can be read."""
    files = {name: (folder / name, reason) for name, reason in write_odd_files(folder).items()}
    for (first, second), counted in itertools.product([(1, 2), (2, 1)], [True, False]):
        name = f"from {first} to {second} channels, {counted}.flac"
        (folder / name).write_bytes(changing_flac(first, second, counted))
        files[name] = (folder / name, "")
    both = [ogg_with_serial(encode(noise(20_000, count), "OGG", "VORBIS"), count) for count in (1, 2)]
    (folder / "stereo first.ogg").write_bytes(b"".join(reversed(both)))
    files["stereo first.ogg"] = (folder / "stereo first.ogg", "several Ogg streams one after the other")
    (folder / "zero.wav").symlink_to("/dev/zero")
    files |= {name: (Path(name), "not a regular file") for name in ("/dev/zero", "/dev/tty")}
    files["zero.wav"] = (folder / "zero.wav", "not a regular file")
    for row in odd_files():
        name = row["filename"]
        files[name] = (
            ODD / name,
            REFUSED_BY_RAYMAE.get(name, None if row["soundfile"] == "ok" else "can't be decoded: "),
        )
    return files


@pytest.mark.skipif(not ODD.exists(), reason="the odd audio files are not here")
def test_all_odd_files_in_one_job(tmp_path: Path, ray_cluster: None) -> None:
    files = write_all_odd_files(tmp_path)
    assert len(files) == 73 + 28
    clips = clip_table([path for path, _ in files.values()], list(files))
    audio = replace(TINY_AUDIO, sample_rate=32_000, clip_seconds=1.0)
    result, quarantine, store = run(Folder(str(tmp_path / "storage")), clips, audio, max_bad_share=0.99, shard_mb=0.1)
    assert result["shards"] > 4
    silent = {name for name, reason in quarantine.items() if reason == "silent"}
    assert all(files[name][1] is None for name in silent)
    assert len(silent) == result["silent"]
    refused = {name: reason for name, reason in quarantine.items() if name not in silent}
    assert set(refused) == {name for name, (_, reason) in files.items() if reason is not None}
    for name, reason in refused.items():
        assert reason, name
        assert reason.startswith(files[name][1] or ""), name
        if name.startswith("from "):
            assert "channel" in reason, name
    log_mel, valid_frames = store.read(np.arange(len(store)))
    assert np.isfinite(log_mel).all()
    assert valid_frames.min() >= 1


MANY = 100_000
SHORT = replace(TINY_AUDIO, clip_seconds=0.1)


def write_kinds(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """Addresses of good clips with their kind, and of broken ones with the beginning of the expected reason."""
    good = {f"{kind}.wav": encoded(kind, 800) for kind in range(8)}
    sound = good["0.wav"]
    nan = encode(np.array([0.1, np.nan] * 400, np.float32), "WAV", "FLOAT")
    bad = {"empty.wav": b"", "cut.wav": sound[:-100], "page.wav": b"<html>404</html>", "nan.wav": nan}
    for name, content in (good | bad).items():
        (folder / name).write_bytes(content)
    (folder / "shard.tar").write_bytes(tar(good | bad))
    pq.write_table(pa.table({"audio": list(good.values())}), folder / "rows.parquet")
    addresses = [(f"{folder}/{name}", kind) for kind, name in enumerate(good)]
    addresses += [(f"tar://{name}::{folder}/shard.tar", kind) for kind, name in enumerate(good)]
    addresses += [(f"parquet://audio/{kind + 1}::{folder}/rows.parquet", kind) for kind in range(len(good))]
    why = {"empty.wav": "empty file", "cut.wav": "truncated: ", "page.wav": "can't be decoded: ", "nan.wav": "NaN"}
    broken = [(f"{folder}/{name}", reason) for name, reason in why.items()]
    broken += [(f"tar://{name}::{folder}/shard.tar", reason) for name, reason in why.items()]
    broken += [(f"{folder}/absent.wav", "No such file"), (f"tar://absent.wav::{folder}/shard.tar", "no such member")]
    return addresses, broken


@pytest.mark.slow
def test_a_hundred_thousand_clips_of_which_3_percent_are_broken(tmp_path: Path, ray_cluster: None) -> None:
    good, broken = write_kinds(tmp_path)
    rng = np.random.default_rng(0)
    bad = np.zeros(MANY, bool)
    bad[rng.permutation(MANY)[: MANY * 3 // 100]] = True
    which = rng.integers(0, np.where(bad, len(broken), len(good)))
    paths = [(broken if is_bad else good)[index][0] for is_bad, index in zip(bad, which, strict=True)]
    names = np.array([f"{number:06d}" for number in range(MANY)])
    clips = pa.table({"clip_id": names, "path": paths, "size": np.full(MANY, 1), "mtime": np.full(MANY, 1.0)})
    clips = clips.append_column("split", pa.repeat("pool", MANY))

    started = time.perf_counter()
    result, quarantine, store = run(Folder(str(tmp_path / "storage")), clips, SHORT)
    print(f"{MANY / (time.perf_counter() - started):.0f} clips/s")

    assert list(quarantine) == names[bad].tolist()
    assert all(quarantine[names[row]].startswith(broken[which[row]][1]) for row in np.flatnonzero(bad))
    assert (result["clips"], result["quarantined"]) == (97_000, 3_000)
    assert result["hours"] == pytest.approx(97_000 * 0.1 / 3600)
    reader = ClipReader(SHORT, 10)
    expected = np.stack([reader(good[kind][0])[0] for kind in range(8)])
    kinds = np.array([kind for _, kind in good])[which[~bad]]
    row = 0
    for shard in store.manifest["shards"]:
        stored = features_of(pq.read_table(store.shards.path(shard["name"]))["log_mel"], SHORT)
        np.testing.assert_array_equal(stored, expected[kinds[row : row + len(stored)]])
        row += len(stored)


# A source that doesn't answer ---------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers for /good.wav; requests for anything else wait until the client gives up."""

    server: Server

    def do_GET(self) -> None:
        if self.path != "/good.wav":
            self.server.asked.put(self.path)
            self.connection.recv(1)  # returns once the client has closed the connection, or its process has ended
            self.server.gone.put(self.path)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A web server that answers for a single file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = encoded(1)
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.gone: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_source_that_does_not_answer_loses_only_its_own_clips(
    tmp_path: Path, server: Server, ray_cluster: None
) -> None:
    write_tone(tmp_path / "tone.wav", 440)
    paths = [str(tmp_path / "tone.wav")] * 36
    stuck = {3: f"{server.url}/stuck.wav", 20: f"tar://a.wav::{server.url}/stuck.tar", 34: f"{server.url}/again.wav"}
    for number in range(len(paths)):
        paths[number] = stuck.get(number) or (f"{server.url}/good.wav" if number % 4 == 0 else paths[number])
    names = [str(number) for number in range(len(paths))]
    clips = pa.table({"clip_id": names, "path": paths, "size": [1] * 36, "mtime": [1.0] * 36, "split": ["pool"] * 36})

    started = time.perf_counter()
    _, quarantine, _ = run(Folder(str(tmp_path / "out")), clips, file_timeout=2.0, max_bad_share=0.1, shard_mb=0.1)
    assert quarantine == {str(number): "no response from its storage for 2 s" for number in stuck}
    assert time.perf_counter() - started < 150  # far less than the five minutes after which fsspec gives up
    asked = [server.asked.get(timeout=1) for _ in range(server.asked.qsize())]  # also a second time
    assert set(asked) == {"/stuck.wav", "/stuck.tar", "/again.wav"}
    assert sorted(server.gone.get(timeout=30) for _ in asked) == sorted(asked)  # the workers have ended


def test_a_process_with_a_stuck_file_can_end(server: Server) -> None:
    code = f"""
from raymae.audio.errors import AudioError
from raymae.audio.clip_reader import ClipReader
from tests.support.audio_files import TINY_AUDIO

reader = ClipReader(TINY_AUDIO, 0.5)
try:
    reader("{server.url}/stuck.wav")
except AudioError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "no response from its storage for 0.5 s", "")
