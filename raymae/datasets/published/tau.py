"""TAU Urban Acoustic Scenes 2019, 2020 Mobile and 2022 Mobile, read from the official folder.

It holds `audio/*.wav`, `meta.csv` and `evaluation_setup/fold1_{train,test,evaluate}.csv`, tab-separated. A file name
holds all metadata: `audio/airport-lisbon-1000-40000-a.wav` is scene, city, location, segment and device; the one-second
clips of 2022 have one more number before the device.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.published.official import clip_rows, examples, root_of, warn_of_extra
from raymae.datasets.tables.corpus import names_below
from raymae.datasets.tables.locate import locate, reject
from raymae.datasets.tables.table import MetadataTable
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)

_NAME = r"^audio/(?P<scene>[a-z_]+)-(?P<city>[a-z]+)-(?P<location>[0-9]+)-[0-9]+{part}-(?P<device>[a-z0-9]+)\.wav$"
NAMES = {
    "tau2019": (_NAME.replace("{part}", ""), "audio/scene-city-location-segment-device.wav"),
    "tau2020_mobile": (_NAME.replace("{part}", ""), "audio/scene-city-location-segment-device.wav"),
    "tau2022_mobile": (_NAME.replace("{part}", "-[0-9]+"), "audio/scene-city-location-segment-part-device.wav"),
}
"""The form of a file name by data set, as a regular expression and in words."""

Fold = list[tuple[str, pa.Table]]
"""The tables of one side (train or test) of the official fold, each with its file name."""

META = ("filename", "scene_label", "identifier", "source_label")


def loader(dataset: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of one of the three data sets."""
    return lambda config, folder: read(config, dataset)


def read(config: DataConfig, dataset: str) -> pa.Table:
    """`ROWS`: splits train and test of the official fold, group "city-location", city and device from the file names.

    Clips in neither side of the fold are used for pre-training (split pool), except those of test locations and of
    cities that occur in the test part only: these are left out and their count is logged. Raises ValueError for names
    and labels that contradict each other, for a clip on both sides of the fold, and when the fold lists more missing
    clips than `max_bad_share` allows.
    """
    root = root_of(config)
    rows = read_clips(root, dataset)
    train, test = read_fold(root, "train"), read_fold(root, "evaluate", "test")
    check_fold(rows, train, test, config.max_bad_share)
    return clip_rows(assign(root, rows, train, test), dataset)


def read_clips(root: Folder, dataset: str) -> pa.Table:
    """The clips of meta.csv, or without it of the folder audio, with the metadata of their file names."""
    audio = [f"audio/{path}" for path in sorted(names_below(root / "audio", Counter())) if path.endswith(".wav")]
    if root.exists("meta.csv"):
        table = MetadataTable.open((root / "meta.csv").url, ("filename", "scene_label"))
        rows = parsed(table.name, table.clips(META, pool=False), dataset)
        warn_of_extra(redact(root.url), set(audio).difference(rows["filename"].to_pylist()))
        check_columns(table.name, rows)
        return rows.drop_columns(list(META[1:])).rename_columns({"scene": "scene_label"})
    if not audio:
        raise ValueError(
            f"data.root = {redact(root.url)} holds neither meta.csv nor audio/*.wav: it should be the folder of "
            f"{dataset} as it is distributed"
        )
    log.warning("%s has no meta.csv: its clips are the files in audio/; missing files go unnoticed", redact(root.url))
    name = redact((root / "audio").url)
    listed = pa.table({"filename": audio, "row": pa.array(range(1, len(audio) + 1), pa.int64())})
    return parsed(name, locate(name, root, listed), dataset).rename_columns({"scene": "scene_label"})


def check_columns(name: str, rows: pa.Table) -> None:
    """Raise ValueError where the columns of meta.csv contradict the file names."""
    for column, expected in (("scene_label", "scene"), ("identifier", "group"), ("source_label", "device")):
        differ = pc.fill_null(pc.not_equal(rows[column], rows[expected]), False)
        reject(name, rows, differ, column, "match the row's filename")


