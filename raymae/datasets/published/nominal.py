"""Generated clip tables of published data sets that are absent, from their known counts: for dry runs only.

Clips, labels by class, clips by city and by device, and their splits are the true numbers (counted in the data sets'
metadata). Which clip has which of them is drawn at random, and the numbers of groups and times are approximate. There
is no audio, so nothing can be trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from raymae.config import DataConfig
from raymae.datasets.tables.table import ROWS

RECORDED = pa.field("recorded", pa.timestamp("s"))
GAP = pd.Timedelta(minutes=10)
"""Time between two recordings of a visit."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Known counts of one split of a data set."""

    labels: Mapping[str, int]
    """Labelled clips by class."""
    cities: Mapping[str, int]
    """Clips by city."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Clips by device; empty where devices are not published."""
    groups: int
    """Recordings or places that the clips were cut from."""
    unlabelled: int = 0
    """Clips whose label is not published."""


TAU_SCENES = {
    "airport": 1394,
    "bus": 1400,
    "metro": 1382,
    "metro_station": 1380,
    "park": 1429,
    "public_square": 1428,
    "shopping_mall": 1374,
    "street_pedestrian": 1386,
    "street_traffic": 1413,
    "tram": 1379,
}
TAU_CITIES = {
    "barcelona": 1451,
    "helsinki": 1415,
    "lisbon": 1461,
    "london": 1364,
    "lyon": 1376,
    "milan": 1380,
    "paris": 1364,
    "prague": 1376,
    "stockholm": 1363,
    "vienna": 1415,
}
TAU_TEST_CITIES = {name: 360 if name in ("barcelona", "helsinki", "lisbon") else 270 for name in TAU_CITIES}

# The folds list 13,965 and 2,970 clips; 2,315 more are from the locations of train.
TAU2020 = {
    "train": Part(
        labels=TAU_SCENES,
        cities=TAU_CITIES,
        devices={"a": 10_215} | dict.fromkeys(("b", "c", "s1", "s2", "s3"), 750),
        groups=365,
    ),
    "test": Part(
        labels=dict.fromkeys(TAU_SCENES, 297),
        cities=TAU_TEST_CITIES,
        devices=dict.fromkeys(("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6"), 330),
        groups=146,
    ),
    "pool": Part(labels={}, unlabelled=2_315, cities={"": 2_315}, groups=365),
}
CAS2023 = {
    "train": Part(
        labels={
            "Bus": 188,
            "Airport": 220,
            "Metro": 209,
            "Restaurant": 173,
            "Shopping mall": 147,
            "Public square": 174,
            "Urban park": 148,
            "Traffic street": 143,
            "Construction site": 173,
            "Bar": 165,
        },
        unlabelled=6_960,
        cities={
            "Xi'an": 3900,
            "Luoyang": 1250,
            "Hefei": 950,
            "Shanghai": 700,
            "Chongqing": 650,
            "Jinan": 450,
            "Shangrao": 450,
            "Liupanshui": 350,
        },
        groups=328,
    )
}
ESC10 = (
    *("dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick", "helicopter"),
    "chainsaw",
)
ESC50 = (
    *ESC10,
    *("airplane", "breathing", "brushing_teeth", "can_opening", "car_horn", "cat", "chirping_birds", "church_bells"),
    *("clapping", "clock_alarm", "coughing", "cow", "crickets", "crow", "door_wood_creaks", "door_wood_knock"),
    *("drinking_sipping", "engine", "fireworks", "footsteps", "frog", "glass_breaking", "hand_saw", "hen", "insects"),
    *("keyboard_typing", "laughing", "mouse_click", "pig", "pouring_water", "sheep", "siren", "snoring"),
    *("thunderstorm", "toilet_flush", "train", "vacuum_cleaner", "washing_machine", "water_drops", "wind"),
)
URBANSOUND8K = {
    "air_conditioner": (900, 100),
    "car_horn": (396, 33),
    "children_playing": (900, 100),
    "dog_bark": (900, 100),
    "drilling": (900, 100),
    "engine_idling": (907, 93),
    "gun_shot": (342, 32),
    "jackhammer": (904, 96),
    "siren": (846, 83),
    "street_music": (900, 100),
}
"""Clips of folds 1 to 9 and of fold 10, by class."""


