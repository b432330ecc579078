"""CAS 2023 and TAU as they are distributed: the published metadata give the known counts, and mistakes are errors."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import DATASETS, gather, load
from raymae.datasets.published import official
from raymae.datasets.published.cas2023 import CLASSES
from raymae.datasets.published.official import KNOWN, RECORDED
from raymae.datasets.tables.table import CLIPS, ROWS
from tests.support.published import (
    DEV,
    DEV_TIMED,
    EVAL,
    EVAL_TIMED,
    METADATA,
    TIMED,
    message,
    published,
    recordings,
    rows_of,
    write,
)


def copies(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_bytes((METADATA / "cas2023" / name).read_bytes())
    return root


def clip(number: int) -> str:
    return f"{number:032x}1_1"


# CAS 2023, the published metadata -----------------------------------------------------------------------------------


@published
@pytest.mark.parametrize("tables", [(DEV,), (DEV_TIMED,), (DEV, DEV_TIMED, EVAL, EVAL_TIMED)])
def test_the_development_part(tmp_path: Path, tables: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    root = copies(tmp_path / "cas", *tables)
    with open(root / tables[0], encoding="utf-8-sig", newline="") as file:
        given = {row["filename"]: row["scene_label"] for row in csv.DictReader(file)}
    recordings(root / "ICME2024_GC_ASC_dev", [f"{name}.wav" for name in given])
    clips = load(DataConfig(dataset="cas2023", root=str(root)), None, "single")
    assert clips.schema == CLIPS
    assert dict(zip(clips["clip_id"].to_pylist(), clips["scene_label"].to_pylist(), strict=True)) == {
        name: label or None for name, label in given.items()
    }
    counts = Counter(clips["scene_label"].drop_null().to_pylist())
    assert len(clips) == 8700
    assert counts.total() == 1740
    assert set(counts) == set(CLASSES)
    assert (min(counts.values()), max(counts.values())) == (143, 220)
    assert clips["size"].unique().to_pylist() == [5]
    assert clips["split"].unique().to_pylist() == ["train"]
    timed = DEV_TIMED in tables
    assert ("both sides" in caplog.text) is not timed
    assert clips["group"].null_count == (0 if timed else 8700)
    if timed:
        assert Counter(clips["city"].to_pylist()) == {
            "Xi'an": 3900,
            "Luoyang": 1250,
            "Hefei": 950,
            "Shanghai": 700,
            "Chongqing": 650,
            "Jinan": 450,
            "Shangrao": 450,
            "Liupanshui": 350,
        }
        sessions = Counter(clips["group"].to_pylist())
        assert (len(sessions), max(sessions.values())) == (328, 53)
        labelled = clips.filter(pc.is_valid(clips["scene_label"]))
        assert len(labelled["group"].unique()) == 309
        within = pc.is_in(clips["group"], value_set=labelled["group"].combine_chunks())
        assert pc.sum(pc.and_(within, pc.is_null(clips["scene_label"]))).as_py() == 6826


@published
def test_recording_times_are_for_splits_only(tmp_path: Path) -> None:
    root = copies(tmp_path / "cas", DEV_TIMED)
    pool = write(tmp_path / "pool.csv", ["filename", "x.wav"])
    config = DataConfig(dataset="cas2023", root=str(root), pool_tables=(str(pool),))
    rows, _ = gather(config, None)
    assert rows.schema == ROWS.append(RECORDED)
    assert rows["recorded"].null_count == 1  # the pool's
    first = rows.slice(0, 1).to_pylist()[0]
    assert f"{first['city']} {first['recorded']}" == first["group"] == "Xi'an 2023-06-18 18:44:34"


@published
def test_the_evaluation_part(tmp_path: Path) -> None:
    root = copies(tmp_path / "cas", DEV_TIMED, EVAL, EVAL_TIMED)
    rows = rows_of("cas2023_eval", root)
    assert (len(rows), rows["scene_label"].null_count) == (1100, 1100)
    assert rows["split"].unique().to_pylist() == ["test_eval"]
    seen = rows_of("cas2023", root)
    assert len(rows["city"].unique()) == 12
    new = pc.invert(pc.is_in(rows["city"], value_set=seen["city"].combine_chunks()))
    assert (pc.sum(new).as_py(), len(rows.filter(new)["city"].unique())) == (400, 6)
    leaked = pc.is_in(rows["group"], value_set=seen["group"].combine_chunks())
    assert pc.sum(leaked).as_py() in (247, 248)


@published
def test_missing_recordings_are_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = copies(tmp_path / "cas", DEV_TIMED, EVAL)
    with open(root / EVAL) as file:
        other = next(csv.DictReader(file))["filename"]
    recordings(root / "wav", [f"{other}.wav", "stray.wav"])
    config = DataConfig(dataset="cas2023", root=str(root))
    with pytest.raises(ValueError, match=r"8700 of 8700 files are missing, more than data\.max_bad_share"):
        load(config, None)
    assert "8700 of 8700 files are missing: 40c8570776704268be56bc0d1fa8a16f60_1.wav, " in caplog.text
    assert "1 recordings are in no table and not used: stray" in caplog.text  # the other part's are


# CAS 2023, mistakes -------------------------------------------------------------------------------------------------

LABELLED = "filename,scene_label"


@pytest.mark.parametrize(
    ("name", "rows", "error"),
    [
        (
            DEV,
            ["file,scene_label", "a,Bus"],
            "no column filename; its columns are 'file', 'scene_label'; rename 'file'",
        ),
        (DEV, ["filename,label", "a,Bus"], "no column scene_label; its columns are 'filename', 'label'"),
        (DEV, ["filename|scene_label", "a|Bus"], "separate them by commas, tabs or semicolons"),
        (DEV_TIMED, [LABELLED, "a,Bus"], "no column location"),
        (
            DEV,
            [LABELLED, "a,Bus", "b,bus"],
            "scene_label, row 3: 'bus': should be empty .unlabelled. or one of Bus, Air",
        ),
        (DEV, [LABELLED, "a,Bus", "b,", "a,"], "filename, row 4: 'a': should be a name that no earlier row has"),
        (DEV, [LABELLED, "a.wav,Bus"], "filename, row 2: 'a.wav': should be the name of a recording without"),
        (DEV_TIMED, [TIMED, "a,Xi'an,2023-06-18,Bus"], "record_time, row 2: '2023-06-18': should be a time like"),
        (
            DEV_TIMED,
            [TIMED, *(f"{n},Jinan,2023-06-18 10:00:00,{label}" for n, label in enumerate(["Bus", "", "Bar"]))],
            "the session 'Jinan 2023-06-18 10:00:00' is 'Bus' in row 2 and 'Bar' in row 4",
        ),
    ],
)
def test_wrong_rows_of_cas(tmp_path: Path, name: str, rows: list[str], error: str) -> None:
    path = write(tmp_path / "cas" / name, rows)
    text = message("cas2023", path.parent)
    assert re.search(error, text), text
    assert name in text


def test_tables_that_contradict_each_other(tmp_path: Path) -> None:
    root = tmp_path / "cas"
    write(root / DEV, [LABELLED, "a,Bus", "b,"])
    when = "Jinan,2023-06-18 10:00:00"
    write(root / DEV_TIMED, [TIMED, f"b,{when},", f"a,{when},Bar"], bom=True)
    assert f"{DEV}, column scene_label, row 2: 'Bus': should be the scene_label of the" in message("cas2023", root)
    write(root / DEV_TIMED, [TIMED, f"a,{when},Bus"], bom=True)
    assert f"{DEV}, column filename, row 3: 'b': should be in" in message("cas2023", root)
    write(root / DEV_TIMED, [TIMED, f"b,{when},", f"a,{when},Bus"], bom=True)
    assert rows_of("cas2023", root)["clip_id"].to_pylist() == ["b", "a"]


def test_wrong_folders_of_cas(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"holds neither {DEV} nor {DEV_TIMED}" in message("cas2023", tmp_path / "empty")
    assert "is not a folder" in message("cas2023", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"data\.dataset = cas2023 needs --data\.root"):
        gather(DataConfig(dataset="cas2023"), None)
    write(tmp_path / "cas" / DEV, [LABELLED, "a,Bus"])
    recordings(tmp_path / "cas/x", ["a.wav"])
    recordings(tmp_path / "cas/y", ["a.flac"])
    assert "x/a.wav and y/a.flac have the same name" in message("cas2023", tmp_path / "cas")


# TAU, the official folds --------------------------------------------------------------------------------------------


def fold(path: str, delimiter: str = "\t") -> list[str]:
    with open(METADATA / path, newline="") as file:
        return [row["filename"] for row in csv.DictReader(file, delimiter=delimiter)]


def scene(name: str) -> str:
    return name.removeprefix("audio/").split("-")[0]


def tau_folder(root: Path, names: Iterable[str], train: list[str], test: list[str]) -> Path:
    """A TAU folder as it is distributed, without the recordings."""
    lines = ["filename\tscene_label\tidentifier\tsource_label"]
    for name in names:
        parts = name.removeprefix("audio/").removesuffix(".wav").split("-")
        lines.append(f"{name}\t{parts[0]}\t{parts[1]}-{parts[2]}\t{parts[-1]}")
    write(root / "meta.csv", lines)
    setup = root / "evaluation_setup"
    for part, of_part in (("train", train), ("evaluate", test)):
        write(setup / f"fold1_{part}.csv", ["filename\tscene_label", *(f"{name}\t{scene(name)}" for name in of_part)])
    write(setup / "fold1_test.csv", ["filename", *test])
    return root


def device_of(name: str, device: str) -> str:
    return f"{name.rpartition('-')[0]}-{device}.wav"


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TAU 2020 Mobile's file names: device a (and 2019's), the folds', and s4 to s6 like s1 in train."""
    train, test = fold("tau2020_mobile/fold1_train.csv"), fold("tau2020_mobile/fold1_evaluate.csv")
    first = fold("tau2019/fold1_train.csv", ",") + fold("tau2019/fold1_evaluate.csv", ",")
    more = [device_of(name, device) for name in train if name.endswith("-s1.wav") for device in ("s4", "s5", "s6")]
    given_out = {name.removesuffix(".wav") for name in fold("tau2022_mobile/fold1_evaluate.csv")}
    segments = {f"{name.rsplit('-', 2)[0]}-{name.rsplit('-', 1)[1]}.wav" for name in given_out}
    gone = set(test) - segments  # two of the five unpublished clips; of the other three only devices are known
    gone |= set([name for name in train if name.endswith("-b.wav")][:3])
    names = dict.fromkeys([*first, *train, *test, *more])
    return tau_folder(tmp_path_factory.mktemp("tau"), [name for name in names if name not in gone], train, test)


