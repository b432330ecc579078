"""How a table is read: its columns, the folder of its recordings and its folds."""

from __future__ import annotations

import os
from dataclasses import dataclass

from raymae.config import DataConfig, redact
from raymae.datasets.labels import SEPARATOR
from raymae.datasets.tables.links import OWN, Links
from raymae.datasets.tables.locate import OWN_FOLDER
from raymae.datasets.tables.parts import PARTS
from raymae.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The columns of a table and the place of its recordings."""

    filename: str = "filename"
    """Column of the filenames."""
    suffix: str = ""
    """Appended to every filename."""
    label: str = "scene_label"
    """Column of the labels."""
    separator: str = SEPARATOR
    """Separator of the classes in a label."""
    fold: str | None = None
    """Column of the folds."""
    audio_root: str | None = None
    """Folder or URL that the filenames are relative to; None: the table's own folder."""
    links: Links = OWN
    """The symbolic links that are followed."""
    own: bool = False
    """Whether the options `data.*` describe this table, so that messages name them."""

    @classmethod
    def of(cls, config: DataConfig, *inputs: str) -> TableSettings:
        """The settings of `data.tables`; `inputs` are further paths that the user named."""
        return cls(
            filename=config.filename_column,
            suffix=config.filename_suffix,
            label=config.label_column,
            separator=config.label_separator,
            fold=config.fold_column,
            audio_root=config.audio_root,
            links=Links.of(config, *inputs),
            own=True,
        )

    def name_of(self, column: str) -> str:
        """The table's name of a column, by its own name here."""
        named = {"filename": self.filename, "scene_label": self.label, "fold": self.fold}
        return named.get(column) or column

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, by their names here, the filenames first."""
        names = ("filename", "scene_label", "city", "device", "group")
        split = ("split",) if self.fold != "split" else ()
        return (*names, *split, *PARTS, *(("fold",) if self.fold else ()))

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that have to be there, by their names here, the filenames first."""
        label = () if self.label == "scene_label" else ("scene_label",)
        return ("filename", *label, *(("fold",) if self.fold else ()))

    @property
    def place(self) -> str:
        """What the folder of the recordings is, for messages."""
        if self.audio_root is not None:
            return "data.audio_root"
        return OWN_FOLDER + (" (--data.audio-root names another one)" if self.own else "")

    def audio_folder(self, own: Folder) -> Folder:
        """The folder of the recordings of a table in the folder `own`; ValueError where it isn't one."""
        if self.audio_root is None:
            return own
        root = self.audio_root
        url = root if "://" in root else os.path.abspath(os.path.expanduser(root))
        folder = Folder(url.rstrip("/") or "/")
        try:
            found = folder.fs.isdir(folder.path() or "/")
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(f"data.audio_root = {redact(root)} can't be read: {redact(str(error))}") from None
        if not found:
            raise ValueError(f"data.audio_root = {redact(root)} is not a folder: name that of the recordings")
        return folder


PLAIN = TableSettings()
"""Of a table whose columns have the names used here, beside its recordings."""
