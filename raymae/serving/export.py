"""`jobs/export.py`: a finished model for use without raymae, as timm's VisionTransformer and as an ONNX graph.

Both are loaded again from their files and compared with the model before they are written to the output.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from raymae.config import AudioConfig, Config, redact
from raymae.features.augment import crop_frames, segment_frames
from raymae.inference.classifier import one_line, read_classifier
from raymae.inference.embedder import Embedder, read_embedder
from raymae.models import AudioClassifier, Encoder, grid_size
from raymae.models.masking import every, only
from raymae.models.patches import Grid, Patches, all_frames, unpatchify
from raymae.models.timm_weights import timm_names
from raymae.storage.folder import Folder, open_storage
from raymae.storage.found import what_is_there
from raymae.tracking.model_uri import open_artifact

VIT, CARD = "vit.safetensors", "export.json"
TOLERANCE = 1e-4
"""Largest accepted difference: absolute for outputs of up to 1, relative to the largest output above."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Model:
    """A model to export: a classifier, or the encoder of a pre-training."""

    encoder: Encoder
    classifier: AudioClassifier | None
    audio: AudioConfig
    n_frames: int
    """Frames of its input, as in training."""
    segment: int
    """Frames of the input that the encoder encodes at once."""
    class_names: list[str] | None

    @property
    def grid(self) -> Grid:
        """Columns and rows of the patches of a segment."""
        return grid_size(self.segment, self.audio.n_mels, self.encoder.patch_size)

    @property
    def has_timm_head(self) -> bool:
        """Whether timm's VisionTransformer can hold the head: not with row statistics, nor with with_raw."""
        if self.classifier is None:
            return False
        return self.pool != "row_stats" and not self.classifier.finetune.with_raw

    @property
    def pool(self) -> str | None:
        """`finetune.pool`; None for an encoder alone."""
        return self.classifier.finetune.pool if self.classifier else None


def read_model(folder: Folder) -> Model:
    """Read a classifier folder or a pre-training folder, and fix the positions to the grid of the input.

    Raises:
        ValueError: the folder is neither, is damaged, or holds a CNN.
    """
    if folder.exists("classifier.json"):
        found = read_classifier(folder)
        if not isinstance(found.model, AudioClassifier):
            raise ValueError(
                f"{redact(folder.url)} is a CNN of timm: build it with timm.create_model and load its weights"
            )
        n_frames, segment = (
            crop_frames(found.finetune.augment, found.audio),
            segment_frames(found.finetune, found.audio),
        )
        model = Model(found.model.encoder, found.model, found.audio, n_frames, segment, found.class_names)
    elif folder.exists("model.json"):
        embedder = read_encoder(folder)
        model = Model(embedder.encoder, None, embedder.audio, embedder.segment, embedder.segment, None)
    else:
        raise ValueError(
            f"--export.model {redact(folder.url)} holds neither classifier.json nor model.json{what_is_there(folder)}"
        )
    table = model.encoder.position_table(model.grid, torch.device("cpu"))
    model.encoder.pos_embed = table.unflatten(0, model.grid).clone()
    return model


def read_encoder(folder: Folder) -> Embedder:
    """The encoder of a pre-training folder with its front end and window; ValueError where the folder is damaged."""
    try:
        return read_embedder(folder)
    except Exception as error:  # a missing or wrong setting or tensor raises exceptions of many kinds
        raise ValueError(f"{redact(folder.url)} is damaged: {type(error).__name__}: {one_line(error)}") from None


def patches_of(model: Model | Graph, log_mel: Tensor, valid_frames: Tensor) -> tuple[Patches, Tensor]:
    """Patches of log-mels (B, T, F), a row for each segment of a clip in a classifier, and the rows' valid frames."""
    if model.classifier:
        return model.classifier.patchify(log_mel, valid_frames)
    return model.encoder.patchify(log_mel), valid_frames


# timm ---------------------------------------------------------------------------------------------------------------


