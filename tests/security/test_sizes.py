"""Sizes in the headers of files are checked: impossible ones are refused before memory is allocated."""

from __future__ import annotations

import io
import json
import resource
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from raymae.audio.decode import MAX_SAMPLES, load
from raymae.audio.errors import AudioError
from raymae.audio.sources import look_into
from raymae.cli.arguments import read_settings
from raymae.inference.classifier import read_classifier, write_classifier
from raymae.inference.predictor import Predictor
from raymae.models import build_classifier
from raymae.pipeline.plan.init_weights import bring, load_torch
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, tar
from tests.support.training import TINY
from tests.support.weights import make_plan, make_state, start


def saved(value: Any) -> bytes:
    """A file by torch.save."""
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


@pytest.fixture
def classifier(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "classifier"))
    model = build_classifier(TINY_AUDIO, TINY.model, TINY.finetune, 2)
    settings = {"audio": TINY_AUDIO, "model_config": TINY.model, "finetune": TINY.finetune}
    write_classifier(folder, model, class_names=["a", "b"], **settings)
    return folder


def silence(samples: int, rate: int = 8000) -> bytes:
    """A FLAC of silence: a byte for 300 samples."""
    sink = io.BytesIO()
    with soundfile.SoundFile(sink, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for start in range(0, samples, 2**22):
            file.write(np.zeros(min(2**22, samples - start), np.int16))
    return sink.getvalue()


@pytest.mark.parametrize("counted", [True, False])
def test_hours_of_silence_in_a_small_file(counted: bool, tmp_path: Path) -> None:
    samples = MAX_SAMPLES // 4 + 2**20  # at a quarter of the requested rate
    content = silence(samples)
    assert len(content) < samples / 200
    if not counted:
        content = content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]
    (tmp_path / "bomb.flac").write_bytes(content)
    for source in (content, tmp_path / "bomb.flac", io.BytesIO(content))[: 3 if counted else 1]:
        tracemalloc.start()
        with pytest.raises(AudioError, match=r"longer than 69\.9 minutes: read it in parts"):
            load(source, 32_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (2**20 if counted else 5 * samples)
    assert len(load(content, 32_000, start_seconds=4000, seconds=1)) == 32_000  # a part of the file can be read


def test_headers_that_claim_more_than_memory() -> None:
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(1000), 8000, format="RF64", subtype="PCM_16")
    rf64 = bytearray(sink.getvalue())
    place = rf64.index(b"ds64") + 8 + 8
    rf64[place : place + 8] = (2**41).to_bytes(8, "little")
    rf64[rf64.index(b"data") + 4 :][:4] = b"\xff" * 4
    at = rf64.index(b"data") + 4
    rf64[at : at + 4] = b"\xff" * 4
    with pytest.raises(AudioError, match=r"truncated: \d{13} bytes of its data chunk are missing"):
        load(bytes(rf64), 8000)
    flac = bytearray(silence(8000))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4  # 2^36 - 1 samples
    with pytest.raises(AudioError, match="longer than"):
        load(bytes(flac), 8000)
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(1000), 8000, format="WAV", subtype="PCM_16")
    wav = bytearray(sink.getvalue())
    wav[22:24] = b"\xff\xff"
    with pytest.raises(AudioError, match=r"65535 channels|can't be decoded"):
        load(bytes(wav), 8000)


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_a_tar_header_longer_than_memory(tmp_path: Path, kind: bytes) -> None:
    content = bytearray(tar({"a.wav": b"sound"}))
    content[124:136] = b"\x80" + (2**40).to_bytes(11, "big")  # the size of an extended header
    content[156:157] = kind
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    contents, _ = look_into("tar", f"{tmp_path}/a.tar")
    assert contents.problem
    assert not len(contents.names)


