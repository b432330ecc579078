"""Files of hostile content are refused with a clear message, and nothing in them is run.

Elsewhere: paths that leave a table's folder (datasets/test_table, datasets/test_corpus; links in tars:
audio/test_sources), devices and pipes in place of recordings (audio/test_logmel), forged headers of audio
(audio/test_bad_audio), of tars and of Parquet files (audio/test_sources), pickles as a classifier's weights
(inference/test_predictor), code in files of weights (pipeline/test_init_weights), credentials in MLflow's outbox
(tracking/test_delivery). Sizes: test_sizes. Listening sockets and credentials: test_secrecy.
"""

from __future__ import annotations

import ast
import csv
import io
import pickle
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.sources import look_into, open_clip
from raymae.datasets.splits.split_file import COLUMNS, TABLE
from raymae.datasets.tables.table import read_table
from raymae.evaluation.png import png
from raymae.evaluation.report.class_figures import confusion_figure
from raymae.evaluation.report.document import Picture, Sample
from raymae.evaluation.report.page import page
from raymae.evaluation.report.writing import compose
from raymae.evaluation.scores import evaluation
from raymae.features.store import FeatureStore
from raymae.pipeline.evaluate import score_predictions
from raymae.pipeline.plan.init_weights import bring
from raymae.storage.checksums import crc32
from raymae.storage.commits import COMMIT_FORMAT
from raymae.storage.folder import Folder
from raymae.training.state.checkpoint import load_commit
from tests.support.audio_files import tar
from tests.support.paths import ROOT
from tests.support.predictions import MODELS, NAMES, PREDICTIONS, judged
from tests.support.weights import make_plan, make_state, start


