"""Folders of a storage: reading, writing, listing, finished artifacts, events and checkpoints."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from raymae.storage.checksums import digest
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events, write_event
from raymae.storage.folder import FORMAT, DamagedResultError, Folder, change_time, open_storage


def test_digest_names_the_content_not_its_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest("x")) == 16


def test_write_read_list_remove(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path)) / "a" / "b"
    assert folder.names() == []
    folder.write_json("x/y.json", {"k": [1, None]})
    assert folder.read_json("x/y.json") == {"k": [1, None]}
    assert folder.names() == ["x"]
    folder.remove("x")
    folder.remove("x")
    assert folder.names() == []


@pytest.mark.parametrize("url", ["{}/inner", "memory://inner"])
@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", "a/.."])
def test_a_name_leads_out_of_no_folder(tmp_path: Path, url: str, name: str) -> None:
    (tmp_path / "secret").write_text("of the machine")
    folder = Folder(url.format(tmp_path))
    folder.write_bytes("a/..b/file", b"inside")
    acts = (folder.read_bytes, folder.open, folder.remove, folder.exists, folder.__truediv__)
    for act in (*acts, lambda name: folder.write_bytes(name, b""), lambda name: folder.download(name, tmp_path / "x")):
        with pytest.raises(ValueError, match=r"leads out of the folder .*inner"):
            act(name)
    assert (tmp_path / "secret").read_text() == "of the machine"
    assert folder.read_bytes("a/..b/file") == b"inside"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_bytes("file", b"new")
    assert folder.read_bytes("file") == b"old"
    assert folder.names() == ["file"]


def test_finished_means_done_json(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("weights", b"...")
    assert not folder.is_done()
    folder.finish({"steps": 3})
    assert folder.is_done()
    assert folder.result() == {"steps": 3}


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text("{")
    with pytest.raises(ValueError, match=r"done\.json is damaged"):
        Folder(str(tmp_path)).result()


@given(data=st.data())
def test_a_changed_byte_of_a_result_is_noticed(data: st.DataObject) -> None:
    folder = Folder(f"memory://results/{data.draw(st.integers(0, 2**60))}")
    folder.finish({"steps": 3, "metrics": {"loss": 0.25}, "name": "a"})
    content = bytearray(folder.read_bytes("done.json"))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    folder.write_bytes("done.json", bytes(content))
    try:
        found = folder.result()
    except ValueError:
        return
    assert found == {"steps": 3, "metrics": {"loss": 0.25}, "name": "a"}, "more than a space was changed"


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "3", '{"format": 3}', '{"format": 3, "digest": ""}', "{"])
def test_a_damaged_result_is_no_finished_stage(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(str(tmp_path))
    folder.finish({"steps": 3})
    (tmp_path / "done.json").write_text(content)
    assert not folder.is_done()
    with pytest.raises(ValueError, match=r"done\.json is damaged"):
        folder.result()
    error = raised(folder.result)
    assert isinstance(error, DamagedResultError)
    assert [record.getMessage() for record in caplog.records] == [f"{error}; the stage is made again"]
    folder.finish({"steps": 3})
    assert folder.is_done()


def raised(call: Callable[[], object]) -> Exception:
    """The error of a call."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    return error.value


