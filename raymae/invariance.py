"""What stays in the embeddings: how well device, city and scene can be read from them before and after each stage.

Every stage's encoder is read in one way, that of the classifier: its network, segments, centring, last block and
pooling. Only the weights differ. Works without Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from safetensors.torch import load as load_tensors

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig, from_dict
from raymae.config.stages import turn_of
from raymae.embed import Embedder, Pool, make_embedder, read_card
from raymae.features.augment import segment_frames
from raymae.models import AudioClassifier, load_encoder
from raymae.plan import Plan
from raymae.storage.folder import Folder

STAGES = {
    "finetune": "fine-tuned",
    "student": "with pseudo-labels",
    "consistency": "with consistency training",
}


@dataclass(frozen=True)
class Reading:
    """An encoder and how it is read."""

    classifier: Folder
    """Whose network it is, and whose segments and centring."""
    weights: Folder | None
    """Where its weights are from; None for the random ones that the network is born with."""
    centred: bool
    pool: Pool
    """How a clip's patches become one vector: a mean of ViT-B has 768 values, statistics by row up to 24,576, on which
    probes take minutes."""

    def embedder(self, torch_device: str, seed: int = 0) -> Embedder:
        """The frozen encoder; `seed` draws random weights."""
        _, card = read_card(self.classifier)
        audio, model = from_dict(AudioConfig, card["audio"]), from_dict(ModelConfig, card["model"])
        finetune = from_dict(FinetuneConfig, card["finetune"])
        torch.manual_seed(seed)
        classifier = AudioClassifier(audio, model, finetune, 2)
        if self.weights is not None:
            load_encoder(classifier, load_tensors(self.weights.read_bytes("model.safetensors")))
        encoder = classifier.encoder.to(torch_device).eval()
        layer = len(encoder.blocks)
        return make_embedder(encoder, audio, model, segment_frames(finetune, audio), (layer,), self.centred)


def readings(plan: Plan) -> dict[str, Reading]:
    """The encoders of a plan's stages by what they are called: random, pre-trained (or given), fine-tuned, student.

    Where the classifier centres its input, which alone takes much of the device away, the first two are read both ways.
    """
    classifier, config = plan.nodes["finetune"].artifact, plan.config.finetune
    first: dict[str, Folder | None] = {"random weights": None}
    if "pretrain" in plan.nodes:
        first["pre-trained"] = plan.nodes["pretrain"].artifact
    elif "finetune" in plan.given:
        first["given weights"] = plan.given["finetune"].artifact
    found = {title: Reading(classifier, weights, False, config.pool) for title, weights in first.items()}
    if config.centre:
        found |= {f"{title}, input centred": replace(reading, centred=True) for title, reading in found.items()}
    for name, node in plan.nodes.items():
        stage, turn = turn_of(name)
        if stage in STAGES:
            title = STAGES[stage] + (f", round {turn}" if turn > 1 else "")
            found[title] = Reading(classifier, node.artifact, config.centre, config.pool)
    return found
