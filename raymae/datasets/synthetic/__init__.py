"""A synthetic data set of audio files: generated in seconds, with the difficulties of field recordings.

Ten scenes use the same bank of sound sources (`sources`) and differ only in mixture, timing and room (`scenes`).
Sources, room and level belong to a session (`group`), so a random split leaks and a split by groups doesn't. Cities
change timbres and mixtures; devices add a frequency response, noise and automatic gain; one city and one device occur
in `test_unseen` only. The pool is from other cities and devices with partly other scenes.

Difficulty was tuned with support vector machines on log-mel statistics of the labelled fifth. Its scores test the
pipeline and nothing more (`STAMP`).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymae.config import SyntheticConfig, to_dict
from raymae.datasets.synthetic.recording_session import Session
from raymae.datasets.synthetic.scenes import (
    CITIES,
    DEVICES,
    FORMATS,
    POOL_CITIES,
    POOL_DEVICES,
    POOL_ONLY,
    POOL_SCENES,
    RARE_FORMATS,
    SCENES,
    UNSEEN_CITY,
    UNSEEN_DEVICE,
    City,
    Device,
    Format,
    generator,
)
from raymae.storage.checksums import digest

STAMP = "synthetic: checks the pipeline, proves nothing about scenes"
VERSION = 1
COLUMNS = ("filename", "scene_label", "city", "device", "group", "split")
SHARES = {"train": 0.55, "val": 0.09, "test_seen": 0.18, "test_unseen": 0.18}
"""Shares of the clips by split, pool aside."""
CLIPS_PER_SESSION = (2, 3)
RARE_SHARE = 0.03
"""Share of the sessions stored in one of `RARE_FORMATS`."""


@dataclass(frozen=True)
class Visit:
    """A session's entries in the table, its number of clips and its file format."""

    scene: str
    city: str
    device: str
    split: str
    n_clips: int
    format: Format


def write(folder: Path, config: SyntheticConfig) -> Path:
    """Write the data set below `folder`, unless it is already there.

    Returns the path of its metadata.csv (filename, scene_label, city, device, group, split; names relative to it). The
    folder also holds truth.csv (filename, scene_label): the labels of the unlabelled training clips, for scoring only.
    """
    target = folder / digest({"version": VERSION, **to_dict(config)})
    if not _is_done(target):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            written = Path(part) / "data"
            _write_files(written, config)
            if not _is_done(target):  # another process may have been faster
                shutil.rmtree(target, ignore_errors=True)
                written.replace(target)
    return target / "metadata.csv"


def _is_done(target: Path) -> bool:
    return (target / "done.json").exists()


def _write_files(target: Path, config: SyntheticConfig) -> None:
    import soundfile

    (target / "audio").mkdir(parents=True)
    visits = _plan(config)
    sessions = _draw_sessions(visits, config.seed)
    labelled = _labelled(visits, config.labelled_share)
    rng = generator(config.seed, "order")
    groups = [f"g{number:04d}" for number in rng.permutation(len(visits))]
    # files are named by row number after shuffling and written in that order, so neither gives the label away
    order = rng.permutation(np.repeat(np.arange(len(visits)), [visit.n_clips for visit in visits]))
    names = [f"audio/{number:05d}.{visits[index].format.suffix}" for number, index in enumerate(order)]

    def record(number: int) -> None:
        """Write a clip; most of its time is spent in functions that other threads needn't wait for."""
        session, form = sessions[order[number]], visits[order[number]].format
        clip = session.clip(generator(config.seed, f"clip {number}"))
        soundfile.write(target / names[number], clip, form.rate, form.subtype)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(record, range(len(order))))
    rows, truth = [], []
    for name, index in zip(names, order, strict=True):
        visit = visits[index]
        label = visit.scene if visit.split != "pool" and index in labelled else ""
        rows.append((name, label, visit.city, visit.device, groups[index], visit.split))
        if visit.split == "train" and not label:
            truth.append((name, visit.scene))
    _write_csv(target / "metadata.csv", COLUMNS, rows)
    _write_csv(target / "truth.csv", COLUMNS[:2], truth)
    (target / "done.json").write_text(json.dumps({"config": to_dict(config), "clips": len(rows)}) + "\n")


def _plan(config: SyntheticConfig) -> list[Visit]:
    """All sessions, about the same number of each scene within a split."""
    rng = generator(config.seed, "plan")
    visits = []
    for split, n_clips in _split_sizes(config).items():
        scenes = list(POOL_SCENES if split == "pool" else SCENES)
        cities = {"pool": POOL_CITIES, "test_unseen": (UNSEEN_CITY,)}.get(split, CITIES)
        devices = {"pool": tuple(POOL_DEVICES), "test_unseen": (UNSEEN_DEVICE,)}.get(split, tuple(DEVICES))
        left, turn = n_clips, 0
        while left:
            device = str(rng.choice(devices))
            rare = rng.random() < RARE_SHARE
            visit = Visit(
                scene=scenes[turn % len(scenes)],
                city=str(rng.choice(cities)),
                device=device,
                split=split,
                n_clips=min(left, int(rng.choice(CLIPS_PER_SESSION))),
                format=RARE_FORMATS[rng.integers(len(RARE_FORMATS))] if rare else FORMATS[device],
            )
            visits.append(visit)
            left, turn = left - visit.n_clips, turn + 1
    return visits


def _split_sizes(config: SyntheticConfig) -> dict[str, int]:
    """Clips by split; train takes the rounding rest."""
    sizes = {split: int(share * config.clips) for split, share in SHARES.items()}
    sizes["train"] += config.clips - sum(sizes.values())
    return {**sizes, "pool": config.pool_clips}


def _labelled(visits: list[Visit], share: float) -> set[int]:
    """Numbers of the labelled sessions: all outside train, and the same share of each scene in train."""
    labelled = {index for index, visit in enumerate(visits) if visit.split != "train"}
    for scene in SCENES:
        own = [index for index, visit in enumerate(visits) if (visit.split, visit.scene) == ("train", scene)]
        labelled.update(own[: max(1, round(share * len(own)))])
    return labelled


def _draw_sessions(visits: list[Visit], seed: int) -> list[Session]:
    cities = {visit.city: City.draw(seed, visit.city) for visit in visits}
    devices = {visit.device: Device.draw(seed, visit.device) for visit in visits}
    scenes = {**SCENES, **POOL_ONLY}

    def draw(index: int) -> Session:
        visit = visits[index]
        rng, scene = generator(seed, f"session {index}"), scenes[visit.scene]
        return Session.draw(rng, visit.scene, scene, cities[visit.city], devices[visit.device], visit.format.rate)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(draw, range(len(visits))))


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