def test_a_changed_byte_of_a_finished_artifact_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("weights", b"0123")
    folder.write_table("table.parquet", pa.table({"a": [1, 2, 3]}))
    assert folder.read_checked("weights") == b"0123"  # not finished, or from elsewhere: it has no checksums
    folder.finish({})
    assert folder.read_table("table.parquet", checked=True)["a"].to_pylist() == [1, 2, 3]
    for name in ("weights", "table.parquet"):
        content = bytearray(folder.read_bytes(name))
        content[len(content) // 2] ^= 1
        folder.write_bytes(name, bytes(content))
    with pytest.raises(ValueError, match=r"/weights is damaged: .* remove done\.json beside it"):
        folder.read_checked("weights")
    with pytest.raises(ValueError, match=r"/table\.parquet is damaged"):
        folder.read_table("table.parquet", checked=True)


def test_a_file_is_created_once(tmp_path: Path) -> None:
    for folder in (Folder(str(tmp_path / "new")), Folder("memory://created")):
        assert [folder.create("a/b", content) for content in (b"1", b"2")] == [True, False]
        assert folder.read_bytes("a/b") == b"1"


def test_a_result_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("done.json", {"steps": 3})
    with pytest.raises(ValueError, match=rf"done\.json is of format 1; .* reads format {FORMAT}$") as error:
        folder.result()
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"mtime": 12.5, "created": 1.0}, 12.5),
        ({"LastModified": datetime.fromtimestamp(7, tz=UTC)}, 7.0),
        ({"last_modified": datetime.fromtimestamp(8, tz=UTC)}, 8.0),
        ({"created": datetime.fromtimestamp(9, tz=UTC)}, 9.0),
        ({"name": "a", "size": 1}, 0.0),
    ],
)
def test_change_times_of_different_file_systems(info: dict[str, Any], seconds: float) -> None:
    assert change_time(info) == seconds


def test_any_fsspec_url_works(tmp_path: Path) -> None:
    storage = open_storage("memory://bucket/run")
    assert not storage.is_local
    (storage / "artifacts").finish({"a": 1})
    assert (storage / "artifacts").is_done()
    assert storage.names() == ["artifacts"]


@pytest.mark.parametrize("url", ["/proc/nowhere", "nosuchscheme://bucket/x"])
def test_storage_that_cant_be_written_is_a_clear_error(url: str) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        open_storage(url)


def test_a_repeated_step_replaces_its_event(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for step, loss in [(10, 3.0), (20, 2.0), (10, 3.0)]:
        write_event(folder, {"step": step, "time": 0.0, "metrics": {"loss": loss}})
    assert [event["step"] for event in read_events(folder)] == [10, 20]
    assert [event["step"] for event in read_events(folder, after=10)] == [20]


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"step": 20, "tine": 0, "metrics": {}}', b'{"step": 20', b"\xff\xfe"]
)
def test_a_damaged_event_is_left_out(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(str(tmp_path))
    for step in (10, 20, 30):
        write_event(folder, {"step": step, "time": 0.0, "metrics": {}})
    folder.write_bytes("events/000000020.json", content)
    assert [event["step"] for event in read_events(folder)] == [10, 30]
    assert "000000020.json is damaged; its metrics are left out" in caplog.text


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert latest_step(folder) is None
    folder.write_json("commits/000000010/commit.json", {})
    folder.write_bytes("commits/000000020/model.safetensors", b"")
    assert latest_step(folder) == 10


class Listing(MemoryFileSystem):
    """`listing://`: trusts its cached listings, as file systems of object stores do."""

    protocol = "listing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("listing://", "memory://")))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        found = self.dircache.get(path) or super().ls(path, detail=True)
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        parent = path.rpartition("/")[0]
        if parent in self.dircache and path not in (entry["name"] for entry in self.dircache[parent]):
            raise FileNotFoundError(path)
        return super().info(path, **kwargs)


def test_what_other_processes_write_is_seen() -> None:
    fsspec.register_implementation("listing", Listing, clobber=True)
    folder = Folder("listing://bucket/run")
    folder.write_bytes("a", b"1")
    assert folder.names() == ["a"]
    Listing.store["/bucket/run/b"] = MemoryFile(None, "/bucket/run/b", b"2")  # by another process
    assert folder.exists("b")
    assert folder.names() == ["a", "b"]
    assert folder.open("b").read() == b"2"


def test_half_written_files_of_dead_processes_are_not_listed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("a.json", b"{}")
    (tmp_path / "b.json.1a2b3c4d.part").write_bytes(b"{")
    assert folder.names() == ["a.json"]
