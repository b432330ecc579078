"""The output table of a job: whole or not at all, as a file or at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raymae.serving.output import open_output

TABLE = pa.table({"path": ['a,"b".wav', "c.wav", "d.wav"], "error": [None, "gone", None], "bus": [0.25, None, 0.5]})
PIECES = [TABLE.slice(0, 2).replace_schema_metadata({b"files": b"2"}), TABLE.slice(2)]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("remote", [False, True])
def test_pieces_become_one_table(tmp_path: Path, name: str, remote: bool) -> None:
    url = f"memory://outputs/{name}" if remote else str(tmp_path / name)
    for _ in range(2):
        open_output("--o", url).write(PIECES, TABLE.schema)
    with fsspec.open(url) as file:
        found = pa.csv.read_csv(file) if name.endswith(".csv") else pq.read_table(file)
    assert found.select(["path", "bus"]).to_pylist() == TABLE.select(["path", "bus"]).to_pylist()
    assert [bool(error) for error in found["error"].to_pylist()] == [False, True, False]
    assert [path.name for path in tmp_path.iterdir()] == ([] if remote else [name])


@pytest.mark.parametrize("remote", [False, True])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, remote: bool) -> None:
    url = "memory://outputs/broken.csv" if remote else str(tmp_path / "broken.csv")
    output = open_output("--o", url)
    output.write(PIECES, TABLE.schema)
    before = output.folder.read_bytes("broken.csv")

    def pieces() -> Iterator[pa.Table]:
        yield PIECES[1]
        raise OSError("a part is lost")

    with pytest.raises(OSError, match="a part is lost"):
        output.write(pieces(), TABLE.schema)
    assert output.folder.read_bytes("broken.csv") == before
    assert [path.name for path in tmp_path.iterdir()] == ([] if remote else ["broken.csv"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "--o is missing"),
        ("out.txt", "must name a .csv or .parquet file, or a folder"),
        ("nowhere/out.csv", "there is no folder .*nowhere"),
        ("there.csv", "is a folder; name a file"),
        ("nonsense://out.csv", "--o nonsense://out.csv can't be written: Protocol not known"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str | None, message: str) -> None:
    (tmp_path / "there.csv").mkdir()
    with pytest.raises(ValueError, match=message):
        open_output("--o", name if name is None or "://" in name else str(tmp_path / name))


@pytest.mark.parametrize("name", ["parts", "parts.v2/", "memory://outputs/parts"])
def test_other_names_are_folders(tmp_path: Path, name: str) -> None:
    output = open_output("--o", name if "://" in name else f"{tmp_path}/{name}")
    assert output.file is None
    assert output.folder.url.rstrip("/").endswith(name.rstrip("/"))


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    assert "hunter2" not in str(open_output("--o", "memory://me:hunter2@bucket/out.csv"))
