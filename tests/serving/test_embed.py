"""jobs/embed.py: one row per clip, the same vectors as in a bare process, kept when the job is repeated."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raymae.config import AudioConfig, DataConfig, EmbedConfig
from raymae.features.store import FeatureStore, iterate
from raymae.inference.embedder import read_embedder
from raymae.serving.embed import EmbedRows, check_front_end, check_layers, embed_clips
from raymae.storage.folder import Folder
from raymae.tracking.model_uri import share
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY, make_spec


@pytest.fixture(scope="module")
def encoder(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    quick = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, probe_clips=0))
    spec = make_spec(store, tmp_path_factory.mktemp("encoder"), config=quick)
    run_stage(spec, BareSession(store, spec.artifact))
    return spec.artifact


@pytest.mark.slow  # its parts: the tests of vectors below, tests/cluster/test_parts.py, test_predict.py
@pytest.mark.ray
def test_every_clip_once(ray_cluster: None, encoder: Folder, tmp_path: Path) -> None:
    clips = write_clips(tmp_path, 20)
    config = replace(
        TINY,
        storage=str(tmp_path / "storage"),
        data=DataConfig(dataset="table", tables=(str(write_table(tmp_path, clips)),)),
        embed=EmbedConfig(model=encoder.url, output=str(tmp_path / "clips")),
    )
    assert embed_clips(config)["clips"] == 20
    table = pq.read_table(tmp_path / "clips")
    assert sorted(table["clip_id"].to_pylist()) == sorted(clips["clip_id"].to_pylist())
    labels = dict(zip(clips["clip_id"].to_pylist(), clips["scene_label"].to_pylist(), strict=True))
    assert [labels[name] for name in table["clip_id"].to_pylist()] == table["scene_label"].to_pylist()

    (prepared,) = (tmp_path / "storage/artifacts/prepare").iterdir()
    store = FeatureStore(Folder(str(prepared)), Folder(str(tmp_path / "storage/artifacts/shards")))
    embedder = read_embedder(encoder)
    expected = np.concatenate([embedder.clips(x, n) for _, x, n in iterate(store, np.arange(20), 64)])
    assert np.allclose(np.stack(table["embedding"].to_pylist()), expected, atol=1e-4)

    part = next((tmp_path / "clips").glob("part-*"))
    written = part.stat().st_mtime_ns
    embed_clips(config)
    assert part.stat().st_mtime_ns == written

    with pytest.raises(ValueError, match="embeddings of other settings"):
        embed_clips(replace(config, embed=replace(config.embed, layers=(1,))))


@pytest.mark.ray  # which says what device this process has
def test_a_clip_has_the_vector_of_a_bare_process(ray_cluster: None, store: FeatureStore, encoder: Folder) -> None:
    rows = EmbedRows(store, encoder, EmbedConfig(), 1)({"start": 3, "stop": 20}).to_pylist()
    wanted = np.arange(3, 20)
    assert [row["clip_id"] for row in rows] == [store.clips["clip_id"][int(row)].as_py() for row in wanted]
    embedder = read_embedder(encoder)
    expected = np.concatenate([embedder.clips(x, n) for _, x, n in iterate(store, wanted, 64)])
    assert np.allclose([row["embedding"] for row in rows], expected, atol=1e-4)


@pytest.mark.ray
def test_a_frame_has_its_time_and_vector(ray_cluster: None, store: FeatureStore, encoder: Folder) -> None:
    rows = EmbedRows(store, encoder, EmbedConfig(level="frame"), 1)({"start": 0, "stop": 2}).to_pylist()
    assert [row["clip_id"] for row in rows] == store.clips["clip_id"].to_pylist()[:2]
    for row in rows:
        assert np.allclose(row["seconds"], np.arange(8) * 8 * 80 / 8000)
        assert np.shape(row["embedding"]) == (8, TINY.model.embed_dim)


def test_a_registered_encoder_is_copied_to_the_storage(encoder: Folder, tmp_path: Path) -> None:
    storage = Folder(str(tmp_path / "storage"))
    copies = [Folder(shutil.copytree(encoder.path(), str(tmp_path / name))) for name in ("one", "other")]
    found = {share(copy, storage).url for copy in copies}
    assert len(found) == 1, "what is downloaded again is another encoder"
    (url,) = found
    assert url.startswith(storage.url)
    weights = [Folder(place).read_bytes("model.safetensors") for place in (url, encoder.url)]
    assert weights[0] == weights[1]
    assert read_embedder(Folder(url)).audio == read_embedder(encoder).audio


def test_another_front_end_is_named(encoder: Folder) -> None:
    check_front_end(encoder, TINY.audio)
    with pytest.raises(ValueError, match=r"audio.sample_rate = 8000 \(here 32000\)"):
        check_front_end(encoder, AudioConfig())


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--embed.output is missing"):
        embed_clips(TINY)
    with pytest.raises(ValueError, match="has not finished"):
        embed_clips(
            replace(
                TINY,
                storage=str(tmp_path / "storage"),
                data=DataConfig(dataset="table", tables=(str(write_table(tmp_path, write_clips(tmp_path, 4))),)),
                embed=EmbedConfig(output=str(tmp_path / "out")),
            )
        )


def test_a_missing_layer_is_named_before_workers_start(encoder: Folder) -> None:
    check_layers(encoder, EmbedConfig(layers=(1, 2)))
    with pytest.raises(ValueError, match=r"--embed\.layers 3: the encoder has 2 blocks"):
        check_layers(encoder, EmbedConfig(layers=(3,)))
