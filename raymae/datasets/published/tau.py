"""TAU Urban Acoustic Scenes 2019, 2020 Mobile and 2022 Mobile, as their official folder has them.

`audio/*.wav`, `meta.csv` and `evaluation_setup/fold1_{train,test,evaluate}.csv`, tab-separated. A name says all:
`audio/airport-lisbon-1000-40000-a.wav` is scene, city, location, segment and device; 2022's clips of one second have a
number more before the device.
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
"""The form of a file's name by data set, as an expression and in words."""

Fold = list[tuple[str, pa.Table]]
"""The files that make one side of the official fold, each with its name."""

META = ("filename", "scene_label", "identifier", "source_label")


def loader(dataset: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of one of the three data sets."""
    return lambda config, folder: read(config, dataset)


def read(config: DataConfig, dataset: str) -> pa.Table:
    """`ROWS`: split train and test as of the official fold, group "city-location", city and device from the names.

    Clips that are in neither file of the fold serve pre-training (split pool), except those of test locations and of
    cities that occur in the test part alone: they are left out and counted in the log. Raises ValueError for names and
    labels that contradict each other, for a clip on both sides of the fold, and when the fold names more clips that
    are not there than `max_bad_share` allows.
    """
    root = root_of(config)
    rows = read_clips(root, dataset)
    train, test = read_fold(root, "train"), read_fold(root, "evaluate", "test")
    check_fold(rows, train, test, config.max_bad_share)
    return clip_rows(assign(root, rows, train, test), dataset)


def read_clips(root: Folder, dataset: str) -> pa.Table:
    """The clips of meta.csv, or without it of the folder audio, with what their names say."""
    audio = [f"audio/{path}" for path in sorted(names_below(root / "audio", Counter())) if path.endswith(".wav")]
    if root.exists("meta.csv"):
        table = MetadataTable.open((root / "meta.csv").url, ("filename", "scene_label"))
        rows = parsed(table.name, table.clips(META, pool=False), dataset)
        warn_of_extra(redact(root.url), set(audio).difference(rows["filename"].to_pylist()))
        check_columns(table.name, rows)
        return rows.drop_columns(list(META[1:])).rename_columns({"scene": "scene_label"})
    if not audio:
        raise ValueError(
            f"data.root = {redact(root.url)} holds neither meta.csv nor audio/*.wav: it should be {dataset}'s folder "
            "as it is distributed"
        )
    log.warning("%s has no meta.csv: the clips are those in audio/, and missing ones are not noticed", redact(root.url))
    name = redact((root / "audio").url)
    listed = pa.table({"filename": audio, "row": pa.array(range(1, len(audio) + 1), pa.int64())})
    return parsed(name, locate(name, root, listed), dataset).rename_columns({"scene": "scene_label"})


def check_columns(name: str, rows: pa.Table) -> None:
    """ValueError where the columns of meta.csv say something else than the names."""
    for column, meant in (("scene_label", "scene"), ("identifier", "group"), ("source_label", "device")):
        differ = pc.fill_null(pc.not_equal(rows[column], rows[meant]), False)
        reject(name, rows, differ, column, "be what the row's filename says")


def parsed(name: str, rows: pa.Table, dataset: str) -> pa.Table:
    """Append scene, city, device and group from the filename; ValueError for a name of another form."""
    pattern, form = NAMES[dataset]
    found = pc.extract_regex(rows["filename"].combine_chunks(), pattern)
    reject(name, rows, pc.is_null(found), "filename", f"be {form}, as of {dataset}")
    scene, city, location, device = (pc.struct_field(found, key) for key in ("scene", "city", "location", "device"))
    unknown = pc.invert(pc.is_in(scene, value_set=pa.array(SCENES)))
    reject(name, rows, unknown, "filename", f"begin with one of the scenes {', '.join(SCENES)}")
    for column, values in (("scene", scene), ("city", city), ("device", device)):
        rows = rows.append_column(column, values)
    return rows.append_column("group", pc.binary_join_element_wise(city, location, "-"))


def read_fold(root: Folder, *parts: str) -> Fold:
    """The files of the official fold for one side, each with its name; ValueError where there is none of them."""
    files = [f"evaluation_setup/fold1_{part}.csv" for part in parts]
    found = []
    for file in (file for file in files if root.exists(file)):
        table = MetadataTable.open((root / file).url)
        rows = table.texts(("filename", "scene_label"))
        said = pc.struct_field(
            pc.extract_regex(rows["filename"].combine_chunks(), "^audio/(?P<scene>[a-z_]+)-"), "scene"
        )
        differ = pc.fill_null(pc.not_equal(rows["scene_label"], pa.chunked_array([said])), False)
        reject(table.name, rows, differ, "scene_label", "be the scene that the row's filename begins with")
        found.append((table.name, rows))
    if not found:
        raise ValueError(
            f"data.root = {redact(root.url)} lacks {' and '.join(files)}: the official fold says what is tested"
        )
    return found


def check_fold(rows: pa.Table, train: Fold, test: Fold, max_bad_share: float) -> None:
    """ValueError for clips on both sides of a fold, and where it names too many that are not among `rows`."""
    tested = filenames(test)
    for name, part in train:
        reject(name, part, pc.is_in(part["filename"], value_set=tested), "filename", f"not be in {test[0][0]} too")
    for name, part in (*train, *test):
        lacking = part.filter(pc.invert(pc.is_in(part["filename"], value_set=rows["filename"].combine_chunks())))
        if len(lacking):
            shown = examples(f"row {row['row']}: {row['filename']}" for row in lacking.to_pylist())
            message = f"{name} names {len(lacking)} of {len(part)} clips that the data set doesn't hold: {shown}"
            if len(lacking) > max_bad_share * len(part):
                raise ValueError(f"{message}; more than data.max_bad_share = {max_bad_share}")
            log.warning("%s", message)


def filenames(fold: Fold) -> pa.Array:
    """The clips that one side of a fold names."""
    return pa.concat_arrays([rows["filename"].combine_chunks() for _, rows in fold])


def assign(root: Folder, rows: pa.Table, train: Fold, test: Fold) -> pa.Table:
    """Append clip_id and split; without the clips that are neither to be trained nor to be tested on."""
    in_train, in_test = (pc.is_in(rows["filename"], value_set=filenames(fold)) for fold in (train, test))
    unused = pc.invert(pc.or_(in_train, in_test))
    heard, tested = rows.filter(in_train), rows.filter(in_test)
    at_test = pc.is_in(rows["group"], value_set=tested["group"].combine_chunks())
    # 2019 keeps Milan for the test: its other clips would make it a city that pre-training has heard
    new_city = pc.and_not(
        pc.is_in(rows["city"], value_set=tested["city"].combine_chunks()),
        pc.is_in(rows["city"], value_set=heard["city"].combine_chunks()),
    )
    out = pc.and_(unused, pc.or_(at_test, new_city))
    split = pc.if_else(in_train, "train", pc.if_else(in_test, "test", "pool"))
    rows = rows.append_column("split", split).append_column("clip_id", rows["filename"])
    count, left = pc.sum(unused).as_py() or 0, pc.sum(out).as_py() or 0
    if count:
        log.info(
            "%s: %d clips are in neither file of the official fold; %d of them are from its test locations (or from a "
            "city that only the test has) and stay out, %d serve pre-training alone",
            *(redact(root.url), count, left, count - left),
        )
    return rows.filter(pc.invert(out))
