"""What can be wrong with a GPU, in a line that says what would help."""

from __future__ import annotations

import torch

from raymae.training.tasks.base import TrainingError

LESS_MEMORY = (
    "a smaller micro_batch_size (with a smaller mixing_group), activation_checkpointing or --compute.parallel fsdp "
    "needs less"
)


def check_device(device: torch.device, wants_gpu: bool, workers: int) -> None:
    """Raise TrainingError if torch can't use the GPU that this worker was given, or can't join it with the others'."""
    if wants_gpu and device.type != "cuda":
        raise TrainingError(f"this worker was given a GPU, and torch can't use it: {unusable_because()}")
    if device.type == "cuda" and workers > 1 and "MIG" in torch.cuda.get_device_name(device):
        raise TrainingError(
            f"{torch.cuda.get_device_name(device)} is a slice of a GPU (MIG), and NCCL can't join {workers} of them: "
            "train with --compute.num-workers 1, or on whole GPUs"
        )


def unusable_because() -> str:
    """Why torch can't use a GPU, as its own initialisation says; most often the driver is too old for the wheels."""
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError: by what is missing
        reason = str(error).strip().partition("\n")[0]
        return f"{reason} ({built}: update the driver, or install torch for an older CUDA)"
    return f"it finds {torch.cuda.device_count()} ({built}); CUDA_VISIBLE_DEVICES may hide it"


def explained(error: Exception, rank: int, step: int) -> Exception:
    """The error of a training step; as a TrainingError that says what would help, where that is known."""
    line = str(error).strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"rank {rank} ran out of GPU memory at step {step}: {line}. Of the same training, {LESS_MEMORY}"
        )
    if isinstance(error, RuntimeError) and "CUDA error" in line:
        return TrainingError(
            f"the GPU of rank {rank} failed at step {step}: {line}. Training resumes from the last checkpoint with the "
            "GPUs that are left; the system's log (dmesg, Xid) says whether this one is broken"
        )
    return error
