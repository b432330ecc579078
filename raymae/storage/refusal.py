"""Errors of storages that a user meets, in a line that names the URL and what would be right."""

from __future__ import annotations

import errno
from pathlib import Path

from raymae.config import redact
from raymae.storage import retry
from raymae.storage.retry import StorageError, StorageFullError, is_conflict, is_full, is_transient

AGAIN = "run the same command again, which resumes from what is stored"
FORBIDDEN_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ClientAuthenticationError",
    "DefaultCredentialsError",
}
"""Of botocore, azure-core and google-auth, none of which has to be installed."""
CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google")
"""Packages whose errors are a storage's."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Protocols whose buckets aren't made: one that is missing is a slip of the pen, or belongs to another account."""


class StorageForbiddenError(StorageError, PermissionError):
    """The storage refuses access."""


class StorageAwayError(StorageError):
    """The storage doesn't answer, or answers that it is busy, for longer than it is retried."""


class NoBucketError(StorageError, FileNotFoundError):
    """There is no such bucket."""


def explained(url: str, error: Exception) -> Exception:
    """The error to raise for an operation in a folder that failed: what a user can mend in a line; a missing file, or
    anything else, as it is."""
    where, reason = redact(url), words(error)
    if isinstance(error, StorageError) or is_conflict(error) or url.startswith("hf://"):  # the hub has words of its own
        return error
    if is_full(error):
        return StorageFullError(f"{where} can't be written to ({reason}): make room there and {AGAIN}")
    if "://" not in url:  # the system's words name the path
        return error
    kinds, names = type(error).__mro__, {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, PermissionError) or names & FORBIDDEN_NAMES:
        return StorageForbiddenError(
            f"{where} refuses access ({reason}): give credentials that may read, list and write there, and {AGAIN}"
        )
    if getattr(error, "errno", None) == errno.ENOSYS:
        return StorageError(
            f"{where} can't be used ({reason}): its server doesn't offer a part of S3's interface; where that "
            "is of checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        )
    if is_transient(error):
        return StorageAwayError(
            f"{where} still fails after {retry.RETRY_SECONDS:.0f} s of retries ({reason}): once it answers, {AGAIN}"
        )
    if not isinstance(error, OSError | ValueError) and any(kind.__module__.split(".")[0] in CLIENTS for kind in kinds):
        return StorageError(f"{where} can't be used ({reason}): check its name, its options and its endpoint")
    return error


def require_bucket(url: str, error: FileNotFoundError) -> None:
    """NoBucketError where writing found nothing to write to in an object store."""
    protocol, _, rest = url.partition("://")
    if protocol in OBJECT_STORES:
        bucket = redact(f"{protocol}://{rest.partition('/')[0]}")
        raise NoBucketError(
            f"{redact(url)} can't be written: there is no bucket {bucket} ({words(error)}); make it or correct its name"
        )


def words(error: Exception) -> str:
    """An error's own words in a line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(redact(reason).split()) or type(error).__name__


def why_not(url: str, error: Exception) -> str:
    """Why a folder can't be written, in a line: the part of a local path that is a file, or the system's words."""
    if isinstance(error, ImportError) and url.startswith(("s3://", "s3a://")):
        return f"{' '.join(str(error).split())}: pip install 'raymae[s3]'"
    path = Path(url)
    for part in (path, *path.parents) if "://" not in url else ():
        if part.exists():
            if not part.is_dir():
                return f"{part} is a file (Not a directory); name a folder"
            if isinstance(error, OSError) and error.strerror:
                return f"the system refuses to write in {part} ({error.strerror}); name another folder"
            break
    return " ".join(str(error).split())
