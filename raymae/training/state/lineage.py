"""Which clips a model was trained on, to answer deletion requests. Imports neither Ray nor torch.

A training stage writes `trained_on.parquet`: with a feature store the role of each of its rows (null: not trained on),
which takes next to no space; without one the ids of the clips and their roles. Its metadata name the store and the
models that the stage's weights were initialised from, which were trained on clips of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import redact
from raymae.config.stages import TRAININGS
from raymae.datasets.rows import unlabelled_rows
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.mapped import release_memory
from raymae.training.spec import StageSpec, labelled_rows

TRAINED_ON = "trained_on.parquet"
ROLES = ("unlabelled", "labelled", "pseudo-labelled")
META = b"raymae"


def trained_on_table(spec: StageSpec) -> pa.Table:
    """The clips that a stage is trained on with their roles, for its artifact."""
    clips = spec.store.clips
    roles = np.full(len(clips), -1, np.int8)
    if spec.kind == "pretrain":
        roles[np.concatenate(spec.order().rows)] = ROLES.index("unlabelled")
    else:
        rows, _ = labelled_rows(spec)
        if spec.kind == "consistency":
            roles[unlabelled_rows(clips)] = ROLES.index("unlabelled")
        given = pc.is_valid(clips["scene_label"].take(rows)).to_numpy()
        roles[rows] = np.where(given, ROLES.index("labelled"), ROLES.index("pseudo-labelled"))
    column = pa.DictionaryArray.from_arrays(pa.array(roles, mask=roles < 0), pa.array(ROLES))
    columns: dict[str, Any] = {"role": column}
    stored = isinstance(spec.store, FeatureStore)
    if not stored:
        columns = {"clip_id": clips["clip_id"], **columns}
    begins = [place_of(folder) for folder in (spec.encoder, spec.classifier) if folder is not None]
    about = {"store": place_of(spec.store.folder) if stored else None, "begins_as": begins}
    table = pa.table(columns).replace_schema_metadata({META: json.dumps(about)})
    release_memory()
    return table if stored else table.filter(pc.is_valid(table["role"]))


def place_of(folder: Folder) -> str:
    """ "stage/key" of an artifact."""
    return "/".join(folder.url.rstrip("/").split("/")[-2:])


@dataclass(frozen=True)
class ClipUse:
    """A clip that a model was trained on."""

    clip_id: str
    model: str
    """ "stage/key"."""
    role: str
    through: str | None
    """The stage that the model was initialised from and that was trained on the clip, if not the model itself."""


def models_trained_on(storage: Folder, column: str, values: Sequence[str]) -> tuple[list[ClipUse], list[str]]:
    """The models trained on the clips whose `column` of the clip table holds one of `values`; and a line for each model
    of which that isn't known, with the reason.

    ValueError if no store's clip table has the column, or none of the values occurs.
    """
    own, begins, unknown = _own_uses(storage, column, values)
    found = []
    for model in own:
        for place in [model, *_ancestors(model, begins)]:
            if place not in own and place not in unknown:
                unknown[place] = "it was imported, or is older than the records of clips"
            through = None if place == model else place
            found += [ClipUse(clip, model, role, through) for clip, role in own.get(place, {}).items()]
    lines = [f"{model}: {why}" for model, why in sorted(unknown.items())]
    return sorted(found, key=lambda one: (one.clip_id, one.model, one.through or "")), lines


def _own_uses(
    storage: Folder, column: str, values: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, list[str]], dict[str, str]]:
    """By model: the clips that it was trained on itself with their roles; what it was initialised from; why unknown."""
    stores: dict[str, pa.Table | None] = {}
    own: dict[str, dict[str, str]] = {}
    begins: dict[str, list[str]] = {}
    unknown: dict[str, str] = {}
    known: set[str] = set()
    occurs = False
    for stage in TRAININGS:
        for key in (storage / f"artifacts/{stage}").names():
            folder, model = storage / f"artifacts/{stage}/{key}", f"{stage}/{key}"
            if not folder.exists(TRAINED_ON):
                unknown[model] = "it is unfinished, or older than the records of clips"
                continue
            trained_on = folder.read_table(TRAINED_ON, checked=True)
            about = json.loads(trained_on.schema.metadata[META])
            begins[model] = about["begins_as"]
            clips = _clips(storage, about["store"], stores) if about["store"] else trained_on
            if clips is None:
                unknown[model] = f"its feature store {about['store']} is gone"
                continue
            known |= set(clips.column_names) - {"role"}
            if column not in clips.column_names or len(clips) != len(trained_on):
                unknown[model] = f"its clips have no {column}: only their ids are known"
                continue
            asked = pc.is_in(clips[column].cast(pa.string()), pa.array(values, pa.string()))
            occurs = occurs or bool(pc.any(asked).as_py())
            used = pc.and_(asked, pc.is_valid(trained_on["role"]))
            roles = trained_on["role"].filter(used).to_pylist()
            own[model] = dict(zip(clips["clip_id"].filter(used).to_pylist(), roles, strict=True))
    if known and column not in known:
        raise ValueError(f"no clip table has a column {column}; there are: {', '.join(sorted(known))}")
    if known and not occurs:
        raise ValueError(f"no {column} of any clip is {' or '.join(values)}")
    return own, begins, unknown


def _clips(storage: Folder, store: str, stores: dict[str, pa.Table | None]) -> pa.Table | None:
    """The clip table of a feature store, read once; None if it is gone."""
    if store not in stores:
        folder = storage / f"artifacts/{store}"
        stores[store] = FeatureStore(folder, storage).clips if folder.exists("clips.parquet") else None
    return stores[store]


def _ancestors(model: str, begins: Mapping[str, Sequence[str]]) -> list[str]:
    """What a model was initialised from, and what that was initialised from, and so on."""
    found: list[str] = []
    waiting = list(begins.get(model, ()))
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.append(place)
            waiting += begins.get(place, ())
    return found


def uses_text(uses: Sequence[ClipUse], unknown: Sequence[str], storage: Folder) -> str:
    """The answer of `models_trained_on` as a table."""
    lines = [f"{'clip_id':40s} {'model':32s} {'role':16s} through"]
    lines += [f"{one.clip_id:40s} {one.model:32s} {one.role:16s} {one.through or ''}".rstrip() for one in uses]
    if not uses:
        lines = [f"no model in {redact(storage.url)} is known to be trained on them"]
    return "\n".join([*lines, *(f"not known: {line}" for line in unknown)])
