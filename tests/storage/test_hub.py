"""Weights on Hugging Face's hub: what an address asks for, what is downloaded of it, and what is wrong with it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from raymae.storage.hub import download, explained, reading

FILES = ("model.json", "export.json", "model.safetensors")
REPOSITORY = ("model.safetensors", "big.safetensors", "run/model.json", "run/model.safetensors", "x.bin", "README.md")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The repositories and revisions that were asked for, of a hub that has one repository."""
    found: list[tuple[str, str | None]] = []

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        found.append((repo, revision))
        if repo != "someone/vit":
            raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError: [Errno -2]\nName not known")
        for name in REPOSITORY:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


@pytest.mark.parametrize(
    ("address", "revision", "path", "downloaded"),
    [
        ("hf://someone/vit", None, "", {"model.safetensors"}),
        ("hf://someone/vit@v1.0/", "v1.0", "", {"model.safetensors"}),
        ("hf://someone/vit@refs%2Fpr%2F3/run", "refs/pr/3", "run", {"run/model.json", "run/model.safetensors"}),
        ("hf://someone/vit/big.safetensors", None, "big.safetensors", {"big.safetensors", "model.safetensors"}),
    ],
)
def test_no_more_is_downloaded_than_is_asked_for(
    asked: list[tuple[str, str | None]],
    tmp_path: Path,
    address: str,
    revision: str | None,
    path: str,
    downloaded: set[str],
) -> None:
    assert download(address, FILES) == str(tmp_path / path)
    assert asked == [("someone/vit", revision)]
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == downloaded


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("hf://vit", "should be hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or one with /FILE"),
        ("hf://datasets/someone/vit", "should be hf://OWNER/NAME"),
        ("hf://someone/vit/x.bin", r"only \.safetensors files are read from the hub"),
        ("hf://someone/vit/../x.safetensors", "leads out of the repository"),
        ("hf://someone/vit/gone.safetensors", "the repository has no such file"),
        ("hf://someone/vit/other", r"the folder other has none of model\.json, .*: name the \.safetensors file itself"),
        ("hf://someone/else", "the hub can't be reached, and there is no copy in its cache .Got: ConnectError"),
    ],
)
def test_what_cannot_be_downloaded_is_said(asked: list[Any], address: str, error: str) -> None:
    with pytest.raises(ValueError, match=error) as caught:
        download(address, FILES)
    assert str(caught.value).startswith(address)
    assert "\n" not in str(caught.value)


def test_without_the_library_its_name_is_said() -> None:
    with (
        pytest.raises(ValueError, match=r"hf://a/b needs the package huggingface_hub .*pip install"),
        reading("hf://a/b"),
    ):
        raise ImportError("No module named 'huggingface_hub'")
    with pytest.raises(ImportError), reading("s3://a/b"):
        raise ImportError


def test_private_repositories_are_told_from_absent_ones() -> None:
    class GatedRepoError(Exception):
        pass

    assert "set HF_TOKEN" in explained(GatedRepoError("403"))
    assert "no such repository" in explained(FileNotFoundError("x"))
    assert explained(RuntimeError("x\ny")) == "RuntimeError: x y"
