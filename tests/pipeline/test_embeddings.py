"""What can be read from embeddings in which it was hidden on purpose."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymae.evaluation.probes import read_out
from raymae.features.store import FeatureStore
from raymae.inference.embedder import Reading
from raymae.pipeline.evaluate import readings
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec


def make_clips(n: int, groups_per_device: int = 30) -> pa.Table:
    """Clips of two scenes and two devices; a group is one recording through one device."""
    rows = [
        {
            "clip_id": f"clip{number}",
            "device": "ab"[number % 2],
            "city": "x",
            "scene_label": "bus" if number // 2 % 2 else "park",
            "group": f"g{number % (2 * groups_per_device)}",
        }
        for number in range(n)
    ]
    return pa.Table.from_pylist(rows)


def test_what_is_in_the_embeddings_is_read_and_nothing_else() -> None:
    clips = make_clips(240)
    rng = np.random.default_rng(0)
    device = np.array([name == "b" for name in clips["device"].to_pylist()], float)
    scene = np.array([name == "bus" for name in clips["scene_label"].to_pylist()], float)
    noise = rng.normal(size=(240, 6)) * 0.3
    tells_device, tells_scene = noise.copy(), noise.copy()
    tells_device[:, 0] += device
    tells_scene[:, 0] += scene
    found = read_out({"device": tells_device, "scene": tells_scene}, clips, "single", 4)
    assert found["layer"] == 4
    assert set(found["targets"]) == {"device", "scene"}  # there is one city alone
    assert found["targets"]["device"]["chance"] == 0.5
    assert found["scores"]["device"]["device"] > 0.9
    assert found["scores"]["scene"]["scene"] > 0.9
    assert abs(found["scores"]["scene"]["device"] - 0.5) < 0.2
    assert abs(found["scores"]["device"]["scene"] - 0.5) < 0.2
    assert "scene" not in read_out({"x": tells_scene}, clips, "multi", 4)["targets"]


def test_a_device_with_too_few_groups_is_left_out() -> None:
    clips = make_clips(40, groups_per_device=3)
    assert read_out({"x": np.ones((40, 2))}, clips, "single", 1)["targets"].get("device") is None


SHORT = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0))


@pytest.fixture(scope="module")
def pretrained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The artifact of a pre-training."""
    spec = make_spec(store, tmp_path_factory.mktemp("pretrained"), config=SHORT)
    run_stage(spec, BareSession(store, spec.artifact))
    return spec.artifact


@pytest.mark.parametrize("band_mean", [False, True])
def test_encoders_of_a_plan_differ_in_their_weights_alone(
    pretrained: Folder, store: FeatureStore, tmp_path: Path, band_mean: bool
) -> None:
    tune = replace(TINY.finetune, epochs=2, warmup_epochs=0, subtract_band_mean=band_mean, layer=1)
    config = replace(SHORT, finetune=tune)
    plan = Plan(config, store.clips, Folder(str(tmp_path)), "evaluate")
    first, second, third = (Path(plan.nodes[name].artifact.path()) for name in ("pretrain", "finetune", "student"))
    shutil.copytree(pretrained.path(), first)
    tuned = make_spec(store, second, "finetune", config, encoder=pretrained)
    run_stage(tuned, BareSession(store, tuned.artifact))
    shutil.copytree(second, third)
    found = readings(plan)
    raw = ["random weights", "pre-trained"]
    both = [*raw, *(f"{name}, band mean subtracted" for name in raw)] if band_mean else raw
    assert list(found) == [*both, "fine-tuned", "with pseudo-labels"]
    embedders = {title: reading.embedder("cpu") for title, reading in found.items()}
    assert {(one.layers, one.segment) for one in embedders.values()} == {((1,), config.audio.n_frames)}
    assert [one.subtract_band_mean for one in embedders.values()] == [
        reading.subtract_band_mean for reading in found.values()
    ]
    log_mel, frames = store.read(np.arange(4))
    assert {reading.pool for reading in found.values()} == {tune.pool}
    x = {title: one.clips(log_mel, frames) for title, one in embedders.items()}
    assert not np.allclose(x["random weights"], x["pre-trained"], atol=1e-3)
    assert not np.allclose(x["pre-trained"], x["fine-tuned"], atol=1e-4)
    again = Reading(plan.nodes["finetune"].artifact, None, False, tune.pool).embedder("cpu")
    np.testing.assert_array_equal(again.clips(log_mel, frames), x["random weights"])
    np.testing.assert_allclose(x["fine-tuned"], x["with pseudo-labels"], atol=1e-5)  # the same weights here