def test_brackets_within_brackets(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for deep in (b"[" * 100_000, b'{"a":' * 100_000):
        folder.write_bytes("deep.json", deep)
        with pytest.raises(ValueError, match=r"deep\.json is damaged"):
            folder.read_json("deep.json")
        with pytest.raises(ValueError, match=r"deep\.json is damaged"):
            read_settings(["--settings", str(tmp_path / "deep.json")])


@pytest.mark.parametrize("promise", [2**30, 2**40, 2**63])
def test_a_weights_header_longer_than_memory(classifier: Folder, promise: int) -> None:
    content = classifier.read_bytes("model.safetensors")
    classifier.write_bytes("model.safetensors", promise.to_bytes(8, "little") + content[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors doesn't fit classifier\.json: not a safetensors file"):
        read_classifier(classifier)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"embed_dim": 10**9}, "damaged"),
        ("model", {"embed_dim": 8192}, "doesn't fit"),  # 3 GB
        ("model", {"mlp_ratio": 1e5}, "doesn't fit"),  # 1 GB
        ("model", {"mlp_ratio": 1e300}, "damaged"),
        ("model", {"depth": 10**9}, "model.depth = 1000000000"),
        ("model", {"depth": 50}, "doesn't fit"),
        ("model", {"patch_size": [10**9, 8]}, "damaged|doesn't fit"),
        ("audio", {"n_fft": 2**40}, "must not exceed"),
        ("audio", {"n_mels": 10**9}, "audio.n_mels"),
        ("audio", {"clip_seconds": 1e12}, "audio.clip_seconds"),
        ("audio", {"clip_seconds": float("nan")}, "audio.clip_seconds"),
        ("audio", {"clip_seconds": 15_000, "hop_length": 1}, "values"),
        ("finetune", {"views": 10**12}, "finetune.views"),
    ],
)
def test_a_classifier_of_absurd_sizes(classifier: Folder, section: str, changes: dict[str, Any], message: str) -> None:
    card = classifier.read_json("classifier.json")
    card[section] |= changes
    classifier.write_bytes("classifier.json", json.dumps(card).encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        read_classifier(classifier)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/x", "../x", "no_such_network"])
def test_a_network_outside_timm_is_refused(classifier: Folder, name: str) -> None:
    card = classifier.read_json("classifier.json")
    classifier.write_json("classifier.json", card | {"cnn": name})
    with pytest.raises(ValueError, match=rf"damaged: ValueError: '{name}' is not a timm model"):
        read_classifier(classifier)


def packed(content: bytes) -> bytes:
    """The same zip archive, compressed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return sink.getvalue()


def test_a_checkpoint_that_grows() -> None:
    bomb = packed(saved({"a": torch.zeros(2**24)}))
    assert len(bomb) < 2**17
    with pytest.raises(ValueError, match=r"is compressed, and torch\.save compresses nothing"):
        load_torch(bomb)
    spread = saved({"pos_embed": torch.zeros(1).expand(1, 2**40, 8)})
    with pytest.raises(ValueError, match=r"pos_embed \(1, 1099511627776, 8\) is more than the file's \d+ bytes can"):
        load_torch(spread)
    with pytest.raises(ValueError, match=r"is more than the file's|can't read it"):
        load_torch(saved({"a": torch.empty(2**40, device="meta")}))
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(())}
    assert {name: value.tolist() for name, value in load_torch(saved(state)).items()} == {
        name: value.tolist() for name, value in state.items()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(classifier: Folder, value: float, clips: pa.Table, tmp_path: Path) -> None:
    weights = load_tensors(classifier.read_bytes("model.safetensors"))
    weights["head.bias"][1] = value
    classifier.write_bytes("model.safetensors", save_tensors(weights))
    with pytest.raises(ValueError, match=r"model\.safetensors .*head\.bias has NaN or infinite values"):
        Predictor(classifier)
    state = make_state()
    state["blocks.1.mlp.fc1.weight"][0, 0] = value
    torch.save(state, tmp_path / "w.pth")
    given = make_plan(start(tmp_path / "w.pth"), clips, tmp_path).given["finetune"]
    with pytest.raises(ValueError, match=r"w\.pth: encoder\.blocks\.1\.mlp\.fc1\.weight has NaN or infinite values"):
        bring(given, "finetune", start(tmp_path / "w.pth"), write=True)