@published
def test_tau_2020_mobile(mobile: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        rows = rows_of("tau2020_mobile", mobile)
    assert "6105 clips are in neither side of the official fold; 3790 of them" in caplog.text
    assert "fold1_train.csv lists 3 of 13965 clips that the data set doesn't contain: row " in caplog.text
    assert "fold1_evaluate.csv lists 2 of 2970 clips" in caplog.text
    assert "whole data set has" not in caplog.text
    splits = Counter(rows["split"].to_pylist())
    assert splits == {"train": 13962, "test": 2968, "pool": 2315}
    assert rows.schema == ROWS
    devices = Counter(zip(rows["split"].to_pylist(), rows["device"].to_pylist(), strict=True))
    assert {device for split, device in devices if split == "train"} == {"a", "b", "c", "s1", "s2", "s3"}
    assert all(devices["test", f"s{number}"] == 330 for number in (4, 5, 6))
    by_split = {split: rows.filter(pc.equal(rows["split"], split)) for split in splits}
    tested = set(by_split["test"]["group"].to_pylist())
    assert not tested & set(by_split["train"]["group"].to_pylist())
    assert not tested & set(by_split["pool"]["group"].to_pylist())
    assert by_split["pool"]["scene_label"].null_count == 2315
    assert by_split["train"]["scene_label"].null_count == 0
    assert len(by_split["train"]["scene_label"].unique()) == 10
    first = by_split["train"].slice(0, 1).to_pylist()[0]
    assert (first["city"], first["group"], first["device"]) == ("lisbon", "lisbon-1000", "a")


@published
def test_tau_2019_reserves_a_city_for_the_test(tmp_path: Path) -> None:
    train, test = fold("tau2019/fold1_train.csv", ","), fold("tau2019/fold1_evaluate.csv", ",")
    both = [*fold("tau2020_mobile/fold1_train.csv"), *fold("tau2020_mobile/fold1_evaluate.csv")]
    names = dict.fromkeys([*train, *test, *(name for name in both if name.endswith("-a.wav"))])
    assert len(names) == 14400
    rows = rows_of("tau2019", tau_folder(tmp_path / "tau", names, train, test))
    assert Counter(rows["split"].to_pylist()) == {"train": 9185, "test": 4185}
    assert rows["device"].unique().to_pylist() == ["a"]
    assert "milan" not in rows.filter(pc.equal(rows["split"], "train"))["city"].to_pylist()


@published
def test_tau_2022_mobile(tmp_path: Path) -> None:
    seconds = fold("tau2022_mobile/fold1_evaluate.csv")
    train = [
        f"{name.rpartition('-')[0]}-0-{name.rpartition('-')[2]}" for name in fold("tau2020_mobile/fold1_train.csv")
    ]
    rows, missed = gather(
        DataConfig(dataset="tau2022_mobile", root=str(tau_folder(tmp_path / "tau", seconds + train, train, seconds))),
        None,
    )
    assert Counter(rows["split"].to_pylist()) == {"train": 13965, "test": 29680}
    assert missed == ["tau2022_mobile: 43,645 clips, the whole data set has 192,450 to 192,500"]
    assert rows["group"][0].as_py() == "barcelona-203"


# TAU, mistakes ------------------------------------------------------------------------------------------------------

TRAIN = ["audio/bus-lyon-1-1-a.wav", "audio/park-lyon-2-2-a.wav"]

TEST = ["audio/bus-oslo-3-3-a.wav", "audio/park-lyon-4-4-s4.wav"]

POOL = ["audio/tram-lyon-5-5-a.wav"]

OUT = ["audio/bus-lyon-4-6-a.wav", "audio/park-oslo-7-7-a.wav"]


def small_tau(root: Path) -> Path:
    return tau_folder(root, [*TRAIN, *TEST, *POOL, *OUT], TRAIN, TEST)


def test_clips_outside_the_fold_are_pool_or_left_out(tmp_path: Path) -> None:
    rows = rows_of("tau2020_mobile", small_tau(tmp_path / "tau"))
    assert rows["clip_id"].to_pylist() == [*TRAIN, *TEST, *POOL]
    assert rows["split"].to_pylist() == ["train", "train", "test", "test", "pool"]
    assert rows["scene_label"].to_pylist() == ["bus", "park", "bus", "park", None]


def test_without_meta_the_audio_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small_tau(tmp_path / "tau")
    (root / "meta.csv").unlink()
    recordings(root / "audio", [name.removeprefix("audio/") for name in [*TRAIN, *TEST, *POOL, *OUT]])
    clips = load(DataConfig(dataset="tau2020_mobile", root=str(root)), None, "single")
    assert sorted(clips["clip_id"].to_pylist()) == sorted([*TRAIN, *TEST, *POOL])
    assert "missing files go unnoticed" in caplog.text


def change(file: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return changed


TRAINED, EVALUATED = "evaluation_setup/fold1_train.csv", "evaluation_setup/fold1_evaluate.csv"


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (change("meta.csv", "filename\t", "file\t"), r"meta\.csv has no column filename"),
        (change("meta.csv", "audio/bus-lyon-1-1-a.wav\tbus", "audio/bus-lyon-1-1-a.wav\t0"), "scene_label, row 2: '0'"),
        (change("meta.csv", "lyon-2\t", "lyon-9\t"), "identifier, row 3: 'lyon-9': should match the row's filename"),
        (change("meta.csv", "lyon-2\ta", "lyon-2\tb"), "source_label, row 3: 'b'"),
        (change("meta.csv", "audio/bus-lyon-1-1-a", "audio/bus-lyon-1-1-0-a"), "row 2: .* should be audio/scene-city"),
        (change("meta.csv", "audio/bus-lyon-1-1-a", "audio/car-lyon-1-1-a"), "row 2: .* should begin with one of the"),
        (change("meta.csv", TRAIN[1], TRAIN[0]), "filename, row 3: .* no earlier row has"),
        (change(TRAINED, "\tbus", "\t0"), r"fold1_train\.csv, column scene_label, row 2: '0'"),
        (
            change(TRAINED, TRAIN[0], "audio/bus-lyon-8-1-a.wav"),
            r"fold1_train\.csv lists 1 of 2 clips .*: row 2: audio/b",
        ),
        (
            change(TRAINED, TRAIN[0], TEST[0]),
            r"fold1_train\.csv, column filename, row 2: .*: should not be in .*evaluate",
        ),
        (lambda root: (root / TRAINED).unlink(), r"has no evaluation_setup/fold1_train\.csv"),
    ],
)
def test_wrong_rows_of_tau(tmp_path: Path, mistake: Callable[[Path], None], error: str) -> None:
    root = small_tau(tmp_path / "tau")
    mistake(root)
    text = message("tau2020_mobile", root)
    assert re.search(error, text), text


