"""Tables that a node's processes share: the same values, written once, and never in the way of what is asked for."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.storage.mapped import LEAST_ROWS, UNUSED, SharedTables, writable

ROWS = LEAST_ROWS + 1
TEXTS = pa.table({"name": [None if row % 7 == 3 else f"clip {row}" for row in range(ROWS)], "size": np.arange(ROWS)})


def files(folder: Path, ending: str = ".arrow") -> list[Path]:
    return sorted((folder / "tables").glob(f"*{ending}"))


@given(start=st.integers(0, 5), pieces=st.integers(2, 4))
def test_a_table_is_the_one_that_was_made(tmp_path_factory: pytest.TempPathFactory, start: int, pieces: int) -> None:
    folder = tmp_path_factory.mktemp("node")
    made = pa.concat_tables([TEXTS.slice(start)] * pieces)
    for _ in range(2):
        found = SharedTables(str(folder)).table("key", lambda: made)
        assert found.equals(made)
        assert found["name"].num_chunks == 1
    assert len(files(folder)) == 1
    assert not files(folder, ".part")


def test_arrays_are_the_same_and_written_once_whatever_they_are_of(tmp_path: Path) -> None:
    tables = SharedTables(str(tmp_path))
    for values in (np.arange(ROWS), np.arange(ROWS, dtype=np.float32), np.arange(2 * ROWS)[::2]):
        for _ in range(2):
            found = tables.array(values)
            assert found.dtype == values.dtype
            assert np.array_equal(found, values)
    assert len(files(tmp_path)) == 3
    short = np.arange(3)
    assert tables.array(short) is short


def test_one_process_of_several_makes_a_table(tmp_path: Path) -> None:
    made: list[int] = []
    found: list[pa.Table] = []

    def make() -> pa.Table:
        made.append(1)
        time.sleep(0.2)
        return TEXTS

    def ask() -> None:
        found.append(SharedTables(str(tmp_path)).table("key", make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(one.equals(TEXTS) for one in found)
    assert len(found) == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"x" + content[1:], lambda _: b""])
def test_a_damaged_file_is_written_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    tables = SharedTables(str(tmp_path))
    tables.table("key", lambda: TEXTS)
    content = files(tmp_path)[0].read_bytes()
    files(tmp_path)[0].write_bytes(damage(content))
    assert tables.table("key", lambda: TEXTS).equals(TEXTS)
    assert "damaged" in caplog.text
    assert [path.read_bytes() for path in files(tmp_path)] == [content]


def test_without_a_folder_or_room_a_process_has_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(3):
        assert SharedTables(str(tmp_path / "file")).table("key", lambda: TEXTS) is TEXTS

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    for key in ("one", "two"):
        assert SharedTables(str(tmp_path)).table(key, lambda: TEXTS) is TEXTS
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        f"{tmp_path}/file/tables can't be written to",
        f"{tmp_path}/tables can't be written to",
    ]
    assert not files(tmp_path, ".part")


def test_an_error_of_the_storage_is_raised_and_the_next_one_tries_again(tmp_path: Path) -> None:
    def broken() -> pa.Table:
        raise ConnectionError("the storage is away")

    with pytest.raises(ConnectionError, match="away"):
        SharedTables(str(tmp_path)).table("key", broken)
    assert SharedTables(str(tmp_path)).table("key", lambda: TEXTS).equals(TEXTS)


def test_tables_that_no_process_has_opened_for_long_are_removed(tmp_path: Path) -> None:
    tables = SharedTables(str(tmp_path))
    mapped = tables.table("old", lambda: TEXTS)
    tables.table("used", lambda: TEXTS)
    for path in files(tmp_path):
        os.utime(path, (0, time.time() - UNUSED - 60))
    tables.table("used", lambda: TEXTS)
    tables.table("new", lambda: TEXTS)
    assert {path.name.partition("-")[0] for path in files(tmp_path)} == {"used", "new"}
    assert mapped.equals(TEXTS)


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables").chmod(0o777)
    assert writable(str(tmp_path)) is None
    (tmp_path / "tables").chmod(0o755)
    writable.cache_clear()
    assert writable(str(tmp_path)) == tmp_path / "tables"
