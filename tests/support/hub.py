"""A stand-in for Hugging Face's hub: files in memory at hf://, and Parquet tables as the hub writes them."""

from __future__ import annotations

import io
import json
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as fsspec_registry


class MemoryHub(MemoryFileSystem):
    """The hub's paths, datasets/OWNER/NAME/…, in memory."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("hf://")))


class UnreachableHub(MemoryHub):
    """A hub without a network: its HTTP client's error is no OSError."""

    def info(self, path: str, **kwargs: Any) -> Any:
        """Raise as the client does."""
        raise TransportError("[Errno -2] Name or service not known")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """Raise as the client does."""
        return self.info(path)

    def isdir(self, path: str) -> bool:
        """Raise as the client does."""
        return bool(self.info(path))

    isfile = exists = isdir


class TransportError(Exception):
    """Of the hub's HTTP client."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[MemoryHub]:
    """An empty hub at hf://."""
    use(MemoryHub, monkeypatch)
    return MemoryHub


def use(kind: type[MemoryHub], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file system stand at hf://, empty."""
    kind.clear_instance_cache()
    monkeypatch.setattr(MemoryHub, "store", {})
    monkeypatch.setattr(MemoryHub, "pseudo_dirs", [""])
    monkeypatch.setitem(fsspec_registry, "hf", kind)


def hub_table(columns: dict[str, Any], features: dict[str, Any] | None = None) -> bytes:
    """A Parquet file with the hub's metadata."""
    table = pa.table(columns)
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def audio(*sounds: bytes, names: tuple[str | None, ...] | None = None) -> pa.Array:
    """The column of structs {bytes, path}."""
    paths = names or tuple(f"{number}.wav" for number in range(len(sounds)))
    rows = [{"bytes": sound, "path": path} for sound, path in zip(sounds, paths, strict=True)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def class_label(*names: str) -> dict[str, Any]:
    """The feature of a column of classes."""
    return {"names": list(names), "_type": "ClassLabel"}
