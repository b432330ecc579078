"""Every setting of a run: frozen, typed sections with their documentation under each field.

A recipe (`raymae.config.recipes`) is a function that returns a whole `Config`; the command line overrides any field by
its path. A section checks itself; what two sections have to agree on is checked in `Config`. Wrong settings are
`ValueError`s that say what would be right.
"""

from raymae.config.audio import FRONT_ENDS, AudioConfig
from raymae.config.augment import AugmentConfig
from raymae.config.data import DataConfig, SplitConfig, SplitKind, SyntheticConfig
from raymae.config.jobs import (
    AuditConfig,
    EmbedConfig,
    ExportConfig,
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
from raymae.config.values import from_dict, redact, to_dict

__all__ = [
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
    "LabelLevel",
    "LatentConfig",
    "ModelConfig",
    "ModelSize",
    "PredictConfig",
    "PretrainConfig",
    "PromoteConfig",
    "PseudoLabelConfig",
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
    "redact",
    "to_dict",
    "to_text",
    "typed",
    "with_decoder",
    "with_size",
]
