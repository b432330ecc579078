"""Training from weights on Hugging Face's hub: the plan is that of the same weights on disk."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from raymae.pipeline.plan.init_weights import bring
from tests.support.weights import make_plan, make_state, start


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of someone/vit on the hub."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, revision, allow_patterns: str(folder))
    return folder


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_weights_of_the_hub_are_those_on_disk(repository: Path, clips: pa.Table, tmp_path: Path, kind: str) -> None:
    save_file(make_state(), repository / "model.safetensors")
    on_disk = make_plan(start(repository / "model.safetensors", kind), clips, tmp_path)
    for address in ("hf://someone/vit", "hf://someone/vit@main/model.safetensors"):
        plan = make_plan(start(address, kind), clips, tmp_path)
        assert plan.nodes[kind].key == on_disk.nodes[kind].key
        bring(plan.given[kind], kind, start(address, kind), write=True)
        assert plan.given[kind].artifact.is_done()


def test_what_is_wrong_names_option_and_address(repository: Path, clips: pa.Table, tmp_path: Path) -> None:
    torch.save(make_state(), repository / "weights.pth")
    for address, error in (
        ("hf://someone/vit/weights.pth", "only .safetensors files are read from the hub"),
        ("hf://someone/vit", "the repository has none of model.json"),
    ):
        with pytest.raises(ValueError, match=rf"^finetune\.init_from {address}: {address}: {error}"):
            make_plan(start(address), clips, tmp_path)
