"""Exported models compute the same as raymae's, in timm and in onnxruntime, and no other model is written."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from raymae.config import AudioConfig, AugmentConfig, Config, ExportConfig, GraphInput, ModelConfig, to_dict
from raymae.inference.classifier import write_classifier
from raymae.inference.predictor import Predictor
from raymae.models import MaskedAutoencoder, build_classifier
from raymae.models.weights_file import save_weights
from raymae.pipeline.plan.init_weights import bring, find
from raymae.serving import export as module
from raymae.serving.export import check_timm, export, timm_arguments, timm_state
from raymae.serving.exported_model import read_model
from raymae.serving.onnx_graphs import graph_of, noise
from raymae.storage.folder import Folder
from tests.support.training import TINY

torch.set_num_threads(1)

NAMES = ["bus", "park", "tram"]
HALF = TINY.audio.clip_seconds / 2
SHALLOW = dataclasses.replace(TINY.model, depth=1)
"""Of one block: an ONNX export takes seconds for each."""


def shaken(model: nn.Module) -> nn.Module:
    """The model with random weights, none of them 0 or 1."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def with_table(model: nn.Module) -> nn.Module:
    """The model with a position table for another grid than that of its clips."""
    state = {**model.state_dict(), "encoder.pos_embed": torch.randn(11, 5, 32)}
    model.load_state_dict(state)
    return model


def classifier_folder(
    folder: Path,
    cnn: str | None = None,
    table: bool = False,
    size: ModelConfig = TINY.model,
    audio: AudioConfig = TINY.audio,
    **changes: Any,
) -> Folder:
    finetune = dataclasses.replace(TINY.finetune, **changes)
    model = shaken(build_classifier(audio, size, finetune, len(NAMES), cnn))
    write_classifier(
        Folder(str(folder)),
        with_table(model) if table else model,
        class_names=NAMES,
        audio=audio,
        model_config=size,
        finetune=finetune,
        cnn=cnn,
    )
    return Folder(str(folder))


def pretraining_folder(folder: Path, table: bool = False, size: ModelConfig = TINY.model) -> Folder:
    model = shaken(MaskedAutoencoder(TINY.audio, size))
    found = Folder(str(folder))
    found.write_bytes("model.safetensors", save_weights(with_table(model) if table else model))
    settings = {"audio": to_dict(TINY.audio), "model": to_dict(size)}
    found.write_json("model.json", {"format": 1, "crop_seconds": None, **settings})
    return found


def job(model: Folder | Path | str, output: Path, input: GraphInput = "log_mel") -> Config:
    source = model.url if isinstance(model, Folder) else str(model)
    return dataclasses.replace(TINY, export=ExportConfig(model=source, output=str(output), input=input))


def test_timm_reads_one_segment(tmp_path: Path) -> None:
    model = read_model(classifier_folder(tmp_path, pool="row_stats", subtract_band_mean=True, segment_seconds=HALF))
    assert model.n_frames == 2 * model.segment
    save_file(timm_state(model), tmp_path / "vit.safetensors")
    assert check_timm(model, timm_arguments(model), tmp_path / "vit.safetensors") < 1e-4


@pytest.mark.parametrize("pool", ["mean", "cls", "row_stats"])
def test_timm_reads_the_whole_patches_of_a_segment(tmp_path: Path, pool: str) -> None:
    seconds = 30 * TINY.audio.hop_length / TINY.audio.sample_rate
    model = read_model(classifier_folder(tmp_path, pool=pool, augment=AugmentConfig(crop_seconds=seconds)))
    assert (model.segment, model.grid[0]) == (30, 4)
    save_file(timm_state(model), tmp_path / "vit.safetensors")
    assert timm_arguments(model)["img_size"][0] == 24
    assert check_timm(model, timm_arguments(model), tmp_path / "vit.safetensors") < 1e-4


