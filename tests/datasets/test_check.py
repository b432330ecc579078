"""The output and exit status of `--data.check`; the challenge's CSV, filled in."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.serving.challenge_csv import check_classes, read_submission
from tests.support.audio_files import write_tone
from tests.support.paths import ROOT
from tests.support.published import DEV_TIMED, TIMED, published, write

JOB = ROOT / "jobs" / "prepare.py"


def checked(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """Run jobs/prepare.py with --data.check; returns its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "small", *words, "--data.check", "--json", "check.json"])
    try:
        runpy.run_path(str(JOB), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1
    return 0


def test_a_table_without_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.wav"):
        write_tone(tmp_path / name, 440, seconds=36)
    write(tmp_path / "t.csv", ["filename,scene_label,city,split", "a.wav,bus,oslo,train", "b.wav,bus,lyon,test"])
    assert checked(monkeypatch, tmp_path, "--data.tables", "t.csv") == 0
    text = capsys.readouterr().out
    assert re.search(r" +test +train\nscene_label *\nbus +1 +1\n", text)
    assert re.search(r"oslo +0 +1", text)
    assert "test 0.01, train 0.01" in text
    assert json.loads((tmp_path / "check.json").read_text())["problems"] == []
    assert not (tmp_path / "raymae-storage" / "artifacts").exists()


def test_problems_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(tmp_path / "a.wav", 440)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    write(tmp_path / "t.csv", ["filename,group,split", "a.wav,g,train", "b.wav,g,test", "c.wav,,train"])
    assert checked(monkeypatch, tmp_path, "--data.tables", "t.csv") == 1
    text = capsys.readouterr().out
    for part in ("column group: 'g' is in train", "files missing: 1 (t row 4", "that can't be read: 1 (t row 3"):
        assert part in text
    assert len(json.loads((tmp_path / "check.json").read_text())["problems"]) == 4


def test_the_configured_split_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number}.wav,{'ab'[number % 2]},{number // 2 % 10}" for number in range(40)]
    for number in range(40):
        write_tone(tmp_path / f"{number}.wav", 440, seconds=0.1)
    write(tmp_path / "t.csv", ["filename,scene_label,group", *rows])
    assert checked(monkeypatch, tmp_path, "--data.tables", "t.csv", "--data.split.kind", "session") == 0
    assert re.search(r"^prepare small: storage .*\nsplit: session, seed 0\n(.*\n)*test +[1-9]", capsys.readouterr().out)
    assert checked(monkeypatch, tmp_path, "--data.tables", "t.csv", "--data.split.kind", "visit") == 1
    assert "problem: data.split.kind = visit needs to know where and when" in capsys.readouterr().out


def test_a_random_split_may_cut_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write_tone(tmp_path / f"{number}.wav", 440, seconds=0.1)
    write(tmp_path / "t.csv", ["filename,scene_label,group", *(f"{number}.wav,a,g" for number in range(20))])
    assert checked(monkeypatch, tmp_path, "--data.tables", "t.csv", "--data.split.kind", "random") == 0


def test_counts_of_a_published_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(tmp_path / "cas/wav/a.wav", 440)
    write(tmp_path / "cas" / DEV_TIMED, [TIMED, "a,Jinan,2023-06-18 10:00:00,Bus"], bom=True)
    assert checked(monkeypatch, tmp_path, "--data.dataset", "cas2023", "--data.root", "cas") == 1
    assert "problem: cas2023: 1 clips, the whole data set has 8,700" in capsys.readouterr().out


# Submission ---------------------------------------------------------------------------------------------------------


@given(
    names=st.lists(st.from_regex(r"[0-9a-f]{4}_1", fullmatch=True), min_size=1, max_size=8, unique=True),
    bom=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    cities=st.booleans(),
)
def test_only_labels_change(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], bom: bool, end: str, cities: bool
) -> None:
    path = tmp_path_factory.mktemp("s") / "eval.csv"
    city = ",Xi'an" if cities else ""
    start = b"\xef\xbb\xbf" if bom else b""
    head = f"filename{',location' if cities else ''},scene_label"
    path.write_bytes(start + end.join([head, *(f"{name}{city}," for name in names), ""]).encode())
    found = read_submission(str(path))
    assert found.files([f"/x/{name}.wav" for name in reversed(names)]) == [f"/x/{name}.wav" for name in names]
    filled = found.filled(["Bus"] * len(names))
    assert filled == start + end.join([head, *(f"{name}{city},Bus" for name in names), ""]).encode()


def test_every_row_is_filled_or_named(tmp_path: Path) -> None:
    path = write(tmp_path / "eval.csv", ["filename,scene_label", "a,", "b,", "c,"])
    found = read_submission(str(path))
    with pytest.raises(ValueError, match=r"2 of 3 rows have no recording among --predict\.inputs: row 2: a, row 4: c;"):
        found.files(["/x/b.wav"])
    with pytest.raises(ValueError, match=r"1 of 3 rows have a recording that can't be read: row 3: b;"):
        found.filled(["Bus", None, "Bar"])
    with pytest.raises(ValueError, match=r"x/a\.wav and y/a\.wav both match 'a'"):
        found.files(["x/a.wav", "y/a.wav", "b.wav", "c.wav"])


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (["name,label", "a,"], "should have the columns filename,scene_label"),
        (["filename,scene_label"], "should have the columns filename,scene_label and rows"),
        (["filename,scene_label", "a"], "row 2: 1 columns, should have 2"),
        (["filename,scene_label", "a,", "a,"], "row 3: 'a' should be a name that no earlier"),
    ],
)
def test_wrong_submissions(tmp_path: Path, rows: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_submission(str(write(tmp_path / "eval.csv", rows)))


def test_other_classes_are_refused() -> None:
    check_classes({"class_names": ["Bar", "Bus"], "finetune": {"labels": "single"}}, "eval.csv")
    with pytest.raises(ValueError, match="the classifier predicts Bus, tram; the challenge wants one of Bus, Airport"):
        check_classes({"class_names": ["Bus", "tram"], "finetune": {"labels": "single"}}, "eval.csv")


@published
def test_the_true_submission_keeps_its_bytes() -> None:
    from tests.support.published import EVAL, EVAL_TIMED, METADATA

    for name in (EVAL, EVAL_TIMED):
        path = METADATA / "cas2023" / name
        found = read_submission(str(path))
        assert len(found.names) == 1100
        filled = found.filled(["Bus"] * 1100)
        assert filled.replace(b",Bus", b",") == path.read_bytes()
