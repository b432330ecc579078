"""`benchmark curves` and `frozen` on a few tones: complete results within the expected ranges."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymae.benchmark.studies.curves import LATENT, PIXEL_FAITHFUL, PIXEL_LIGHT, Curves, variants
from raymae.benchmark.studies.frozen import Frozen, Labelled, tables_store, untrained
from raymae.config.recipes import RECIPES
from raymae.features.store import FeatureStore
from raymae.inference.embedder import read_embedder
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY, make_spec


def test_variants_differ_only_in_target_and_decoder() -> None:
    config = RECIPES["small"]()
    found = variants(config)
    assert found[PIXEL_FAITHFUL].model.decoder == "local"
    assert found[PIXEL_FAITHFUL].model.decoder_depth == 16
    assert found[LATENT].model.name == "latent"
    for one in found.values():
        model, train = one.model, one.pretrain
        assert train.global_batch_size * model.masks_per_clip == config.pretrain.global_batch_size
        assert train.peak_lr == config.pretrain.peak_lr
        for name in ("embed_dim", "depth", "num_heads", "patch_size", "mask_ratio", "decoder_embed_dim"):
            assert getattr(model, name) == getattr(config.model, name)


def test_curve_starts_at_the_untrained_encoder(tmp_path: Path) -> None:
    table = str(write_table(tmp_path, write_clips(tmp_path, 60)))
    part = Curves(
        pool=(str(write_pool(tmp_path)),),
        tables=(table,),
        recipe="synthetic",
        seconds=0.4,
        seeds=1,
        only=(PIXEL_LIGHT, LATENT),
        json=str(tmp_path / "curves.json"),
        figure=str(tmp_path / "curves.png"),
    )
    text = str(part.run())
    assert PIXEL_LIGHT in text
    assert LATENT in text
    runs = json.loads((tmp_path / "curves.json").read_text())["runs"]
    assert [run["variant"] for run in runs] == [PIXEL_LIGHT, LATENT]
    for run in runs:
        assert run["seconds"][0] == run["steps"][0] == 0
        assert run["seconds"] == sorted(run["seconds"])
        assert run["steps"] == sorted(set(run["steps"]))
        assert {len(values) for values in run["scores"].values()} == {len(run["steps"])}
        assert 0 <= min(run["scores"]["probe/linear"]) <= max(run["scores"]["probe/linear"]) <= 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def write_pool(folder: Path) -> Path:
    """Write a table of unlabelled recordings."""
    (folder / "pool").mkdir()
    clips = write_clips(folder / "pool", 20)
    return write_table(folder / "pool", clips.filter(np.array(clips["split"].to_pylist()) == "pool"))


def test_unknown_variant_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid are 'pixel, light decoder'"):
        Curves(pool=(), tables=(), only=("vit",)).run()


def test_frozen_probes_classify_tones(store: FeatureStore, tmp_path: Path) -> None:
    quick = replace(TINY, pretrain=replace(TINY.pretrain, epochs=2, warmup_epochs=0, probe_clips=0))
    spec = make_spec(store, tmp_path / "encoder", config=quick)
    run_stage(spec, BareSession(store, spec.artifact))
    table = str(write_table(tmp_path, write_clips(tmp_path, 60)))
    part = Frozen(model=str(tmp_path / "encoder"), tables=(table, table), copies=1, threads=1)
    result = part.run()
    scores = result.values["scores"]
    svms = ["SVM on log-mel statistics", "SVM, random EQ + band-mean subtraction"]
    assert list(scores) == ["log-mel statistics", *svms, "pre-trained", "random weights"]
    assert all(len(found["test_a"]) == 2 for found in scores.values())
    assert scores["pre-trained"]["test_a"][0] > 0.9
    assert "| pre-trained | 1.000 ± 0.000 |" in result.text or "| pre-trained | 0.9" in result.text

    embedder = read_embedder(Folder(str(tmp_path / "encoder")))
    x, frames = store.read(np.arange(4))
    one, other = untrained(embedder, 0).clips(x, frames), untrained(embedder, 1).clips(x, frames)
    assert not np.allclose(one, other)
    assert np.array_equal(one, untrained(embedder, 0).clips(x, frames))


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    clips = write_clips(tmp_path, 4)
    Path(clips["path"][2].as_py()).write_bytes(b"no audio")
    table = str(write_table(tmp_path, clips))
    with pytest.raises(ValueError, match=r"clip002\.wav can't be read"):
        tables_store(Folder(str(tmp_path / "store")), TINY.audio, [table])


def test_class_without_training_clips_is_named(tmp_path: Path) -> None:
    clips = write_clips(tmp_path, 20)
    labels = ["odd" if row["split"] == "test_a" else row["scene_label"] for row in clips.to_pylist()]
    clips = clips.set_column(clips.column_names.index("scene_label"), "scene_label", pa.array(labels))
    store = tables_store(Folder(str(tmp_path / "store")), TINY.audio, [str(write_table(tmp_path, clips))])
    table = Labelled("mine.csv", store)
    assert set(table.labels(table.splits["train"]).tolist()) == {0, 1}
    with pytest.raises(
        ValueError, match=r"mine\.csv: no clip of split train has the scene_label 'odd' of a test split"
    ):
        table.labels(table.splits["test_a"])