def timm_arguments(model: Model) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer that build the model: with its head, or without one if timm can't hold
    it."""
    encoder = model.encoder
    first: Any = encoder.blocks[0]
    width = encoder.cls_token.shape[2]
    heads = {
        "mean": {"global_pool": "avg", "fc_norm": True},
        "cls": {"global_pool": "token", "fc_norm": False},
    }
    headless = {"global_pool": "avg", "fc_norm": False, "final_norm": model.pool in (None, "cls")}
    return {
        "img_size": [whole_columns(model) * encoder.patch_size[0], model.grid[1] * encoder.patch_size[1]],
        "patch_size": list(encoder.patch_size),
        "in_chans": 1,
        "num_classes": len(model.class_names or ()) if model.has_timm_head else 0,
        "embed_dim": width,
        "depth": len(encoder.blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.out_features / width,
        **(heads[str(model.pool)] if model.has_timm_head else headless),
    }


def whole_columns(model: Model) -> int:
    """Number of complete time columns; the encoder treats no others as valid."""
    return max(1, model.segment // model.encoder.patch_size[0])


def timm_state(model: Model) -> dict[str, Tensor]:
    """The state dict of the VisionTransformer of `timm_arguments`."""
    table = model.encoder.pos_embed
    assert table is not None  # `read_model` fixed it
    state = timm_names(model.encoder.state_dict(), table[: whole_columns(model)].flatten(0, 1))
    if model.classifier and model.has_timm_head:
        state |= {f"head.{name}": value for name, value in model.classifier.head.state_dict().items()}
        state |= {f"fc_norm.{name}": value for name, value in model.classifier.norm.state_dict().items()}
    return {name: value.contiguous() for name, value in state.items()}


@torch.inference_mode()
def check_timm(model: Model, arguments: dict[str, Any], path: Path) -> float:
    """The largest difference between the model and timm's with the weights of a file, on clips of noise."""
    vit = VisionTransformer(**arguments).eval()
    vit.load_state_dict(load_file(path))
    log_mel = torch.randn(2, model.segment, model.audio.n_mels, generator=torch.Generator().manual_seed(0))
    patches, frames = patches_of(model, log_mel, all_frames(log_mel))
    image = unpatchify(patches.values, patches.grid, model.encoder.patch_size)[:, None, : arguments["img_size"][0]]
    if model.classifier and model.has_timm_head:
        return difference("timm", model.classifier(log_mel), vit(image))
    tokens = model.encoder(patches, only(model.encoder.valid(patches, frames)).kept)
    return difference("timm", tokens, vit.forward_features(image))


