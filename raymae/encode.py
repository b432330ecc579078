"""`jobs/embed.py`: vectors of every clip of a data set from a frozen encoder, in parts that Ray Data actors write."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from tqdm import tqdm

from raymae.artifacts import Folder, open_storage
from raymae.config import AudioConfig, Config, EmbedConfig, redact, to_dict
from raymae.inference import actor_pool
from raymae.order import Rows
from raymae.plan import Plan
from raymae.store import FeatureStore, iterate
from raymae.weights import find, open_artifact

PART = 1024
"""Clips in a file of the result."""
BATCH = 64
SETTINGS = "_settings.json"
"""Names with an underscore are skipped by whoever reads the folder as a Parquet data set."""
COLUMNS = ("clip_id", "scene_label", "city", "device", "group", "split")


class EmbedPart:
    """A Ray Data actor that holds the encoder and writes one file for each part."""

    def __init__(self, store: FeatureStore, encoder: Folder, config: EmbedConfig, output: Folder, threads: int) -> None:
        import torch

        from raymae.embed import read_embedder

        torch.set_num_threads(threads)
        gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        self.store, self.config, self.output = store, config, output
        self.embedder = read_embedder(encoder, config.layers, "cuda" if gpu else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = np.arange(batch["start"][0].as_py(), batch["stop"][0].as_py())
        name = part_name(int(rows[0]))
        if not self.output.exists(name):
            self.output.write_table(name, self._table(rows))
        return pa.table({"clips": [len(rows)]})

    def _table(self, rows: Rows) -> pa.Table:
        vectors, starts = [], None
        for _, log_mel, frames in iterate(self.store, rows, BATCH):
            if self.config.level == "clip":
                vectors += list(self.embedder.clips(log_mel, frames, self.config.pool))
            else:
                found, starts = self.embedder.frames(log_mel, frames)
                vectors += list(found)
        table = self.store.clips.select(COLUMNS).take(rows)
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
    """(n, E) float32 as a column of n lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def part_name(start: int) -> str:
    """The file that holds the clips from row `start` on."""
    return f"part-{start:09d}.parquet"


def embed_clips(config: Config) -> dict[str, Any]:
    """Embed every clip of the data set; what stands already of the same result is kept.

    Raises:
        ValueError: no output is named, it holds something else, there is no such encoder, or it has another front end.
    """
    from raymae.launch import start_ray
    from raymae.pipeline import run_plan

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
    claim(output, to_dict(settings))
    start_ray(config.compute)
    starts = list(range(0, len(store), PART))
    parts = [pa.table({"start": [start], "stop": [min(start + PART, len(store))]}) for start in starts]
    pool, threads = actor_pool(config.compute, len(parts))
    done = ray.data.from_arrow(parts).map_batches(
        EmbedPart,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(store, encoder, config.embed, output, threads),
        **pool,
    )
    with tqdm(total=len(store), desc="embed", unit="clip", mininterval=1) as bar:
        for block in done.iter_batches(batch_size=None):
            bar.update(int(block["clips"].sum()))
    result = {"job": "embed", "clips": len(store), "files": len(parts), "output": output.url, "encoder": encoder.url}
    output.write_json("_done.json", to_dict(result))
    print(f"{len(store)} clips in {len(parts)} files: {redact(output.url)}")
    return result


def claim(output: Folder, settings: dict[str, Any]) -> None:
    """Write down what the folder will hold; ValueError where it holds something else."""
    if output.exists(SETTINGS):
        if output.read_json(SETTINGS) != settings:
            raise ValueError(f"--embed.output {redact(output.url)} holds embeddings of other settings or clips")
    elif output.names():
        raise ValueError(f"--embed.output {redact(output.url)} is not empty: name a new folder")
    output.write_json(SETTINGS, settings)


def load_clips(config: Config, storage: Folder) -> pa.Table:
    """The clip table of a run."""
    from raymae.datasets import load

    return load(config.data, Path(storage.path("datasets")) if storage.is_local else None)


def find_encoder(config: Config, storage: Folder) -> Folder:
    """The folder of the encoder: the one given, the registered one, or that of the recipe's own pre-training."""
    model = config.embed.model
    if model is None:
        given = find(config, storage, "pretrain")
        node = Plan(config, load_clips(config, storage), storage, "pretrain", given).nodes["pretrain"]
        if not node.reused:
            raise ValueError(
                "the pre-training of this recipe and these settings has not finished: run jobs/pretrain.py first, "
                "or name an encoder with --embed.model"
            )
        return node.artifact
    return open_artifact(model, config)


def check_front_end(encoder: Folder, audio: AudioConfig) -> None:
    """ValueError where the encoder was trained with another front end than the configured one."""
    from raymae.embed import read_card

    _, card = read_card(encoder)
    own = to_dict(audio)
    other = [item.name for item in fields(AudioConfig) if card["audio"].get(item.name) != own[item.name]]
    if other:
        found = ", ".join(f"audio.{name} = {card['audio'].get(name)} (here {own[name]})" for name in other)
        raise ValueError(f"the encoder was trained with {found}: give its recipe or these settings")


def check_layers(encoder: Folder, config: EmbedConfig) -> None:
    """ValueError where the encoder lacks one of the layers: here, before workers start, and not on them."""
    from raymae.embed import read_card

    _, card = read_card(encoder)
    depth = card.get("finetune", {}).get("layer") or card["model"]["depth"]
    wrong = [layer for layer in config.layers if not 1 <= layer <= depth]
    if wrong:
        raise ValueError(f"--embed.layers {wrong[0]}: the encoder has {depth} blocks, counted from 1")
