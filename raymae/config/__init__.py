"""All settings of a run: frozen, typed sections with a docstring under each field, which is also its help text.

A recipe (`raymae.config.recipes`) is a function that returns a complete `Config`; the command line overrides any field
by its path. Each section checks itself, and `Config` checks the sections against each other. Wrong settings raise
ValueErrors that say what would be right.
"""

from raymae.config.audio import CONSTANT, FRONT_ENDS, AudioConfig
from raymae.config.augment import AugmentConfig, ResponsesBy
from raymae.config.data import DataConfig, SplitConfig, SplitKind, SyntheticConfig
from raymae.config.jobs import (
    AuditConfig,
    EmbedConfig,
    ExportConfig,
    GraphInput,
    LabelLevel,
    PredictConfig,
    PromoteConfig,
    ServeConfig,
    SweepConfig,
)
from raymae.config.model import DECODERS, MODEL_SIZES, LatentConfig, ModelConfig, ModelSize, with_decoder, with_size
from raymae.config.paths import changed, differences, field_type, from_text, leaves, to_text, typed
from raymae.config.run import ComputeConfig, Config, TrackingConfig
from raymae.config.training import (
    RANDOM,
    Ablation,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    TrainConfig,
)
from raymae.config.unlabelled import ConsistencyConfig, PseudoLabelConfig
from raymae.config.values import from_dict, nearest, redact, to_dict

__all__ = [
    "CONSTANT",
    "DECODERS",
    "FRONT_ENDS",
    "MODEL_SIZES",
    "RANDOM",
    "Ablation",
    "AudioConfig",
    "AuditConfig",
    "AugmentConfig",
    "ComputeConfig",
    "Config",
    "ConsistencyConfig",
    "DataConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "GraphInput",
    "LabelLevel",
    "LatentConfig",
    "ModelConfig",
    "ModelSize",
    "PredictConfig",
    "PretrainConfig",
    "PromoteConfig",
    "PseudoLabelConfig",
    "ResponsesBy",
    "ServeConfig",
    "SplitConfig",
    "SplitKind",
    "SweepConfig",
    "SyntheticConfig",
    "TrackingConfig",
    "TrainConfig",
    "changed",
    "differences",
    "field_type",
    "from_dict",
    "from_text",
    "leaves",
    "nearest",
    "redact",
    "to_dict",
    "to_text",
    "typed",
    "with_decoder",
    "with_size",
]
