"""Splits: no shared groups, proportions of classes, names, log messages and split files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from raymae.config import SplitConfig, from_dict, to_dict
from raymae.datasets.checks import check_groups
from raymae.datasets.splits.assign import assign, split_name, write_split
from raymae.datasets.splits.groups import unit_codes, visit_codes
from raymae.storage.folder import Folder
from tests.support.clip_tables import METADATA, START, cas2023, clip_table, random_table, tau2020

KINDS = [
    SplitConfig(kind="session"),
    SplitConfig(kind="visit"),
    SplitConfig(kind="city_day"),
    SplitConfig(kind="city", held_out=("city1",)),
    SplitConfig(kind="device", held_out=("d1", "d3")),
    SplitConfig(val_share=0.2),
]
needs_metadata = pytest.mark.skipif(not METADATA.exists(), reason=f"no published metadata at {METADATA}")


def by_side(rows: pa.Table) -> tuple[set[str], set[str]]:
    """Ids of the clips to train on (train, pool) and of the clips to evaluate on."""
    tested = {row["clip_id"] for row in rows.to_pylist() if row["split"] == "val" or row["split"].startswith("test")}
    return set(rows["clip_id"].to_pylist()) - tested, tested


def splits_of(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows["clip_id"].to_pylist(), rows["split"].to_pylist(), strict=True))


def labelled(rows: pa.Table, split: str) -> set[str]:
    return {row["clip_id"] for row in rows.to_pylist() if row["split"] == split and row["scene_label"] is not None}


@given(seed=st.integers(0, 10**6), config=st.sampled_from(KINDS), transductive=st.booleans())
@hypothesis_settings(deadline=None, max_examples=60)
def test_no_group_and_no_unit_is_on_both_sides(seed: int, config: SplitConfig, transductive: bool) -> None:
    rows = random_table(seed)
    config = replace(config, seed=seed, transductive=transductive)
    done = assign(rows, config)
    check_groups(done, transductive=transductive)
    trained, evaluated = by_side(done)
    if transductive:
        trained -= {clip for clip, split in splits_of(done).items() if split == "pool"}
    units = dict(zip(rows["clip_id"].to_pylist(), unit_codes(rows, config.kind).tolist(), strict=True))
    tested = {clip for clip, split in splits_of(done).items() if split.startswith("test")}
    assert evaluated
    assert not {units[clip] for clip in tested} & {units[clip] for clip in trained}
    if config.kind in ("city", "device"):
        column = dict(zip(rows["clip_id"].to_pylist(), rows[config.kind].to_pylist(), strict=True))
        assert not {column[clip] for clip in trained} & set(config.held_out)


@given(seed=st.integers(0, 10**6), config=st.sampled_from([*KINDS, SplitConfig(kind="random")]))
@hypothesis_settings(deadline=None, max_examples=15)
def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows(seed: int, config: SplitConfig) -> None:
    rows = random_table(3)
    config = replace(config, seed=seed)
    shuffled = rows.take(np.random.default_rng(seed).permutation(len(rows)))
    assert splits_of(assign(rows, config)) == splits_of(assign(shuffled, config))
    others = [splits_of(assign(rows, replace(config, seed=seed + more))) for more in (1, 2, 3)]
    assert any(splits_of(assign(rows, config)) != other for other in others)


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.1, 0.2, 0.35]))
@hypothesis_settings(deadline=None, max_examples=30)
def test_classes_stay_in_proportion_and_none_is_lost(seed: int, share: float) -> None:
    rows = random_table(seed, sessions=200, classes=4, split="train")
    done = assign(rows, SplitConfig(kind="session", test_share=share, val_share=0.1, seed=seed))
    for wanted, split in ((share, "test"), (0.1, "val"), (1 - share - 0.1, "train")):
        for label in (f"class{number}" for number in range(4)):
            mine = done.filter(pc.equal(done["scene_label"], label))
            found = pc.sum(pc.equal(mine["split"], split)).as_py() / len(mine)
            assert found == pytest.approx(wanted, abs=0.06)


@given(seed=st.integers(0, 10**6))
@hypothesis_settings(deadline=None, max_examples=15)
def test_smaller_label_shares_are_subsets_of_larger_ones(seed: int) -> None:
    rows = random_table(seed, classes=6)
    whole = labelled(assign(rows, SplitConfig(kind="session", seed=seed)), "train")
    before: set[str] = set()
    for share in (0.05, 0.1, 0.2, 0.5, 1.0):
        done = assign(rows, SplitConfig(kind="session", seed=seed, labelled_share=share))
        kept = labelled(done, "train")
        classes = set(done.filter(pc.equal(done["split"], "train"))["scene_label"].to_pylist()) - {None}
        assert before <= kept <= whole
        assert classes == {row["scene_label"] for row in rows.to_pylist() if row["clip_id"] in whole}
        before = kept
    assert before == whole


def test_label_shares_count_groups() -> None:
    rows = random_table(1, sessions=300, classes=3, split="train")
    groups = {row["clip_id"]: row["group"] or row["clip_id"] for row in rows.to_pylist()}
    done = assign(rows, SplitConfig(kind="session"))
    whole = {groups[clip] for clip in labelled(done, "train")}
    for share in (0.05, 0.2, 0.5):
        thin = assign(rows, SplitConfig(kind="session", labelled_share=share))
        assert len({groups[clip] for clip in labelled(thin, "train")}) == round(share * len(whole))
        assert splits_of(thin) == splits_of(done)


def test_unlabelled_siblings_are_left_out_or_transductive(caplog: pytest.LogCaptureFixture) -> None:
    rows = random_table(2)
    caplog.set_level(logging.INFO, "raymae")
    config = SplitConfig(kind="session")
    apart, shared = assign(rows, config), assign(rows, replace(config, transductive=True))
    lost = set(rows["clip_id"].to_pylist()) - set(apart["clip_id"].to_pylist())
    assert lost
    assert {splits_of(shared)[clip] for clip in lost} == {"pool"}
    assert f"{len(lost)} unlabelled clips of" in caplog.text
    assert "transductive" in split_name(replace(config, transductive=True))
    with pytest.raises(ValueError, match="column group"):
        check_groups(shared)


def test_visits_chain_recordings_of_one_city() -> None:
    minutes = [("a", 0), ("a", 30), ("a", 59), ("a", 90), ("b", 60), ("a", 121), ("a", None)]
    rows = clip_table([{"city": c, "recorded": None if m is None else START + m * np.timedelta64(1, "m").item()}
                       for c, m in minutes])  # fmt: skip
    visits = visit_codes(rows)
    assert len(set(visits[:3])) == 1
    assert len({visits[0], visits[3], visits[4], visits[5], visits[6]}) == 5


def test_clips_to_predict_stay_and_their_siblings_leave_training() -> None:
    rows = random_table(4)
    asked = clip_table([{"clip_id": "eval1", "split": "test_eval", "group": rows["group"][0].as_py(), "city": "city0"}])
    done = assign(pa.concat_tables([rows, asked]), SplitConfig(kind="session"))
    assert splits_of(done)["eval1"] == "test_eval"
    check_groups(done)


def test_held_out_devices_are_tested_on_recordings_outside_training() -> None:
    rows = [
        {"group": f"place{n}", "device": device, "scene_label": f"class{n % 2}"}
        for n in range(40)
        for device in ("a", "b", "s1")
    ]
    done = assign(clip_table(rows), SplitConfig(kind="device", held_out=("s1",), val_share=0.0))
    found = {(row["split"], row["device"]) for row in done.to_pylist()}
    assert found == {
        ("train", "a"), ("train", "b"), ("test_seen", "a"), ("test_seen", "b"), ("test_unseen", "s1"),
    }  # fmt: skip


def test_classes_that_only_a_held_out_city_has_are_not_scored(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"city": city, "group": f"{city}{n}", "scene_label": label}
        for city, labels in (("x", ("bus", "park", "fair")), ("y", ("bus", "park", "zoo")))
        for label in labels
        for n in range(len(labels) * 4)
    ]
    for n, row in enumerate(rows):
        row["group"] = f"{row['city']}{n}"
    done = assign(clip_table(rows), SplitConfig(kind="city", held_out=("x",)))
    assert set(done.filter(pc.equal(done["split"], "test"))["scene_label"].to_pylist()) == {"bus", "park"}
    assert "12 held-out clips of fair are left out" in caplog.text
    assert "test has no clip of zoo" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_share": 0.3}, r"test_share = 0.3 has no effect with data.split.kind = table"),
        ({"seed": 1}, "seed = 1 has no effect"),
        ({"kind": "visit", "held_out": ("x",)}, "held_out"),
        ({"kind": "city"}, "needs data.split.held_out: cities"),
        ({"kind": "random", "transductive": True}, "transductive = True has no effect"),
        ({"kind": "visit", "file": "f"}, "file, which decides it"),
        ({"kind": "visit", "test_share": 1.0}, r"test_share = 1.0 must lie in \(0, 1\)"),
        ({"kind": "visit", "test_share": 0.6, "val_share": 0.4}, "leave nothing for training"),
        ({"labelled_share": 0.0}, r"labelled_share = 0.0 must lie in \(0, 1\]"),
        ({"kind": "vist"}, "must be one of table, random"),
    ],
)
def test_settings_without_effect_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)


def test_tables_without_the_columns_that_a_kind_needs() -> None:
    rows = random_table(0)
    with pytest.raises(ValueError, match=r"held_out = s9: no clip has it in column device; known are d0, d1, d2, d3"):
        assign(rows, SplitConfig(kind="device", held_out=("s9", "d1")))
    with pytest.raises(ValueError, match="no clip of this table has a value in column recorded"):
        assign(rows.drop_columns("recorded"), SplitConfig(kind="visit"))
    alone = rows.set_column(rows.column_names.index("group"), "group", pa.nulls(len(rows), pa.string()))
    with pytest.raises(ValueError, match="no clip of this table has a value in column group"):
        assign(alone, SplitConfig(kind="session"))
    done = assign(rows, SplitConfig(kind="session"))
    with pytest.raises(ValueError, match="has a split val of its own"):
        assign(done, SplitConfig(val_share=0.1))


def test_names_of_splits() -> None:
    assert split_name(SplitConfig()) == "as the table says"
    assert split_name(SplitConfig(kind="visit")) == "visit, seed 0"
    assert "LEAKS" in split_name(SplitConfig(kind="random", seed=3))
    assert split_name(SplitConfig(kind="city", held_out=("Xi'an",))) == "city (Xi'an held out), seed 0"
    thin = SplitConfig(kind="session", labelled_share=0.05)
    assert split_name(thin) == "session, seed 0, labels of 0.05 of the training groups"


# Split files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*KINDS, SplitConfig(kind="random"), SplitConfig(kind="visit", transductive=True)])
def test_a_split_survives_writing_and_reading(config: SplitConfig, tmp_path: Path) -> None:
    rows = random_table(5)
    done = assign(rows, config)
    digest = write_split(Folder(str(tmp_path / "run")), done, config)
    for name in ("run", "run/split.json", "run/split.parquet"):
        again = assign(rows, SplitConfig(file=str(tmp_path / name)))
        assert again.equals(done)
    given = SplitConfig(file=str(tmp_path / "run"))
    assert split_name(given) == split_name(config)
    assert write_split(Folder(str(tmp_path / "again")), again, given) == digest
    assert from_dict(SplitConfig, to_dict(config)) == config


def test_labels_can_be_thinned_on_a_split_from_a_file(tmp_path: Path) -> None:
    rows = random_table(5)
    write_split(Folder(str(tmp_path)), assign(rows, SplitConfig(kind="session")), SplitConfig(kind="session"))
    thin = SplitConfig(file=str(tmp_path), labelled_share=0.2)
    direct = assign(rows, SplitConfig(kind="session", labelled_share=0.2))
    assert assign(rows, thin).equals(direct)
    assert split_name(thin) == "session, seed 0, labels of 0.2 of the training groups"
    write_split(Folder(str(tmp_path / "thin")), direct, SplitConfig(kind="session", labelled_share=0.2))
    assert assign(rows, SplitConfig(file=str(tmp_path / "thin"))).equals(direct)


def test_a_file_keeps_the_seed_of_its_labels_in_its_name(tmp_path: Path) -> None:
    rows, drawn = random_table(5), SplitConfig(kind="session")
    write_split(Folder(str(tmp_path / "whole")), assign(rows, drawn), drawn)
    thin = SplitConfig(file=str(tmp_path / "whole"), labelled_share=0.5, seed=3)
    write_split(Folder(str(tmp_path / "thin")), assign(rows, thin), thin)
    name = "session, seed 0, labels of 0.5 of the training groups (seed 3)"
    assert split_name(thin) == split_name(SplitConfig(file=str(tmp_path / "thin"))) == name


def change_group(rows: pa.Table) -> pa.Table:
    groups = ["other", *rows["group"].to_pylist()[1:]]
    return rows.set_column(rows.column_names.index("group"), "group", pa.array(groups, pa.string()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.slice(30), r"of its clips are not here, for example 'c\d+'"),
        (lambda rows: pa.concat_tables([rows, clip_table([{"clip_id": "new"}])]), "clips here that are not in it"),
        (change_group, "1 clips have another group here, for example 'c0'"),
    ],
)
def test_a_split_file_of_other_clips_is_an_error(
    change: Callable[[pa.Table], pa.Table], message: str, tmp_path: Path
) -> None:
    rows = random_table(6, split="train")
    config = SplitConfig(kind="session", transductive=True)
    write_split(Folder(str(tmp_path)), assign(rows, config), config)
    with pytest.raises(ValueError, match=message):
        assign(change(rows), SplitConfig(file=str(tmp_path)))


def test_damaged_split_files_are_errors(tmp_path: Path) -> None:
    rows, config, folder = random_table(7), SplitConfig(kind="session"), Folder(str(tmp_path))
    with pytest.raises(ValueError, match=r"can't be read: .*; it should be a folder with split.json"):
        assign(rows, SplitConfig(file=str(tmp_path)))
    done = assign(rows, config)
    write_split(folder, done, config)
    described = folder.read_json("split.json")
    write_split(folder, assign(rows, replace(config, seed=1)), config)
    folder.write_json("split.json", described)
    with pytest.raises(ValueError, match=r"split.parquet has changed since its hash was taken"):
        assign(rows, SplitConfig(file=str(tmp_path)))
    write_split(folder, done, config)
    unlabelled = rows.set_column(2, "scene_label", pa.nulls(len(rows), pa.string()))
    with pytest.raises(ValueError, match=r"counts c\d+ as labelled; here it has no scene_label"):
        assign(unlabelled, SplitConfig(file=str(tmp_path)))


def test_new_pool_clips_join_a_split_from_a_file_unless_their_siblings_are_held_out(tmp_path: Path) -> None:
    rows, config = random_table(8), SplitConfig(kind="session")
    done = assign(rows, config)
    write_split(Folder(str(tmp_path)), done, config)
    held = next(row["group"] for row in done.to_pylist() if row["split"] == "test" and row["group"])
    more = clip_table([{"clip_id": "free", "split": "pool"}, {"clip_id": "bound", "split": "pool", "group": held}])
    again = splits_of(assign(pa.concat_tables([rows, more]), SplitConfig(file=str(tmp_path))))
    assert again["free"] == "pool"
    assert "bound" not in again


# Published tables -----------------------------------------------------------------------------------------------------


@needs_metadata
def test_cas_2023_by_visit(caplog: pytest.LogCaptureFixture) -> None:
    rows = cas2023()
    assert len(set(unit_codes(rows, "session"))) == 328
    assert len(set(unit_codes(rows, "visit"))) == 47
    for seed in range(3):
        done = assign(rows, SplitConfig(kind="visit", seed=seed))
        check_groups(done)
        classes = {
            name: set(done.filter(pc.equal(done["split"], name))["scene_label"].to_pylist()) - {None}
            for name in ("train", "val", "test")
        }
        assert len(classes["train"]) == 10  # Public square has two visits: one on either side, where chance allows
        assert 0.1 < len(labelled(done, "test")) / 1740 < 0.4
        assert len(done) < len(rows)


@needs_metadata
def test_cas_2023_without_the_only_city_of_two_classes(caplog: pytest.LogCaptureFixture) -> None:
    done = assign(cas2023(), SplitConfig(kind="city", held_out=("Xi'an",)))
    check_groups(done)
    assert "of Public square, Traffic street are left out" in caplog.text


@needs_metadata
def test_tau_without_its_simulated_devices() -> None:
    rows = tau2020()
    done = assign(rows, SplitConfig(kind="device", held_out=("s1", "s2")))
    check_groups(done)
    devices = {
        name: set(done.filter(pc.equal(done["split"], name))["device"].to_pylist())
        for name in set(splits_of(done).values())
    }
    assert devices["train"] == {"a", "b", "c", "s3"}
    assert devices["test_unseen"] == {"s1", "s2"}
