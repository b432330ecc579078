"""Which inputs a stage has: log-mels as they are read, or those that its device makes of waveforms."""

from __future__ import annotations

from raymae.config import AugmentConfig
from raymae.features.streaming import WaveformClips
from raymae.training.spec import StageSpec
from raymae.training.tasks.inputs import Inputs, LogMelInputs


def inputs_of(spec: StageSpec, config: AugmentConfig) -> Inputs:
    """How a stage takes the frames of what its clips are read as."""
    if not isinstance(spec.store, WaveformClips):
        return LogMelInputs(spec.config.audio, config)
    from raymae.training.tasks.device_inputs import DeviceInputs  # imports torchaudio

    return DeviceInputs(spec.config.audio, config, spec.response_waveforms)
