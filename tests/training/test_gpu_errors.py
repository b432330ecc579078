"""What is wrong with a GPU is said in a line that says what would help."""

from __future__ import annotations

import pytest
import torch

from raymae.training.guards import gpu
from raymae.training.guards.gpu import check_device, explained
from raymae.training.tasks.base import TrainingError


def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_training_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update …")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(
        TrainingError, match=r"driver on your system is too old \(found version 11040\)\. \(torch .* is"
    ):
        check_device(torch.device("cpu"), wants_gpu=True, workers=1)
    check_device(torch.device("cpu"), wants_gpu=False, workers=4)


def test_slices_of_a_gpu_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    check_device(torch.device("cuda"), wants_gpu=True, workers=1)
    with pytest.raises(
        TrainingError, match=r"MIG 1g\.18gb is a slice of a GPU .* join 2 of them: train with --compute"
    ):
        check_device(torch.device("cuda"), wants_gpu=True, workers=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), r"rank 3 ran .* step 7: .*2 GiB"),
        (
            RuntimeError("CUDA error: unspecified launch failure\nmore"),
            r"the GPU of rank 3 failed at step 7: .*failure\. ",
        ),
    ],
)
def test_a_failing_gpu_is_named_with_what_helps(error: Exception, message: str) -> None:
    found = explained(error, 3, 7)
    assert isinstance(found, TrainingError)
    with pytest.raises(TrainingError, match=message):
        raise found


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("shape mismatch")
    assert explained(error, 0, 1) is error


def test_where_torch_finds_no_driver_the_reason_is_its_own() -> None:
    if torch.cuda.is_available():
        assert "CUDA_VISIBLE_DEVICES" in gpu.unusable_because()
    else:
        assert torch.__version__ in gpu.unusable_because()
