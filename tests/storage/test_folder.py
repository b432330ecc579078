"""Folders of a storage: reading, writing, listing, finished artifacts, events and checkpoints."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from raymae.storage.events import latest_step, read_events, write_event
from raymae.storage.folder import FORMAT, Folder, change_time, digest, open_storage


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
    (storage / "artifacts").write_json("done.json", {"a": 1})
    assert (storage / "artifacts").is_done()
    assert storage.names() == ["artifacts"]


@pytest.mark.parametrize("url", ["/proc/nowhere", "nosuchscheme://bucket/x"])
def test_storage_that_cant_be_written_is_a_clear_error(url: str) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        open_storage(url)


def test_a_repeated_step_replaces_its_event(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for step, loss in [(10, 3.0), (20, 2.0), (10, 3.0)]:
        write_event(folder, {"step": step, "metrics": {"loss": loss}})
    assert [event["step"] for event in read_events(folder)] == [10, 20]
    assert [event["step"] for event in read_events(folder, after=10)] == [20]


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