class Trap:
    """An object that touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that a trap would touch; also checks that traps work."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "tried")))
    assert (tmp_path / "tried").exists()
    return tmp_path / "sprung"


def saved(value: Any) -> bytes:
    """A file by torch.save."""
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors", "model.safetensors"])
@pytest.mark.parametrize("write", [pickle.dumps, saved, lambda trap: saved({"model": make_state(), "x": trap})])
def test_a_pickle_as_given_weights(
    name: str, write: Callable[[Trap], bytes], clips: pa.Table, tmp_path: Path, sprung: Path
) -> None:
    source = tmp_path / name
    source.write_bytes(write(Trap(sprung)))
    if name == "model.safetensors":
        (tmp_path / "model.json").write_text("{}")
        source = tmp_path
    given = make_plan(start(source), clips, tmp_path / "storage").given["finetune"]
    with pytest.raises(ValueError, match=r"^finetune\.init_from .*(weights_only=True\) can't read it|is damaged)"):
        bring(given, "finetune", start(source), write=True)
    assert not sprung.exists()


def test_a_pickle_in_a_commit(tmp_path: Path, sprung: Path) -> None:
    folder, content = Folder(str(tmp_path)) / "commits/000000007-x", pickle.dumps(Trap(sprung))
    folder.write_json(
        "commit.json",
        {"format": COMMIT_FORMAT, "step": 7, "parts": {"model": {"size": len(content), "crc32": crc32(content)}}},
    )
    folder.write_bytes("model.safetensors", content)
    with pytest.raises(ValueError, match=r"commits/000000007-x/model\.safetensors is damaged"):
        load_commit(Folder(str(tmp_path)), "000000007-x")
    folder.write_bytes("commit.json", pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=r"commit\.json is damaged"):
        load_commit(Folder(str(tmp_path)), "000000007-x")
    assert not sprung.exists()


def test_a_pickle_as_a_shard_or_a_recording(tmp_path: Path, sprung: Path) -> None:
    content = pickle.dumps(Trap(sprung))
    (tmp_path / "a.tar").write_bytes(tar({"a.wav": content}))
    (tmp_path / "b.tar").write_bytes(content)
    (tmp_path / "c.parquet").write_bytes(content)
    with pytest.raises(AudioError, match="can't be decoded"):
        load(open_clip(f"tar://a.wav::{tmp_path}/a.tar"), 8000)  # type: ignore[arg-type]
    assert look_into("tar", f"{tmp_path}/b.tar")[0].problem
    assert look_into("parquet", f"{tmp_path}/c.parquet")[0].problem
    assert not sprung.exists()


@pytest.mark.parametrize("place", ["filename", "scene_label", "clips.parquet", TABLE, "nested"])
def test_python_objects_in_parquet_columns(place: str, tmp_path: Path, sprung: Path) -> None:
    """Ray has an Arrow type for them, which every process that imports ray.data registers, and unpickles."""
    import ray.data  # noqa: F401
    from ray.data.extensions import ArrowPythonObjectArray

    objects = ArrowPythonObjectArray.from_objects([Trap(sprung), Trap(sprung)])
    plain = pa.array(["a.wav", "b.wav"])
    columns: dict[str, Any] = dict.fromkeys([*COLUMNS, "filename", "scene_label"], plain)
    columns["split"] = pa.array(["train", "val"])
    if place == "nested":
        columns["group"] = pa.StructArray.from_arrays([objects], ["inner"])
    else:
        columns[place if place in columns else "clip_id"] = objects
    table = pa.table(columns)
    folder = Folder(str(tmp_path / "set"))
    folder.write_table("t.parquet", table)
    folder.write_table("clips.parquet", table)
    folder.write_table(TABLE, table)
    reads: dict[str, Callable[[], Any]] = {
        "clips.parquet": lambda: FeatureStore(folder, folder).clips["clip_id"].to_pylist(),
        TABLE: lambda: folder.read_table(TABLE, list(COLUMNS)).to_pylist(),
    }
    with pytest.raises(ValueError, match=r"set/.*\.parquet: the column \w+ has an extension type"):
        reads.get(place, lambda: read_table(folder.path("t.parquet")))()
    assert not sprung.exists()
    columns["other"] = objects  # a column that nobody reads
    folder.write_table("t.parquet", pa.table(columns | dict.fromkeys(["filename", "scene_label", "group"], plain)))
    assert len(read_table(folder.path("t.parquet"))) == 2
    with pq.ParquetFile(folder.path("t.parquet")) as file:
        file.read()["other"].to_pylist()
    assert sprung.exists()  # what reading the column would have done


UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "code", "imp"}
RUN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", ".load_module"}
FLAGS = ("weights_only", "allow_pickle", "shell", "trust_remote_code")


def name_of(node: ast.AST) -> str:
    """The name of a called function: "eval", "torch.load"; the last part of longer names, ".load"."""
    if isinstance(node, ast.Attribute):
        return f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else f".{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_call_that_runs_code_from_files() -> None:
    files = [*(ROOT / "raymae").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert not UNSAFE & {name.split(".")[0] for name in names}, f"{file}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = name_of(node.func)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in FLAGS}
                assert called not in RUN, f"{file}:{node.lineno}"
                right = {"weights_only": "True"} if called == "torch.load" else {}
                assert given == right, f"{file}:{node.lineno}"


# What is written -----------------------------------------------------------------------------------------------------

NASTY = [
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "$\\a{",
]


@settings(max_examples=40)
@given(st.lists(st.one_of(st.sampled_from(NASTY), st.text()), min_size=1, max_size=6, unique=True))
def test_no_cell_is_a_formula(texts: list[str]) -> None:
    from raymae.inference.labeller import schema
    from raymae.serving.output import as_text

    row = {name: text for name, text in zip(("path", "scene_label", "error"), texts, strict=False)}
    given = pa.Table.from_pylist([row | {"confidence": -0.5}], schema(texts, "file"))
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(as_text(given), sink)
    header, line = csv.reader(io.StringIO(sink.getvalue().to_pybytes().decode(), newline=""))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in (*header, *line[:2], line[3]))
    assert header[4:] == [f"p_{name}" for name in texts]
    assert float(line[2]) == -0.5


class Tags(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *(name for name, _ in attrs)))


def test_hostile_names_in_a_report() -> None:
    """Class names, devices, paths and the split's name; benign and hostile, the page has the same tags."""

    def renamed(table: pa.Table, rename: Callable[[str], str]) -> pa.Table:
        for column in ("scene_label", "device", "city", "path", "group"):
            values = [value and rename(value) for value in table[column].to_pylist()]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.string()))
        return table

    def tags(rename: Callable[[str], str]) -> set[tuple[str, ...]]:
        found = {name: renamed(PREDICTIONS[name], rename) for name in MODELS[-2:]}
        scored = score_predictions(found, [rename(name) for name in NAMES], "single", found["cnn"])
        about = {
            "train_seconds": dict.fromkeys(found, 1.0),
            "val_chose": [],
            "quarantined": {},
            "silent": {},
            "clips": None,
            "embeddings": None,
        }
        report = judged(scored | about | {"split": rename("visit"), "note": rename("note")})
        sample = Sample(title=rename("a"), lines=[rename("b")], picture=b"", audio=b"")
        document = compose(report, {"scores": [(Picture("a.png", rename("a")), Figure())]}, [sample])
        return Tags(page(document, {"a.png": b""})).found

    assert tags(lambda name: name + "".join(NASTY)) == tags(lambda name: name.ljust(100, "x"))


def test_hostile_names_in_a_figure() -> None:
    metrics = evaluation(PREDICTIONS["cnn"], NAMES)
    figure = confusion_figure(metrics["val"], ["$\\a{", "$x$", "<b>"])
    assert png(figure).startswith(b"\x89PNG")
    assert "$\\a{" in {text.get_text() for text in figure.findobj(Text)}
