"""Why a folder of a storage can't be written."""

from __future__ import annotations

from pathlib import Path


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
