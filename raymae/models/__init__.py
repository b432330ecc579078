"""The networks: `MODELS` for pre-training, `AudioClassifier` and `Cnn` for classification."""

from raymae.models.classifier import AudioClassifier, Cnn, build_classifier
from raymae.models.encoder import Encoder, choose_attention
from raymae.models.latent import LatentAutoencoder
from raymae.models.mae import MaeOutput, MaskedAutoencoder
from raymae.models.masking import kept_tokens
from raymae.models.patches import grid_size
from raymae.models.timm_weights import load_encoder, load_pretrained

MODELS: dict[str, type[MaskedAutoencoder]] = {"mae": MaskedAutoencoder, "latent": LatentAutoencoder}

__all__ = [
    "MODELS",
    "AudioClassifier",
    "Cnn",
    "Encoder",
    "LatentAutoencoder",
    "MaeOutput",
    "MaskedAutoencoder",
    "build_classifier",
    "choose_attention",
    "grid_size",
    "kept_tokens",
    "load_encoder",
    "load_pretrained",
]
