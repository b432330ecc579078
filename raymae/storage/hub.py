"""Hugging Face's hub: weights are downloaded to its cache, tables are read at their URL by fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from raymae.config import redact

PROTOCOL = "hf://"
MODEL = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")
"""hf://OWNER/NAME[@REVISION][/PATH]; a / in a revision is written %2F."""
NOT_MODELS = ("datasets/", "spaces/", "buckets/")
NOT_FOUND = {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}
SAFETENSORS = ".safetensors"
OTHER_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".h5")


def is_on_hub(url: str) -> bool:
    """Whether a URL is of the hub."""
    return url.startswith(PROTOCOL)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn the errors of the hub's library into ValueErrors that say what to do; those of other URLs pass."""
    try:
        yield
    except ValueError:
        raise
    except ImportError as error:
        if not is_on_hub(url):
            raise
        raise ValueError(
            f"{redact(url)} needs the package huggingface_hub ({error}): pip install huggingface_hub"
        ) from None
    except Exception as error:  # of huggingface_hub and of its HTTP client
        if not is_on_hub(url):
            raise
        raise ValueError(f"{redact(url)} can't be read: {explained(error)}") from None


def explained(error: Exception) -> str:
    """Why something on the hub can't be read, in one line."""
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = " ".join(str(error).split())[:200]
    if "LocalEntryNotFoundError" in names or "TransportError" in names or isinstance(error, ConnectionError):
        return f"the hub can't be reached, and there is no copy in its cache ({reason})"
    if "GatedRepoError" in names or isinstance(error, PermissionError):
        return f"it asks for access: accept its terms on its page and set HF_TOKEN ({reason})"
    if isinstance(error, FileNotFoundError) or names & NOT_FOUND:
        return f"there is no such repository, revision or file, or it is private: then set HF_TOKEN ({reason})"
    return f"{type(error).__name__}: {reason}"


def download(source: str, files: tuple[str, ...]) -> str:
    """Download from a repository of models: the file that `source` names, or of its folder those of `files` there are.

    Returns the local path of the file or folder; what `files` name beside a named file is downloaded, too. What is in
    the cache of the hub's library is not downloaded again, and is used where the hub can't be reached.

    Raises:
        ValueError: no address of a model, another format than safetensors, or it can't be downloaded.
    """
    address = MODEL.fullmatch(source.rstrip("/"))
    if address is None or source.removeprefix(PROTOCOL).startswith(NOT_MODELS):
        raise ValueError(f"{redact(source)} should be hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or one with /FILE")
    path = address["path"] or ""
    if path.lower().endswith(OTHER_WEIGHTS):
        raise ValueError(f"{redact(source)}: only {SAFETENSORS} files are read from the hub")
    if ".." in path.split("/"):
        raise ValueError(f"{redact(source)} leads out of the repository")
    is_file = path.endswith(SAFETENSORS)
    folder = path.rpartition("/")[0] if is_file else path
    wanted = [f"{folder}/{name}".lstrip("/") for name in files] + [path] * is_file
    revision = unquote(address["revision"]) if address["revision"] else None
    with reading(source):
        from huggingface_hub import snapshot_download

        local = Path(snapshot_download(address["repo"], revision=revision, allow_patterns=wanted))
    found = local / path
    if not found.exists() or (not is_file and not any((found / name).exists() for name in files)):
        where = f"the folder {path}" if path else "the repository"
        lacking = f"{where} has none of {', '.join(files)}: name the {SAFETENSORS} file itself"
        raise ValueError(f"{redact(source)}: " + ("the repository has no such file" if is_file else lacking))
    return str(found)
