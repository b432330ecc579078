"""The estimated share of held-out clips with a sibling in training: from rates, and from generated recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from raymae.evaluation.leaks.audit import pairs_text
from raymae.evaluation.leaks.leak_share import Rate, reason_against, sibling_share
from raymae.evaluation.leaks.pairs import find_pairs
from tests.support.clip_tables import clip_table

RECORDINGS = 120
CLASSES = {"rain": [1.0, -0.6], "wind": [1.0, -1.9, 0.91], "traffic": [1.0, -0.9]}
"""Poles of each class: stationary noises of one spectrum in all recordings of a class."""

counts = st.integers(0, 400)


def rate(hits: int, clips: int = 400) -> Rate:
    """The rate of so many of some independent clips."""
    return Rate(share=hits / clips, clips=clips, units=clips)


@given(paired=st.integers(0, 360), null=counts, recall=counts)
def test_the_estimate_lies_in_its_interval_and_grows_with_the_pairs(paired: int, null: int, recall: int) -> None:
    if reason_against(rate(paired), rate(null), rate(recall)) is None:
        found = [sibling_share(rate(hits), rate(null), rate(recall)) for hits in (paired, paired + 40)]
        assert all(0 <= low <= one <= high <= 1 for one, (low, high) in found)
        assert found[0][0] <= found[1][0] + 1e-9
        if paired <= null:
            assert found[0][0] == found[0][1][0] == 0


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.8])
def test_nineteen_of_twenty_intervals_hold_the_truth(truth: float) -> None:
    rng, recall, false, hits = np.random.default_rng(0), 0.35, 0.03, 0
    for _ in range(200):
        paired = rate(rng.binomial(300, truth * recall + (1 - truth) * false), 300)
        low, high = sibling_share(paired, rate(rng.binomial(400, false)), rate(rng.binomial(400, recall)))[1]
        hits += low <= truth <= high
    assert hits >= 190


def test_clips_of_few_recordings_say_less() -> None:
    many, few = (Rate(share=0.2, clips=100, units=units).interval for units in (100, 10))
    assert few[0] < many[0] < 0.2 < many[1] < few[1]


@pytest.mark.parametrize("clips", [1, 49])
def test_few_clips_have_no_estimate(clips: int) -> None:
    assert f"it has {clips} clips" in str(reason_against(rate(1, clips), rate(0), rate(360)))
    assert "with a group" in str(reason_against(rate(30, 60), None, rate(360)))


def write_clips(folder: Path, *, background: bool) -> list[dict[str, Any]]:
    """Two clips of each recording: stationary noise of its class, with a `background` of the recording's own or not."""
    rows = []
    for number in range(RECORDINGS):
        label = list(CLASSES)[number % len(CLASSES)]
        rng = np.random.default_rng(number)
        poles = [(rng.uniform(0.05, 0.9) * np.pi, rng.uniform(0.95, 0.995)) for _ in range(6)]
        for part in range(2):
            noise = np.random.default_rng([number, part]).standard_normal((2, 3 * 16_000))
            wave = lfilter([1], CLASSES[label], noise[0])
            wave /= wave.std()
            if background:
                tones = sum(lfilter([1], [1, -2 * r * np.cos(w), r * r], noise[1]) for w, r in poles)
                wave = wave + 3 * tones / np.std(tones)
            path = folder / f"{number}-{part}.wav"
            sf.write(path, 0.1 * wave / np.abs(wave).max(), 16_000)
            rows.append({"path": str(path), "clip_id": path.name, "scene_label": label, "group": f"r{number}"})
    return rows


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Clips that are alike in all recordings of a class."""
    return write_clips(tmp_path_factory.mktemp("steady"), background=False)


@pytest.fixture(scope="module")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Clips with a background of their recording's own."""
    return write_clips(tmp_path_factory.mktemp("distinct"), background=True)


def by_recording(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole recordings held out: no clip has a sibling in training."""
    return [row | {"split": "test" if number >= 2 * RECORDINGS * 0.7 else "train"} for number, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ["steady", "distinct"])
def test_a_split_without_siblings_gives_no_alarm(kind: str, request: pytest.FixtureRequest) -> None:
    found = find_pairs(clip_table(by_recording(request.getfixturevalue(kind))))
    held = found["held_out"]["test"]
    assert held["paired_share"] < 0.2
    assert held["interval"] is None or held["interval"][0] == 0
    assert held["reason"] is None or "told apart" in held["reason"]
    assert "leaks" not in pairs_text(found)


def test_without_groups_pairs_are_listed_and_nothing_is_estimated(distinct: list[dict[str, Any]]) -> None:
    rows = [row | {"split": "test" if number % 2 else "train", "group": None} for number, row in enumerate(distinct)]
    found = find_pairs(clip_table(rows))
    assert len(found["pairs"]) > 20
    assert found["held_out"]["test"]["estimate"] is None
    assert "with a group" in found["held_out"]["test"]["reason"]
    assert f"{len(found['pairs']) - 20} more pairs: audit.json" in pairs_text(found)


def test_planted_siblings_are_found_and_their_share_estimated(distinct: list[dict[str, Any]]) -> None:
    """The second clips of half of the recordings are held out, and both of a sixth: 3 in 5 have a sibling."""
    first, last = RECORDINGS, 2 * RECORDINGS * 5 / 6
    held = [(number < first and number % 2 == 1) or number >= last for number in range(2 * RECORDINGS)]
    rows = [row | {"split": "test" if one else "train"} for row, one in zip(distinct, held, strict=True)]
    found = find_pairs(clip_table(rows))
    truth = RECORDINGS / 2 / sum(held)
    low, high = found["held_out"]["test"]["interval"]
    assert 0 < low <= truth <= high
    assert np.mean([bool(pair["same_group"]) for pair in found["pairs"]]) > 0.8
    assert "test leaks: at least" in pairs_text(found)
