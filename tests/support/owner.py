"""A process that makes the stages of a plan, as one of several that were given the same work."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from raymae.config import DataConfig
from raymae.features.store import FeatureStore
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.storage import lease
from raymae.storage.folder import Folder
from tests.support.training import TINY

STAGES = ("pretrain", "finetune")


def plan_of(storage: Folder) -> Plan:
    """The plan: pre-training, with many checkpoints, and fine-tuning on a store that exists."""
    data = DataConfig(shard_mb=0.1)
    train = replace(TINY.pretrain, epochs=60, commit_minutes=1e-3, report_steps=5, probe_clips=0)
    config = replace(TINY, storage=storage.url, data=data, pretrain=train)
    return Plan(config, storage.read_table("clips.parquet"), storage, "finetune")


def make_store_of(plan: Plan, store: FeatureStore) -> None:
    """Finish the plan's `prepare` with a store that is there already."""
    artifact = plan.nodes["prepare"].artifact
    for name in ("clips.parquet", "manifest.json"):
        artifact.write_bytes(name, store.folder.read_bytes(name))
    for name in store.shards.names():
        plan.shards.write_bytes(name, store.shards.read_bytes(name))
    artifact.finish(store.folder.result())


def main(url: str, expire: float, renew: float) -> None:
    """Make both stages; prints which of them this process made, as JSON."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    lease.EXPIRE_SECONDS, lease.RENEW_SECONDS, lease.LOOK_SECONDS = expire, renew, 0.1
    torch.set_num_threads(1)
    plan = plan_of(Folder(url))
    maker = InProcess(plan)
    print(json.dumps([name for name in STAGES if maker.make(plan.nodes[name])]))


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]))