def parsed(name: str, rows: pa.Table, dataset: str) -> pa.Table:
    """Append scene, city, device and group from the filename; ValueError for a malformed name."""
    pattern, form = NAMES[dataset]
    found = pc.extract_regex(rows["filename"].combine_chunks(), pattern)
    reject(name, rows, pc.is_null(found), "filename", f"be {form}, as in {dataset}")
    scene, city, location, device = (pc.struct_field(found, key) for key in ("scene", "city", "location", "device"))
    unknown = pc.invert(pc.is_in(scene, value_set=pa.array(SCENES)))
    reject(name, rows, unknown, "filename", f"begin with one of the scenes {', '.join(SCENES)}")
    for column, values in (("scene", scene), ("city", city), ("device", device)):
        rows = rows.append_column(column, values)
    return rows.append_column("group", pc.binary_join_element_wise(city, location, "-"))


def read_fold(root: Folder, *parts: str) -> Fold:
    """The tables of one side of the official fold, each with its file name; ValueError where none of them exists."""
    files = [f"evaluation_setup/fold1_{part}.csv" for part in parts]
    found = []
    for file in (file for file in files if root.exists(file)):
        table = MetadataTable.open((root / file).url)
        rows = table.texts(("filename", "scene_label"))
        named = pc.struct_field(
            pc.extract_regex(rows["filename"].combine_chunks(), "^audio/(?P<scene>[a-z_]+)-"), "scene"
        )
        differ = pc.fill_null(pc.not_equal(rows["scene_label"], pa.chunked_array([named])), False)
        reject(table.name, rows, differ, "scene_label", "be the scene that the row's filename begins with")
        found.append((table.name, rows))
    if not found:
        raise ValueError(
            f"data.root = {redact(root.url)} has no {' and no '.join(files)}: the official fold defines the test clips"
        )
    return found


def check_fold(rows: pa.Table, train: Fold, test: Fold, max_bad_share: float) -> None:
    """Raise ValueError for clips on both sides of a fold, and when too many of its clips are not among `rows`."""
    tested = filenames(test)
    for name, part in train:
        reject(name, part, pc.is_in(part["filename"], value_set=tested), "filename", f"not be in {test[0][0]}, too")
    for name, part in (*train, *test):
        missing = part.filter(pc.invert(pc.is_in(part["filename"], value_set=rows["filename"].combine_chunks())))
        if len(missing):
            listed = examples(f"row {row['row']}: {row['filename']}" for row in missing.to_pylist())
            message = f"{name} lists {len(missing)} of {len(part)} clips that the data set doesn't contain: {listed}"
            if len(missing) > max_bad_share * len(part):
                raise ValueError(f"{message}; more than data.max_bad_share = {max_bad_share}")
            log.warning("%s", message)


def filenames(fold: Fold) -> pa.Array:
    """File names of the clips of one side of a fold."""
    return pa.concat_arrays([rows["filename"].combine_chunks() for _, rows in fold])


def assign(root: Folder, rows: pa.Table, train: Fold, test: Fold) -> pa.Table:
    """Append clip_id and split, and drop the clips that are used for neither training nor testing."""
    in_train, in_test = (pc.is_in(rows["filename"], value_set=filenames(fold)) for fold in (train, test))
    unused = pc.invert(pc.or_(in_train, in_test))
    trained, tested = rows.filter(in_train), rows.filter(in_test)
    at_test_location = pc.is_in(rows["group"], value_set=tested["group"].combine_chunks())
    # 2019 reserves Milan for the test: with its other clips in the pool, pre-training would be on that city, too
    test_only_city = pc.and_not(
        pc.is_in(rows["city"], value_set=tested["city"].combine_chunks()),
        pc.is_in(rows["city"], value_set=trained["city"].combine_chunks()),
    )
    out = pc.and_(unused, pc.or_(at_test_location, test_only_city))
    split = pc.if_else(in_train, "train", pc.if_else(in_test, "test", "pool"))
    rows = rows.append_column("split", split).append_column("clip_id", rows["filename"])
    count, left = pc.sum(unused).as_py() or 0, pc.sum(out).as_py() or 0
    if count:
        log.info(
            "%s: %d clips are in neither side of the official fold; %d of them are from its test locations (or from a "
            "city that only the test has) and are left out, %d are for pre-training only",
            *(redact(root.url), count, left, count - left),
        )
    return rows.filter(pc.invert(out))