def test_recordings_in_no_table_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small_tau(tmp_path / "tau")
    recordings(root / "audio", [TRAIN[0].removeprefix("audio/"), "bus-lyon-9-9-a.wav"])
    rows = rows_of("tau2020_mobile", root)
    assert "1 recordings are in no table and not used: audio/bus-lyon-9-9-a.wav" in caplog.text
    assert rows["size"].to_pylist() == [5, -1, -1, -1, -1]


# Published data sets in the pool ------------------------------------------------------------------------------------


def test_a_pool_dataset_leaves_out_its_test_clips(tmp_path: Path) -> None:
    root = small_tau(tmp_path / "tau")
    write(tmp_path / "own.csv", ["filename,scene_label,split", "a.wav,bus,train"])
    more = write(tmp_path / "more.csv", ["filename", "b.wav"])
    config = DataConfig(
        dataset="table",
        tables=(str(tmp_path / "own.csv"),),
        pool_tables=(str(more),),
        pool_datasets=(f"tau2020_mobile:{root}",),
        pool_weights=(2.0, 0.5),
    )
    rows, _ = gather(config, None)
    assert rows["clip_id"].to_pylist() == ["a.wav", "b.wav", *TRAIN, *POOL]
    assert rows["split"].to_pylist() == ["train", *["pool"] * 4]
    assert rows["weight"].to_pylist() == [1.0, 2.0, 0.5, 0.5, 0.5]
    assert rows["scene_label"].to_pylist() == ["bus", *[None] * 4]


