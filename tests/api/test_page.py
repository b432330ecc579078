"""The page of the API: its Python blocks are one session, run on tiny recordings without Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymae.config import Config, DataConfig, EvaluateConfig
from raymae.config.recipes import RECIPES
from tests.support import without_ray
from tests.support.audio_files import write_clips, write_table
from tests.support.paths import ROOT
from tests.support.training import TINY

PAGE = ROOT / "raymae/api/README.md"


def tiny() -> Config:
    """In place of the recipe `small`."""
    return replace(
        TINY,
        data=DataConfig(dataset="table", shard_mb=0.1),
        evaluate=EvaluateConfig(baselines=(), probe_clips=0),
        unlabelled=(),
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The namespace after all blocks."""
    folder = tmp_path_factory.mktemp("notebook")
    write_table(folder / "rec", write_clips(folder / "rec", 60))
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setitem(RECIPES, "small", tiny)
        without_ray.patch(patched)
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            exec(compile(block, str(PAGE), "exec"), names)
        yield names


def test_the_page_s_values_are_what_it_says(session: dict[str, Any]) -> None:
    run, found = session["run"], session["found"]
    assert run.model_uri == "models:/raymae-scene-classifier/1"
    assert run.result["stages"]["pretrain"]["reused"]  # from the first call
    assert list(run.scores())[:3] == ["model", "split", "clips"]
    assert run.scores()["macro_accuracy"].between(0, 1).all()
    assert len(run.predictions()) == run.scores().query("model == 'finetune'")["clips"].sum()
    history = run.history("pretrain")
    assert list(history)[:2] == ["step", "time"]
    assert history["step"].is_monotonic_increasing
    assert found.to_frame()["path"].tolist()[:2] == ["rec/clip001.wav", "rec/clip002.wav"]
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert session["vectors"].shape == (2, 32)
    assert session["logits"].shape == (1, 10)
    assert 0 < session["loss"] < 100
    assert isinstance(session["model"], torch.nn.Module)


def test_every_function_is_on_the_page(session: dict[str, Any]) -> None:
    raymae, text = session["raymae"], PAGE.read_text()
    assert set(raymae.API) <= set(dir(raymae))
    for name in raymae.API:
        assert f"`{name}`" in text
        assert callable(getattr(raymae, name))
    with pytest.raises(AttributeError, match="'raymae' has no attribute 'log_mels'"):
        raymae.log_mels  # noqa: B018


def test_the_models_are_those_of_the_stages(session: dict[str, Any]) -> None:
    run, raymae = session["run"], session["raymae"]
    assert run.model == run.stages["finetune"]
    loaded = run.load(device="cpu")
    assert loaded.class_names == ["high", "low"]
    assert Path(run.folder, "result.json").is_file()
    recording = session["stereo"], 16000
    np.testing.assert_array_equal(
        loaded.predict(recording).probabilities, session["classifier"].predict([recording]).probabilities
    )
    pretrained = raymae.load_encoder(run.stages["pretrain"], device="cpu")
    assert pretrained.embed(recording, pool="cls").vectors.shape == (1, 32)


def test_unknown_stages_are_refused(session: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no stage 'student'; it has prepare, pretrain, finetune, evaluate, register"):
        session["run"].artifact("student")
