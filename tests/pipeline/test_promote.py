"""The champion moves to a candidate that is better on the same held-out clips, and to no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from raymae.config import Config, PromoteConfig, TrackingConfig
from raymae.evaluation.paired_test import holm
from raymae.pipeline.best_baseline import against_best_baseline, baseline_line
from raymae.pipeline.promote import promote, verdict
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.tracker import Tracker
from tests.support.predictions import finish

CONFIG = Config(tracking=TrackingConfig(registered_model="scenes"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """One SQLite store for all tests: making its tables takes seconds."""
    yield open_storage(str(tmp_path_factory.mktemp("storage")))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def config(storage: Folder, request: pytest.FixtureRequest) -> Config:
    """A registered model of its own."""
    name = f"scenes-{request.node.name}".replace("[", "-").replace("]", "")
    return replace(CONFIG, tracking=replace(CONFIG.tracking, registered_model=name))


def register(config: Config, storage: Folder, key: str, share: float | None, drop: int = 0) -> str:
    """A new candidate whose evaluation says that it is right with probability `share`; its URI."""
    if share is not None:
        finish(storage / f"artifacts/evaluate/{key}", share, 1, drop=drop)
    client, name = Tracker(config.tracking, storage).client, config.tracking.registered_model
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    tags = {"evaluation": key, "model": "student"}
    number = client.create_model_version(name, Path(storage.path()).as_uri(), tags=tags).version
    client.set_registered_model_alias(name, "candidate", number)
    return f"models:/{name}/{number}"


def champion(config: Config, storage: Folder) -> str | None:
    found = Tracker(config.tracking, storage).version("champion")
    return found and found.uri


def test_the_first_candidate_is_the_champion_and_a_better_one_follows(
    config: Config, storage: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    first = register(config, storage, "bad", 0.3)
    assert promote(replace(config, storage=storage.url))["promoted"]
    assert champion(config, storage) == first
    assert promote(replace(config, storage=storage.url))["reason"] == "it is the champion already"
    second = register(config, storage, "good", 0.95)
    result = promote(replace(config, storage=storage.url))
    assert result["promoted"]
    assert (result["candidate"], result["champion"]) == (second, first)
    assert all(split.startswith("test") for split in result["differences"])
    assert champion(config, storage) == second
    said = capsys.readouterr().out
    assert f"{second} becomes the champion" in said
    assert "| candidate | champion |" in said.replace("  ", " ")


@pytest.mark.parametrize(
    ("key", "share", "why"), [("worse", 0.3, "it is worse on test"), ("alike", 0.95, "better on no")]
)
def test_what_is_not_better_stays_a_candidate(
    config: Config, storage: Folder, key: str, share: float, why: str
) -> None:
    first = register(config, storage, "champion", 0.95)
    promote(replace(config, storage=storage.url))
    register(config, storage, key, share)
    result = promote(replace(config, storage=storage.url))
    assert not result["promoted"]
    assert why in result["reason"]
    assert champion(config, storage) == first


def test_over_baselines_asks_for_more_than_the_champion(
    config: Config, storage: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CNN of every evaluation is right with probability 0.5, and a little more by chance."""
    strict = replace(config, storage=storage.url, promote=PromoteConfig(over="baselines"))
    first = register(config, storage, "weak", 0.2)
    result = promote(strict)
    assert not result["promoted"]
    assert result["baseline"] == "cnn"
    assert result["differences"] is None
    assert result["reason"].startswith("against the baseline cnn it is ")
    assert champion(config, storage) is None
    assert promote(replace(config, storage=storage.url))["promoted"]
    register(config, storage, "near", 0.5)
    assert not promote(strict)["promoted"]
    assert champion(config, storage) == first
    strong = register(config, storage, "strong", 0.95)
    result = promote(strict)
    assert result["promoted"]
    assert champion(config, storage) == strong
    together = [*result["differences"].values(), *result["baseline_differences"].values()]
    assert [one["p_holm"] for one in together] == holm([one["p_value"] for one in together])
    assert "| baseline cnn |" in " ".join(capsys.readouterr().out.split())
    assert promote(strict)["reason"] == "it is the champion already"


def test_the_best_baseline_is_that_of_the_test_splits() -> None:
    def compared(**second: float) -> dict[str, dict[str, float]]:
        return {
            split: {"first": 0.6, "second": value, "value": 0.6 - value, "p_holm": 0.5}
            for split, value in second.items()
        }

    report = {
        "labels": "single",
        "comparisons": {
            "svm": compared(val=0.9, test_seen=0.3, test_unseen=0.3),
            "cnn": compared(val=0.1, test_seen=0.2, test_unseen=0.5),
            "finetune": compared(test_seen=0.9, test_unseen=0.9),  # no baseline
        },
    }
    found = against_best_baseline(report)
    assert found is not None
    assert found[0] == "cnn"
    assert list(found[1]) == ["test_seen", "test_unseen"]
    assert baseline_line(report) == (
        "cnn; Macro accuracy: test_seen 0.600 against 0.200 (+0.400, Holm's p 0.5000); "
        "test_unseen 0.600 against 0.500 (+0.100, Holm's p 0.5000)"
    )
    assert against_best_baseline({"labels": "single", "comparisons": {"svm": compared(val=0.1)}}) is None
    assert against_best_baseline({"labels": "single", "comparisons": {}}) is None


def test_one_split_does_not_make_up_for_another() -> None:
    found = {
        "test_a": {"value": 0.1, "p_value": 0.01, "p_holm": 0.03},
        "test_b": {"value": -0.1, "p_value": 0.01, "p_holm": 0.06},  # a loss counts without the correction
        "test_c": {"value": -0.1, "p_value": 0.3, "p_holm": 0.3},
    }
    assert verdict(found, PromoteConfig()) == (False, "it is worse on test_b (p ≤ 0.05)")
    assert verdict({"test_a": found["test_a"], "test_c": found["test_c"]}, PromoteConfig())[0]
    assert not verdict(found, PromoteConfig(level=0.001))[0]
    assert not verdict({"test_a": found["test_a"] | {"p_holm": 0.06}}, PromoteConfig())[0]


def test_what_cannot_be_compared_is_an_error(config: Config, storage: Folder) -> None:
    with pytest.raises(ValueError, match=r"has no (registry|model)"):
        promote(replace(config, storage=storage.url))
    register(config, storage, "gone", None)
    with pytest.raises(ValueError, match=r"can't be compared: its evaluation gone is not in --storage"):
        promote(replace(config, storage=storage.url))
    assert champion(config, storage) is None
    register(config, storage, "whole", 0.5)
    promote(replace(config, storage=storage.url))
    register(config, storage, "fewer", 0.9, drop=7)
    with pytest.raises(ValueError, match=r"can't be compared: their clips of .* differ: .*evaluate both with the same"):
        promote(replace(config, storage=storage.url))


def test_the_two_aliases_differ() -> None:
    with pytest.raises(ValueError, match=r"promote.alias = candidate is tracking\.alias"):
        Config(promote=PromoteConfig(alias="candidate"))