def test_a_pool_dataset_shares_no_place_with_the_test(tmp_path: Path) -> None:
    own = tau_folder(tmp_path / "own", [*TRAIN, *TEST], TRAIN, TEST)
    other = tau_folder(tmp_path / "other", [*TRAIN, *TEST], TEST, TRAIN)
    config = DataConfig(
        dataset="tau2020_mobile", root=str(own), pool_datasets=(f"tau2019:{other}",), max_bad_share=0.999
    )
    for folder in (own, other):
        recordings(folder / "audio", [name.removeprefix("audio/") for name in [*TRAIN, *TEST]])
    with pytest.raises(ValueError, match=r"column group: 'oslo-3'.* is in pool .* and in test"):
        load(config, None)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"root": "x"}, r"data\.root = 'x' has no effect with data\.dataset = synthetic"),
        (
            {"dataset": "tau2019", "tables": ("t.csv",)},
            r"data\.tables = t\.csv has no effect with data\.dataset = tau2019",
        ),
        ({"dataset": "table", "root": "x"}, "has no effect with data.dataset = table"),
        ({"pool_datasets": ("tau2019",)}, "'tau2019' must be the name of a published data set and its folder"),
        ({"pool_datasets": ("table:x",)}, r"go to data\.pool_tables"),
        (
            {"pool_datasets": ("tau2019:x",), "pool_weights": (1.0, 2.0)},
            r"0 data\.pool_tables and 1 data\.pool_datasets",
        ),
    ],
)
def test_settings_of_no_use_are_refused(settings: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        DataConfig(**settings)  # type: ignore[arg-type]


def test_an_unknown_pool_dataset(tmp_path: Path) -> None:
    table = write(tmp_path / "own.csv", ["filename", "a.wav"])
    with pytest.raises(ValueError, match=r"data\.pool_datasets: 'tau2021' is unknown .did you mean tau2019"):
        gather(DataConfig(dataset="table", tables=(str(table),), pool_datasets=("tau2021:/data/tau",)), None)


def test_known_counts_are_those_of_loaders() -> None:
    assert set(KNOWN) == set(DATASETS) - {"synthetic", "table", "audioset", "folders"}
    rows = pa.table([pa.array(["train"]), pa.array(["bus"])], ["split", "scene_label"])
    assert "cas2023: 1 clips, the whole data set has 8,700" in official.differences("cas2023", rows)
    assert "tau2019: 0 clips of split test, the whole data set has 4,185" in official.differences("tau2019", rows)
    assert official.differences("table", rows) == []