def difference(name: str, expected: Tensor, found: Tensor) -> float:
    """The largest difference between two outputs; ValueError where it is more than rounding."""
    largest = float((expected - found).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not largest <= limit:
        raise ValueError(
            f"the model in {name} differs by {largest:.2g} from raymae's, more than {limit:.2g}: nothing written"
        )
    return largest


# ONNX ---------------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """The model without data-dependent shapes: invalid patches are kept, and not attended to."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder, self.classifier = model.encoder, model.classifier

    def forward(self, log_mel: Tensor, valid_frames: Tensor) -> Tensor:
        """(B, T, F) and (B,) frames before padding -> logits (B, C), or tokens (B, 1 + L, D) of an encoder alone."""
        patches, frames = patches_of(self, log_mel, valid_frames)
        valid = self.encoder.valid(patches, frames)
        kept = every(valid, valid.shape[0], valid.shape[1], valid.device)
        return (
            self.classifier.head(self.classifier.embed(patches, kept))
            if self.classifier
            else self.encoder(patches, kept)
        )


def noise_clips(model: Model, batch: int) -> tuple[Tensor, Tensor]:
    """Log-mels (B, T, F) of noise and their valid frames: later clips are shorter and padded, the first has a silent
    row."""
    log_mel = torch.randn(batch, model.n_frames, model.audio.n_mels, generator=torch.Generator().manual_seed(batch))
    valid_frames = torch.linspace(model.n_frames, max(1, model.n_frames // 4), batch).long()
    for clip, frames in zip(log_mel, valid_frames.tolist(), strict=True):
        clip[frames:] = model.audio.silence
    log_mel[0, :, : model.encoder.patch_size[1]] = model.audio.silence
    return log_mel, valid_frames


@torch.inference_mode()
def check_onnx(model: Model, path: Path) -> float:
    """The largest difference between the model as it is used and a graph in onnxruntime, on padded clips."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    log_mel, valid_frames = noise_clips(model, 5)
    given = {"log_mel": log_mel.numpy(), "valid_frames": valid_frames.numpy()}
    found = torch.from_numpy(session.run(None, given)[0])
    if model.classifier:
        return difference("ONNX", model.classifier(log_mel, valid_frames), found)
    patches = model.encoder.patchify(log_mel)
    masking = only(model.encoder.valid(patches, valid_frames))
    valid = masking.mask == 0
    expected = model.encoder(patches, masking.kept)
    kept = torch.ones_like(masking.kept.ids, dtype=torch.bool)
    if masking.kept.attend is not None:
        kept = masking.kept.attend
    return max(
        difference("ONNX", expected[:, 0], found[:, 0]),
        difference("ONNX", expected[:, 1:][kept], found[:, 1:][valid]),
    )


def write_onnx(model: Model, path: Path) -> None:
    """Export the graph for batches of any size."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: names of axes, deprecations
        program = torch.onnx.export(
            Graph(model).eval(),
            noise_clips(model, 2),
            dynamo=True,
            verbose=False,
            input_names=["log_mel", "valid_frames"],
            output_names=[output_name(model)],
            dynamic_shapes={"log_mel": {0: batch}, "valid_frames": {0: batch}},
        )
    assert program is not None
    program.save(path)


def output_name(model: Model) -> str:
    return "logits" if model.classifier else "tokens"


# The job ------------------------------------------------------------------------------------------------------------


def export(config: Config) -> dict[str, Any]:
    """Write the model in both forms, each after its check, and a JSON file that says how to use them; returns what
    `--json` writes."""
    if config.export.model is None or config.export.output is None:
        raise ValueError("jobs/export.py needs --export.model, a folder or registry URI, and --export.output, a folder")
    source = open_artifact(config.export.model, config)
    output = open_storage(config.export.output, "--export.output")
    model = read_model(source)
    arguments = timm_arguments(model)
    differences = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(timm_state(model), folder / VIT)
        differences["timm"] = check_timm(model, arguments, folder / VIT)
        print(f"{VIT}: timm computes the same, largest difference {differences['timm']:.1g}")
        graph = "classifier.onnx" if model.classifier else "encoder.onnx"
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            print(f"no ONNX without {', '.join(missing)}: pip install 'raymae[export]'")
        else:
            write_onnx(model, folder / graph)
            differences["onnx"] = check_onnx(model, folder / graph)
            print(f"{graph}: onnxruntime computes the same, largest difference {differences['onnx']:.1g}")
        (folder / CARD).write_text(json.dumps(card_of(model, arguments, None if missing else graph), indent=1) + "\n")
        files = sorted(path.name for path in folder.iterdir())
        for name in files:
            output.upload(folder / name, name)
    print(f"exported to {redact(output.url)}")
    return {
        "job": "export",
        "model": redact(source.url),
        "output": redact(output.url),
        "files": files,
        "largest_difference": differences,
    }


def card_of(model: Model, arguments: dict[str, Any], graph: str | None) -> dict[str, Any]:
    """The content of export.json: what is needed to use the files."""
    finetune = model.classifier.finetune if model.classifier else None
    return {
        "format": 2,
        "vit": {"file": VIT, "arguments": arguments, "pad_value": model.audio.silence},
        "onnx": graph and {"file": graph, "inputs": ["log_mel", "valid_frames"], "output": output_name(model)},
        "n_frames": model.n_frames,
        "segment_frames": model.segment,
        "n_mels": model.audio.n_mels,
        "subtract_band_mean": bool(finetune and finetune.subtract_band_mean),
        "pool": model.pool,
        "class_names": model.class_names,
        "audio": model.audio.front_end(),
    }