def folds(counts: Mapping[str, tuple[int, int]], groups: tuple[int, int]) -> dict[str, Part]:
    """The splits of a data set whose last fold is test, from the clips of train and test by class."""
    parts = {}
    for index, split in enumerate(("train", "test")):
        labels = {name: pair[index] for name, pair in counts.items()}
        parts[split] = Part(labels=labels, cities={"": sum(labels.values())}, groups=groups[index])
    return parts


SHAPES: dict[str, Mapping[str, Part]] = {
    "cas2023": CAS2023,
    "tau2020_mobile": TAU2020,
    "esc50": folds(dict.fromkeys(ESC50, (32, 8)), (1_200, 300)),
    "esc10": folds(dict.fromkeys(ESC10, (32, 8)), (240, 60)),
    "urbansound8k": folds(URBANSOUND8K, (1_150, 130)),
}
"""The shapes of the data sets; of those with folds at the default `data.test_fold`."""


def absent(config: DataConfig) -> list[str]:
    """The data sets in `SHAPES` that a run needs and whose folder doesn't exist."""
    needed = [(config.dataset, config.root), *(tuple(pool.split(":", 1)) for pool in config.pool_datasets)]
    return [name for name, root in needed if name in SHAPES and not (root and ("://" in root or Path(root).is_dir()))]


def nominal(name: str) -> pa.Table:
    """Generated rows (`ROWS` and `recorded`) of a data set in `SHAPES`."""
    return pa.concat_tables([part_rows(name, split, part) for split, part in SHAPES[name].items()])


def part_rows(name: str, split: str, part: Part) -> pa.Table:
    """Generated rows of one split; the places of a city are visited one after the other, one scene a day."""
    rng = np.random.default_rng(0)
    count = sum(part.labels.values()) + part.unlabelled
    scenes = spread(part.labels or {"": 1}, count)
    city, device = (rng.permutation(spread(some or {"": 1}, count)) for some in (part.cities, part.devices))
    frame = pd.DataFrame({"scene": scenes, "city": city, "device": device})
    # true number of labels by class: the first clips of each class in a random order
    order = frame.sample(frac=1, random_state=0).groupby("scene").cumcount()
    known = order.sort_index() < frame["scene"].map(part.labels).fillna(0)
    pair = frame.groupby(["city", "scene"])
    each = max(1, count // part.groups)
    place = pair.cumcount() // each
    start = pd.Timestamp("2023-06-01") + pd.to_timedelta(pair.ngroup(), unit="D")
    columns = {
        "clip_id": [f"{name}-{split}-{index:06d}" for index in range(count)],
        "path": [f"nominal/{name}-{split}-{index:06d}.wav" for index in range(count)],
        "scene_label": frame["scene"].where(known),
        "city": frame["city"].replace("", None),
        "device": frame["device"].replace("", None),
        "group": f"{split} " + frame["city"] + " " + frame["scene"] + " " + place.astype(str),
        "split": [split] * count,
        "source": [name] * count,
        "weight": np.ones(count),
        "size": np.ones(count, np.int64),
        "mtime": np.zeros(count),
        "row": np.arange(count),
        "recorded": start + place * GAP,
    }
    schema = ROWS.append(RECORDED)
    arrays = [pa.array(columns[item.name], from_pandas=True).cast(item.type, safe=False) for item in schema]
    return pa.table(arrays, schema)


def spread(counts: Mapping[str, int], total: int) -> np.ndarray:
    """`total` names (total,), repeated in proportion to `counts`; exactly `counts` times where `total` is their sum."""
    edges = np.cumsum(list(counts.values())) / sum(counts.values()) * total
    return np.repeat(np.array(list(counts), dtype=object), np.diff(np.round(edges), prepend=0).astype(int))
