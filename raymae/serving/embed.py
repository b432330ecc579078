"""`jobs/embed.py`: embeddings of a data set's clips from a frozen encoder, in parts that Ray Data actors write."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymae.cluster.parts import DONE, Part, claim, part_name, write_parts
from raymae.cluster.resources.pools import actor_pool, torch_device
from raymae.config import AudioConfig, Config, EmbedConfig, redact, to_dict
from raymae.console.bars import bar
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore, iterate
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.model_uri import open_shared

PART = 1024
"""Clips in a file of the result."""
BATCH = 64
COLUMNS = ("clip_id", "scene_label", "city", "device", "group", "split")
PARTS = ("recording", "start_seconds", "end_seconds")
"""Further columns: the part of a long recording that a clip is."""


class EmbedRows:
    """Embeds the rows of a part of the store with an encoder; built on a worker."""

    def __init__(self, store: FeatureStore, encoder: Folder, config: EmbedConfig, threads: int) -> None:
        import torch

        from raymae.inference.embedder import read_embedder

        torch.set_num_threads(threads)
        self.store, self.config = store, config
        self.embedder = read_embedder(encoder, config.layers, torch_device())

    def __call__(self, work: dict[str, int]) -> pa.Table:
        return self._table(np.arange(work["start"], work["stop"]))

    def _table(self, rows: Rows) -> pa.Table:
        vectors, starts = [], None
        for _, log_mel, frames in iterate(self.store, rows, BATCH):
            if self.config.level == "clip":
                vectors += list(self.embedder.clips(log_mel, frames, self.config.pool))
            else:
                found, starts = self.embedder.frames(log_mel, frames)
                vectors += list(found)
        parts = [name for name in PARTS if name in self.store.clips.column_names]
        table = self.store.clips.select([*COLUMNS, *parts]).take(rows)
        if starts is None:
            return table.append_column("embedding", vector_column(np.stack(vectors)))
        columns, width = vectors[0].shape
        inner = vector_column(np.concatenate(vectors).reshape(-1, width))
        seconds = starts * self.embedder.audio.hop_length / self.embedder.audio.sample_rate
        times = pa.array([seconds.tolist()] * len(rows), pa.list_(pa.float32()))
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * columns)
        table = table.append_column("seconds", times)
        return table.append_column("embedding", pa.ListArray.from_arrays(offsets, inner))


def vector_column(values: Any) -> pa.FixedSizeListArray:
    """Vectors (n, E), float32, as a column of n lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def embed_clips(config: Config) -> dict[str, Any]:
    """Embed every clip of the data set; existing parts of the same result are kept.

    Raises:
        ValueError: no output is named, the output holds something else, there is no such encoder, or the encoder has
            another front end.
    """
    from raymae.cluster.connect import start_ray
    from raymae.datasets.recordings import load_clips
    from raymae.pipeline.run import run_plan

    if config.embed.output is None:
        raise ValueError("--embed.output is missing: name a folder to write Parquet files to")
    output = Folder(config.embed.output if "://" in config.embed.output else str(Path(config.embed.output).resolve()))
    storage = open_storage(config.storage)
    encoder = find_encoder(config, storage)
    check_front_end(encoder, config.audio)
    check_layers(encoder, config.embed)
    run_plan(config, "prepare", storage)
    plan = Plan(config, load_clips(config, storage), storage, "prepare")
    store = plan.store
    settings = {
        **asdict(config.embed),
        "output": None,
        "model": redact(encoder.url),
        "prepare": plan.nodes["prepare"].key,
    }
    claim(output, to_dict(settings), "--embed.output", "embeddings")
    borders = [*range(0, len(store), PART), len(store)]
    parts = [Part(part_name(start), stop - start, {"start": start, "stop": stop}) for start, stop in pairwise(borders)]
    existing = set(output.names())
    missing = [part for part in parts if part.name not in existing]
    with bar("embed", len(store), done=len(store) - sum(part.size for part in missing)) as shown:
        if missing:
            start_ray(config.compute)
            pool, threads = actor_pool(config.compute, len(missing))
            write_parts(missing, output, EmbedRows, (store, encoder, config.embed, threads), pool, shown.advance)
    result = {
        "job": "embed",
        "clips": len(store),
        "files": len(parts),
        "output": redact(output.url),
        "encoder": redact(encoder.url),
    }
    output.write_json(DONE, to_dict(result))
    print(f"{len(store)} clips in {len(parts)} files: {redact(output.url)}")
    return result


def find_encoder(config: Config, storage: Folder) -> Folder:
    """The folder of the encoder: a given folder or registry URI, or the recipe's own pre-training."""
    model = config.embed.model
    if model is None:
        from raymae.datasets.recordings import load_clips

        given = find(config, storage, "pretrain")
        node = Plan(config, load_clips(config, storage), storage, "pretrain", given).nodes["pretrain"]
        if not node.reused:
            raise ValueError(
                "the pre-training of this recipe and these settings has not finished: run jobs/pretrain.py first, "
                "or name an encoder with --embed.model"
            )
        return node.artifact
    return open_shared(model, config)


def check_front_end(encoder: Folder, audio: AudioConfig) -> None:
    """ValueError where the encoder was trained with another front end than the configured one."""
    from raymae.inference.embedder import read_card

    _, card = read_card(encoder)
    own = audio.front_end()
    other = [name for name, value in own.items() if card["audio"].get(name) != value]
    if other:
        found = ", ".join(f"audio.{name} = {card['audio'].get(name)} (here {own[name]})" for name in other)
        raise ValueError(f"the encoder was trained with {found}: give its recipe or these settings")


def check_layers(encoder: Folder, config: EmbedConfig) -> None:
    """ValueError where the encoder has no such layer, before workers start."""
    from raymae.inference.embedder import read_card

    _, card = read_card(encoder)
    depth = card.get("finetune", {}).get("layer") or card["model"]["depth"]
    wrong = [layer for layer in config.layers if not 1 <= layer <= depth]
    if wrong:
        raise ValueError(f"--embed.layers {wrong[0]}: the encoder has {depth} blocks, counted from 1")
