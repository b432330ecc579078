"""A folder of recordings per class: `root/<class>/…`, or `root/{train,val,test…,pool}/<class>/…`.

The class is the name of the folder; recordings may lie deeper, and those of one folder below a class's are a group
(`root/bus/ride-3/*.wav`), as they are commonly cut from one recording. A recording directly in the class's folder is a
group of its own. Folders train and val or test… are splits; a pool beside them needs no classes.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa

from raymae.audio.containers import AUDIO
from raymae.config import DataConfig, redact
from raymae.datasets.labels import SEPARATOR
from raymae.datasets.published.official import clip_rows, examples, root_of, warn_of_extra
from raymae.datasets.tables.corpus import log_left_out, names_below
from raymae.datasets.tables.locate import locate

SPLIT = re.compile(r"train|val|pool|test([-_0-9].*)?")
MEANT = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "test", "evaluation": "test"}
"""Usual names of splits, and what they are called here."""


def load(config: DataConfig, folder: Path | None) -> pa.Table:
    """`ROWS`: clip_id is the path below the root, scene_label the class's folder, group the folder below that.

    Other files and recordings outside of the classes' folders are counted and logged. Raises ValueError where no
    recording is in a class's folder, and for folders of splits beside others.
    """
    root = root_of(config)
    left_out: Counter[str] = Counter()
    names = [name for name in sorted(names_below(root, left_out)) if is_recording(name, left_out)]
    log_left_out(redact(root.url), left_out)
    parts = [name.split("/") for name in names]
    has_splits = by_split({part[0] for part in parts if len(part) > 1}, redact(root.url))
    rows = [row_of(part, has_splits) for part in parts]
    warn_of_extra(redact(root.url), [name for name, row in zip(names, rows, strict=True) if row is None])
    kept = [row for row in rows if row is not None]
    if not kept:
        raise ValueError(
            f"data.root = {redact(root.url)} has no recording ({', '.join(AUDIO)}) in a folder of a class: expected "
            "CLASS/recording.wav, or train/CLASS/recording.wav"
        )
    check_classes({row["scene_label"] for row in kept if row["scene_label"]}, redact(root.url))
    schema = pa.schema([(name, pa.string()) for name in ("filename", "clip_id", "scene_label", "group", "split")])
    table = pa.Table.from_pylist(kept, schema).append_column("row", pa.array(range(1, len(kept) + 1), pa.int64()))
    return clip_rows(locate(redact(root.url), root, table), "folders")


def is_recording(name: str, left_out: Counter[str]) -> bool:
    """Whether a file's name is a recording's; counts the others by kind."""
    hidden, ending = "/." in f"/{name}", Path(name).suffix.lower()
    if hidden or ending not in AUDIO:
        left_out["hidden files" if hidden else f"files *{ending}"] += 1
        return False
    return True


def by_split(folders: set[str], root: str) -> bool:
    """Whether the folders of the root are splits; ValueError where some of them only nearly are.

    They are if train is among them and a held-out split, too, or nothing else: a class may be called train.
    """
    meant = {name: meaning for name in folders if (meaning := split_of(name))}
    others = folders - set(meant)
    held_out = [name for name, split in meant.items() if split not in ("train", "pool")]
    if "train" not in meant.values() or not (held_out or not others):
        return False
    wrong = sorted({name for name, split in meant.items() if name != split} | others)
    if wrong:
        hints = [f"{name} should be {meant[name]}" for name in wrong if name in meant]
        raise ValueError(
            f"data.root = {root} holds folders of splits ({', '.join(sorted(meant))}), so every folder in it should "
            f"be train, val, pool or begin with test; not {examples(wrong)}" + "".join(f"; {hint}" for hint in hints)
        )
    return True


def split_of(folder: str) -> str | None:
    """The split that a folder's name means; None for another name."""
    name = MEANT.get(folder.lower(), folder.lower())
    return name if SPLIT.fullmatch(name) else None


def row_of(parts: list[str], has_splits: bool) -> dict[str, str | None] | None:
    """The columns of a recording's row, from the parts of its path; None outside of the folders of classes."""
    split, inner = (parts[0], parts[1:]) if has_splits else ("train", parts)
    if len(inner) < 2 and not (split == "pool" and inner):
        return None
    name = "/".join(parts)
    return {
        "filename": name,
        "clip_id": name,
        "scene_label": inner[0] if split != "pool" else None,
        "group": name.rpartition("/")[0] if len(inner) > 2 else None,
        "split": split,
    }


def check_classes(classes: set[str], root: str) -> None:
    """Raise ValueError for a class whose name would be read as several classes."""
    wrong = sorted(name for name in classes if SEPARATOR in name)
    if wrong:
        raise ValueError(f"data.root = {root}: the folder {wrong[0]!r} should have a name without {SEPARATOR!r}")
