"""AudioSet's official tables, and tables whose labels have another column or separator."""

import json
from pathlib import Path

import pytest

from raymae.config import DataConfig
from raymae.datasets.checks import check_labels
from raymae.datasets.clips import gather, load
from tests.support.published import message, recordings, rows_of, write

HEAD = [
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3",
    "# YTID, start_seconds, end_seconds, positive_labels",
]
TRAIN = ['--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"', 'Yabcdefghi_, 0.000, 10.000, "/m/04rlf"']
NAMES = ["index,mid,display_name", '0,/m/09x0r,"Speech"', '1,/m/05zppz,"Male speech, man speaking"', "2,/m/04rlf,Music"]


def audioset(root: Path, train: list[str] = TRAIN, names: list[str] = NAMES) -> Path:
    write(root / "balanced_train_segments.csv", [*HEAD, *train])
    write(root / "unbalanced_train_segments.csv", [*HEAD, 'ppppppppppp, 0.000, 10.000, "/m/04rlf"'])
    write(root / "eval_segments.csv", [*HEAD, 'eeeeeeeeeee, 0.000, 10.000, "/m/09x0r"'])
    write(root / "class_labels_indices.csv", names, bom=True)
    return root


def test_segments_become_multi_label_clips(tmp_path: Path) -> None:
    root = audioset(tmp_path / "as")
    recordings(
        root / "wav", ["Y--PJHxphWEs.wav", "Yabcdefghi__0.wav", "ppppppppppp_0_10.flac", "Yeeeeeeeeeee_0.000.wav"]
    )
    clips = load(DataConfig(dataset="audioset", root=str(root)), None, "multi").to_pylist()
    assert [clip["clip_id"] for clip in clips] == ["--PJHxphWEs", "Yabcdefghi_", "ppppppppppp", "eeeeeeeeeee"]
    assert [clip["scene_label"] for clip in clips] == ["Speech;Male speech, man speaking", "Music", None, "Speech"]
    assert [clip["split"] for clip in clips] == ["train", "train", "pool", "test"]
    assert [clip["size"] for clip in clips] == [5] * 4


def test_names_of_the_ontology_or_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = audioset(tmp_path / "as")
    (root / "class_labels_indices.csv").unlink()
    assert rows_of("audioset", root)["scene_label"][0].as_py() == "/m/09x0r;/m/05zppz"
    assert "classes are named by their ids" in caplog.text
    classes = {"/m/09x0r": "Speech", "/m/05zppz": "Man", "/m/04rlf": "Music"}
    (root / "ontology.json").write_text(json.dumps([{"id": key, "name": name} for key, name in classes.items()]))
    assert rows_of("audioset", root)["scene_label"][0].as_py() == "Speech;Man"


@pytest.mark.parametrize(
    ("train", "names", "error"),
    [
        (["--PJHxphWEs, 30.000, 40.000"], NAMES, "balanced_train_segments.csv, row 4: "),
        (["--PJHxphWEs; 30.000; 40.000; /m/09x0r"], NAMES, "should be YTID (of 11 characters), start_seconds"),
        (['--PJHxphWEs, 30.000, 40.000, "/m/0"'], NAMES, "row 4, positive_labels: '/m/0' is not a known label"),
        ([TRAIN[0], TRAIN[0]], NAMES, "row 5: '--PJHxphWEs': should occur once"),
        (TRAIN, ["id,name", "/m/09x0r,Speech"], "class_labels_indices.csv can't be read"),
        (TRAIN, [*NAMES, "3,/m/x,a;b"], "/m/x: 'a;b': a class should have a name without ';'"),
    ],
)
def test_wrong_rows_of_audioset(tmp_path: Path, train: list[str], names: list[str], error: str) -> None:
    assert error in message("audioset", audioset(tmp_path / "as", train, names))


def test_two_recordings_of_one_video(tmp_path: Path) -> None:
    root = audioset(tmp_path / "as")
    recordings(root, ["ppppppppppp.wav", "Yppppppppppp.wav"])
    assert "are of the same video, ppppppppppp" in message("audioset", root)


# Tables with other columns ------------------------------------------------------------------------------------------


def labelled(table: Path, **settings: str) -> DataConfig:
    return DataConfig(dataset="table", tables=(str(table),), **settings)  # type: ignore[arg-type]


def test_another_column_and_separator(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv", ["filename,labels,scene_label", 'a.wav,"rain,dog",no', "b.wav,dog,no", "c.wav,,no"]
    )
    rows, _ = gather(labelled(table, label_column="labels", label_separator=","), None)
    assert rows["scene_label"].to_pylist() == ["rain;dog", "dog", None]
    check_labels(rows, "multi")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"label_column": "tags"}, "has no column tags; its columns are 'filename', 'labels'"),
        ({"label_column": "labels", "label_separator": ","}, "column labels, row 2: 'a;b': should have no ';' within"),
    ],
)
def test_a_missing_label_column_or_ambiguous_separator_is_an_error(
    tmp_path: Path, settings: dict[str, str], error: str
) -> None:
    table = write(tmp_path / "t.csv", ["filename,labels", "a.wav,a;b"])
    with pytest.raises(ValueError, match=r".") as caught:
        gather(labelled(table, **settings), None)
    assert error in str(caught.value)


@pytest.mark.parametrize("settings", [{"label_column": "x"}, {"label_separator": ","}])
def test_label_settings_need_tables(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"has no effect with data\.dataset = cas2023"):
        DataConfig(dataset="cas2023", root="x", **settings)  # type: ignore[arg-type]