@pytest.mark.parametrize("pool", ["mean", "cls", "row_stats"])
def test_raw_and_subtracted_inputs_have_no_head_in_timm(tmp_path: Path, pool: str) -> None:
    model = read_model(classifier_folder(tmp_path, pool=pool, subtract_band_mean=True, with_raw=True))
    assert timm_arguments(model)["num_classes"] == 0
    save_file(timm_state(model), tmp_path / "vit.safetensors")
    assert check_timm(model, timm_arguments(model), tmp_path / "vit.safetensors") < 1e-4


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("subtract_band_mean", [False, True])
@pytest.mark.parametrize("pool", ["mean", "cls", "row_stats", None])
def test_timm_computes_the_same(tmp_path: Path, pool: str | None, subtract_band_mean: bool, table: bool) -> None:
    if pool is None:
        model = read_model(pretraining_folder(tmp_path, table))
    else:
        model = read_model(classifier_folder(tmp_path, table=table, pool=pool, subtract_band_mean=subtract_band_mean))
    save_file(timm_state(model), tmp_path / "vit.safetensors")
    arguments = timm_arguments(model)
    assert arguments["num_classes"] == (3 if pool in ("mean", "cls") else 0)
    assert check_timm(model, arguments, tmp_path / "vit.safetensors") < 1e-4


def run_shown(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables after the code of a model card was run beside the files."""
    monkeypatch.chdir(folder)
    (code,) = re.findall("^```python\n(.+?)^```$", card, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def test_the_job_writes_a_classifier_for_timm_and_onnxruntime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = classifier_folder(tmp_path / "model", pool="mean")
    result = export(job(source, tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "timm computes the same, largest difference" in printed
    assert "onnxruntime computes the same, largest difference" in printed
    assert result["files"] == ["README.md", "classifier.onnx", "export.json", "vit.safetensors"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert {"timm", "onnx"} <= set(ModelCard(text).data.tags)
    assert run_shown(text, tmp_path / "out", monkeypatch)["logits"].shape == (1, 3)
    assert all(0 <= value < 1e-4 for value in result["largest_difference"].values())

    # as the README does it, and no more than that
    card = json.loads((tmp_path / "out" / "export.json").read_text())
    vit = VisionTransformer(**card["vit"]["arguments"]).eval()
    vit.load_state_dict(load_file(tmp_path / "out" / card["vit"]["file"]))
    session = onnxruntime.InferenceSession(tmp_path / "out" / card["onnx"]["file"])
    predictor = Predictor(source)
    log_mel = np.random.default_rng(0).standard_normal((4, card["n_frames"], card["n_mels"])).astype(np.float32)
    frames = np.full(4, card["n_frames"])
    expected = predictor.probabilities(log_mel, frames)
    (logits,) = session.run(None, {"log_mel": log_mel, "valid_frames": frames})
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1), expected, atol=1e-5)
    height = card["vit"]["arguments"]["img_size"][0]
    found = vit(torch.from_numpy(log_mel)[:, None, :height]).softmax(1)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)
    assert card["class_names"] == predictor.class_names == NAMES
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pool": "row_stats", "augment": AugmentConfig(crop_seconds=0.4)}, id="row_stats of a crop"),
        pytest.param({"pool": "cls", "with_raw": True, "segment_seconds": HALF}, id="raw cls of segments"),
        *(
            pytest.param(one, id=" ".join(map(str, one.values())), marks=pytest.mark.slow)
            for one in (
                {"pool": "row_stats", "segment_seconds": HALF},
                *({"pool": pool, "with_raw": True} for pool in ("mean", "cls", "row_stats")),
            )
        ),
        pytest.param(None, id="encoder"),
    ],
)
def test_onnxruntime_computes_the_same_on_padded_and_silent_clips(
    tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    """`check_onnx` compares with the model as it is used, which leaves out what isn't valid."""
    if changes is None:
        model = read_model(pretraining_folder(tmp_path, table=True, size=SHALLOW))
    else:
        model = read_model(classifier_folder(tmp_path, size=SHALLOW, subtract_band_mean=True, **changes))
        assert (model.n_frames < TINY.audio.n_frames) == ("augment" in changes)
        assert (model.n_frames == 2 * model.segment) == ("segment_seconds" in changes)
    graph = graph_of(model, "log_mel")
    graph.write(tmp_path / "graph.onnx")
    assert graph.check(tmp_path / "graph.onnx") < 1e-4


# the exporter leaves out the addition of a single number of at most 1e-8: the logarithm of silence would be infinite
SMALL_OFFSET = dataclasses.replace(TINY.audio, log_offset=1e-8)
KALDI = dataclasses.replace(
    TINY.audio, framing="kaldi", log_floor="clamp", log_offset=1e-7, norm_mean=0.0, mel_scale="slaney"
)


@pytest.mark.parametrize(
    ("audio", "changes"),
    [
        pytest.param(
            SMALL_OFFSET,
            {
                "pool": "row_stats",
                "subtract_band_mean": True,
                "views": 2,
                "shifts": 2,
                "augment": AugmentConfig(crop_seconds=0.4),
            },
            id="two crops",
        ),
        pytest.param(KALDI, {"labels": "multi", "segment_seconds": HALF}, id="multi-label, segments"),
    ],
)
def test_a_graph_of_audio_predicts_as_raymae_does(tmp_path: Path, audio: AudioConfig, changes: dict[str, Any]) -> None:
    source = classifier_folder(tmp_path / "model", size=SHALLOW, audio=audio, **changes)
    result = export(job(source, tmp_path / "out", input="audio"))
    assert result["files"] == ["README.md", "audio_classifier.onnx", "export.json", "vit.safetensors"]
    card = json.loads((tmp_path / "out" / "export.json").read_text())["onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / card["file"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["raymae"]) == {**card, "class_names": NAMES}
    assert (card["sample_rate"], card["window_samples"]) == (8000, audio.n_samples)

    predictor, seen = Predictor(source), []
    # shorter than an FFT, part of a window, one window, a rest that is left out and one that isn't, with silent windows
    for windows in (0.02, 0.6, 1.0, 1.0 + card["shortest_rest_samples"] / audio.n_samples - 1e-3, 3.4):
        pair = np.stack([noise(audio, windows), noise(audio, windows)[::-1]])
        pair[1, audio.n_samples : 2 * audio.n_samples] = 0
        (found,) = session.run(None, {"audio": pair})
        expected = [list(predictor((waveform, 8000)).values()) for waveform in pair]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        seen.append(found[0])
    assert np.std(seen, axis=0).max() > 1e-3  # the lengths differ in their answers
    (silent,) = session.run(None, {"audio": np.zeros((1, 9000), np.float32)})
    assert np.isnan(silent).all()


def test_training_starts_from_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "NEEDED", ("nowhere",))
    source = classifier_folder(tmp_path / "model", pool="mean", table=True)
    model = read_model(source)
    export(job(source, tmp_path / "out"))
    finetune = dataclasses.replace(TINY.finetune, init_from=str(tmp_path / "out/vit.safetensors"))
    config = dataclasses.replace(TINY, finetune=finetune)
    given = find(config, Folder(str(tmp_path)), "finetune")["finetune"]
    bring(given, "finetune", config, write=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # export.json says what it is
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, num_heads=4))
    with pytest.raises(ValueError, match=r"model\.num_heads: found 2, expected 4"):
        bring(given, "finetune", other, write=False)
    brought = load_tensors(given.artifact.read_bytes("model.safetensors"))
    for name, value in model.encoder.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(brought[f"encoder.{name}"], value), name
    columns = brought["encoder.pos_embed"].shape[0]
    assert torch.equal(brought["encoder.pos_embed"], model.encoder.pos_embed[:columns])  # type: ignore[index]
    assert torch.equal(brought["norm.weight"], model.classifier.norm.weight)  # type: ignore[union-attr]


