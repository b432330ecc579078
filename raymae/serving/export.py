"""`jobs/export.py`: a finished model for use without raymae, as timm's VisionTransformer and as an ONNX graph.

Both are loaded again from their files and compared with the model before they are written to the output.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from raymae.config import Config, redact
from raymae.evaluation.cards.model_card import CARD
from raymae.models.masking import only
from raymae.models.patches import all_frames, unpatchify
from raymae.models.timm_weights import timm_names
from raymae.serving.exported_card import SETTINGS, VIT, model_card
from raymae.serving.exported_model import Model, difference, patches_of, read_model
from raymae.serving.onnx_graphs import OnnxGraph, graph_of
from raymae.storage.folder import open_storage
from raymae.tracking.model_uri import open_artifact

NEEDED = ("onnx", "onnxscript", "onnxruntime")


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
    patches, frames = patches_of(model.encoder, model.classifier, log_mel, all_frames(log_mel))
    image = unpatchify(patches.values, patches.grid, model.encoder.patch_size)[:, None, : arguments["img_size"][0]]
    if model.classifier and model.has_timm_head:
        return difference("timm", model.classifier(log_mel), vit(image))
    tokens = model.encoder(patches, only(model.encoder.valid(patches, frames)).kept)
    return difference("timm", tokens, vit.forward_features(image))


# The job ------------------------------------------------------------------------------------------------------------


def export(config: Config) -> dict[str, Any]:
    """Write the model in both forms, each after its check, and a JSON file that says how to use them; returns what
    `--json` writes."""
    if config.export.model is None or config.export.output is None:
        raise ValueError("jobs/export.py needs --export.model, a folder or registry URI, and --export.output, a folder")
    source = open_artifact(config.export.model, config)
    output = open_storage(config.export.output, "--export.output")
    model = read_model(source)
    graph = graph_of(model, config.export.input)
    arguments = timm_arguments(model)
    differences = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(timm_state(model), folder / VIT)
        differences["timm"] = check_timm(model, arguments, folder / VIT)
        print(f"{VIT}: timm computes the same, largest difference {differences['timm']:.1g}")
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            print(f"no ONNX without {', '.join(missing)}: pip install 'raymae[export]'")
        else:
            graph.write(folder / graph.file)
            differences["onnx"] = graph.check(folder / graph.file)
            print(f"{graph.file}: onnxruntime computes the same, largest difference {differences['onnx']:.1g}")
        settings = card_of(model, arguments, None if missing else graph)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
        (folder / CARD).write_text(model_card(settings, source))
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


def card_of(model: Model, arguments: dict[str, Any], graph: OnnxGraph | None) -> dict[str, Any]:
    """The content of export.json: what is needed to use the files."""
    finetune = model.classifier.finetune if model.classifier else None
    return {
        "format": 2,
        "vit": {"file": VIT, "arguments": arguments, "pad_value": model.audio.silence},
        "onnx": graph and graph.card(),
        "n_frames": model.n_frames,
        "segment_frames": model.segment,
        "n_mels": model.audio.n_mels,
        "subtract_band_mean": bool(finetune and finetune.subtract_band_mean),
        "pool": model.pool,
        "class_names": model.class_names,
        "audio": model.audio.front_end(),
    }
