"""A segment: a part of a stage's steps, which begins from the checkpoint at which a segment of another artifact ended.

Both may have other settings of the optimiser, the loss or the augmentation; the order of clips, the number of steps and
the model are those of the same stage. A segment's key names all that decides it: the stage, its values, its end, and
the key of the segment before it. A checkpoint names the segment that wrote it. Without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymae.config import redact
from raymae.storage.commits import complete, read_commit
from raymae.storage.folder import COMMITS, Folder

COMMIT_NAME = "commit"
"""In the `done.json` of a segment that isn't a stage's last: the checkpoint from which other segments begin."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The segment that another one continues."""

    key: str
    artifact: Folder

    def commit(self) -> str:
        """The name of the checkpoint at which it ended; ValueError if it isn't there."""
        name = self.artifact.result().get(COMMIT_NAME)
        if name not in complete(self.artifact):
            raise ValueError(
                f"{redact(self.artifact.url)}/{COMMITS} lacks the checkpoint {name} at which the segment {self.key} "
                "ended: remove done.json beside it, and the segment is trained again"
            )
        return str(name)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The part of a stage that one artifact trains."""

    key: str
    end: int
    """The step of the stage after which it ends; the stage's last, for its last segment."""
    parent: Parent | None = None
    """What it continues; None for the first segment."""


def check_writer(segment: Segment | None, artifact: Folder, name: str) -> None:
    """Raise ValueError unless a checkpoint was written by the segment itself or, in its parent's artifact, by that one.

    The settings of the two differ by design; the parent's key, of which the segment's own key is made, stands for them.
    """
    parent = segment.parent if segment else None
    before = parent is not None and parent.artifact.url == artifact.url
    expected = parent.key if parent and before else segment.key if segment else None
    found = read_commit(artifact, name).get("segment", {}).get("key")
    if found != expected:
        raise ValueError(
            f"{redact(artifact.url)}/{COMMITS}/{name} was written by {_named(found)}, not by {_named(expected)}: "
            "remove the folder of that artifact, and it is trained again"
        )


def _named(key: str | None) -> str:
    return f"segment {key}" if key else "a whole stage"
