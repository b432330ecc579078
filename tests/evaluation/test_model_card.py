"""Model cards, read as Hugging Face's Hub reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from raymae.evaluation.cards.model_card import card_facts, card_text, facts_beside, registered_loading
from raymae.evaluation.cards.yaml_lines import yaml_lines
from raymae.pipeline.evaluate import score_predictions
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO
from tests.support.predictions import NAMES, PREDICTIONS, judged

EXTRA = {"split": 'visit: "seed" 3 # --- ', "note": "Synthetic", "val_chose": ["student"]}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The result of an evaluation."""
    return judged(score_predictions(PREDICTIONS, NAMES, "single", PREDICTIONS["svm"]) | EXTRA)


@given(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers() | st.lists(st.text(), min_size=1), min_size=1))
def test_yaml_holds_any_text(values: dict[str, Any]) -> None:
    lines = list(yaml_lines({"x": [values, values], "y": values, "z": 0.25}))
    assert yaml.safe_load("\n".join(lines)) == {"x": [values, values], "y": values, "z": 0.25}


def card(facts: dict[str, Any] | None, names: list[str] | None = NAMES) -> str:
    classifier = {"class_names": names, "audio": TINY_AUDIO.front_end()}
    return card_text(classifier, facts, "scenes", registered_loading("scenes", "candidate"), ["onnx"])


def test_the_hub_reads_its_metadata(report: dict[str, Any]) -> None:
    found = ModelCard(card(card_facts(report, "student")))
    assert found.data.library_name == "raymae"
    assert found.data.pipeline_tag == "audio-classification"
    assert found.data.license is None
    assert {"acoustic-scene-classification", "onnx"} <= set(found.data.tags)
    read = {(one.dataset_split, one.metric_type): one.metric_value for one in found.data.eval_results}
    for split, scores in report["metrics"]["student"].items():
        assert read[split, "macro_accuracy"] == pytest.approx(scores["macro_accuracy"], abs=1e-6)
        assert read[split, "accuracy"] == pytest.approx(scores["accuracy"], abs=1e-6)
    assert {one.dataset_name for one in found.data.eval_results} == {f"Split {EXTRA['split']}"}


def test_it_says_what_a_user_has_to_know(report: dict[str, Any]) -> None:
    text = card(card_facts(report, "student"))
    assert report["verdict"]["sentence"] in text
    found = report["metrics"]["student"]["test_unseen"]
    low, high = found["macro_accuracy_ci"]
    assert f"{found['macro_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "`bus`, `park`, `tram`" in text
    assert f"resampled to {TINY_AUDIO.sample_rate} Hz" in text
    assert "models:/scenes@candidate" in text
    assert "Its weights were selected on val" in text
    assert "Synthetic." in text
    teacher = card(card_facts(report, "cnn"))  # the verdict is about the final model
    assert report["verdict"]["sentence"] not in teacher
    assert "None" not in text + teacher


def test_without_an_evaluation_it_has_no_scores() -> None:
    found = ModelCard(card(None))
    assert found.data.eval_results is None
    assert "how well it does is not known" in found.text
    assert ModelCard(card(None, None)).data.pipeline_tag == "feature-extraction"


def test_the_newest_evaluation_of_a_folder_is_found(report: dict[str, Any], tmp_path: Path) -> None:
    storage = Folder(str(tmp_path))
    classifier = storage / "artifacts/student/abc"
    assert facts_beside(classifier) is None
    for key, date in (("one", "2025-01-01"), ("two", "2025-03-01"), ("six", "2025-02-01")):
        made = report["made"] | {"date": date}
        (storage / f"artifacts/evaluate/{key}").finish(
            report | {"made": made, "artifacts": {"student": "artifacts/student/abc"}}
        )
    found = facts_beside(classifier)
    assert found is not None
    assert (found["made"]["date"], found["model"]) == ("2025-03-01", "student")
    assert facts_beside(storage / "artifacts/student/other") is None
    classifier.write_json("evaluation.json", json.loads(json.dumps(found)))
    assert card(facts_beside(classifier)) == card(found)
