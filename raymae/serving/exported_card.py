"""The model card of exported files."""

from __future__ import annotations

from typing import Any

from raymae.evaluation.cards.model_card import card_text, facts_beside
from raymae.storage.folder import Folder

VIT, SETTINGS = "vit.safetensors", "export.json"


def model_card(settings: dict[str, Any], source: Folder) -> str:
    """The model card of exported files, from the content of export.json; the scores are those that are known of the
    folder that was exported."""
    onnx = settings["onnx"]
    facts = facts_beside(source) if settings["class_names"] else None
    name = "raymae scene classifier" if settings["class_names"] else "raymae encoder"
    return card_text(settings, facts, name, loading(settings), ["timm", *(["onnx"] if onnx else [])])


def loading(settings: dict[str, Any]) -> str:
    """How to load exported files, in Markdown; log-mels are those of the front end in export.json."""
    lines = ["import json", "from pathlib import Path", ""]
    lines += ["import numpy as np", "import onnxruntime"] if settings["onnx"] else []
    lines += [
        "from safetensors.torch import load_file",
        "from timm.models.vision_transformer import VisionTransformer",
        "",
        f'card = json.loads(Path("{SETTINGS}").read_text())  # with the front end, "audio"',
        'vit = VisionTransformer(**card["vit"]["arguments"]).eval()  # (B, 1, T, F)',
        f'vit.load_state_dict(load_file("{VIT}"))',
    ]
    if onnx := settings["onnx"]:
        if onnx["inputs"] == ["audio"]:
            example = ['audio = np.zeros((1, onnx["window_samples"]), np.float32)  # at onnx["sample_rate"]']
            given = '{"audio": audio}'
        else:
            example = ['log_mel = np.zeros((1, card["n_frames"], card["n_mels"]), np.float32)']
            given = '{"log_mel": log_mel, "valid_frames": np.array([card["n_frames"]])}'
        lines += [
            "",
            'onnx = card["onnx"]',
            'session = onnxruntime.InferenceSession(onnx["file"])',
            *example,
            f"({onnx['output']},) = session.run(None, {given})",
        ]
    code = "\n".join(lines)
    return f"```python\n{code}\n```"