def test_without_the_extra_the_job_says_how_to_get_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    result = export(job(pretraining_folder(tmp_path / "model"), tmp_path / "out"))
    assert "no ONNX without onnxscript: pip install 'raymae[export]'" in capsys.readouterr().out
    assert result["files"] == ["README.md", "export.json", "vit.safetensors"]
    assert json.loads((tmp_path / "out/export.json").read_text())["onnx"] is None


def test_a_model_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = module.timm_arguments
    monkeypatch.setattr(module, "timm_arguments", lambda model: {**arguments(model), "num_heads": 1})
    source = classifier_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=r"the model in timm differs by .* nothing written"):
        export(job(source, tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs --export\.model, .*, and --export\.output"):
        export(TINY)
    with pytest.raises(ValueError, match=r"holds neither classifier\.json nor model\.json"):
        export(job(tmp_path, tmp_path / "out"))
    with pytest.raises(ValueError, match="is a CNN of timm"):
        export(job(classifier_folder(tmp_path / "cnn", cnn="resnet10t"), tmp_path / "out"))
    source = pretraining_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=r"--export\.input audio .* name a classifier"):
        export(job(source, tmp_path / "out", input="audio"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--export\.output .*file/below can't be written"):
        export(job(source, tmp_path / "file" / "below"))
    source.write_json("model.json", {"format": 1, "audio": to_dict(TINY.audio)})
    with pytest.raises(ValueError, match="is damaged: KeyError: 'model'"):
        export(job(source, tmp_path / "out"))
