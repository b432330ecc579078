"""The page of a report in a browser: its width, its script, its sounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from raymae.evaluation.report import write_report
from raymae.evaluation.report.document import Sample
from raymae.evaluation.report.mistakes import RATE, mp3, picture
from raymae.pipeline.evaluate import score_predictions
from raymae.storage.folder import Folder
from tests.support.browser import CHROMIUM, Tab, chromium
from tests.support.predictions import NAMES, PREDICTIONS, judged

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser with the page of a report that has a mistake to listen to."""
    folder = tmp_path_factory.mktemp("report")
    extra = {
        "split": "visit, seed 3",
        "note": None,
        "train_seconds": dict.fromkeys(PREDICTIONS, 1.0),
        "val_chose": [],
        "quarantined": {},
        "silent": {},
        "clips": None,
        "embeddings": None,
    }
    report = judged(score_predictions(PREDICTIONS, NAMES, "single", PREDICTIONS["svm"]) | extra)
    seen, heard = picture(noise(100, 32)), mp3(noise(RATE), RATE)
    sample = Sample(title="bus, taken for tram", lines=["test"], picture=seen, audio=heard)
    write_report(report, Folder(str(folder)), [sample])
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        found.open(f"file://{folder}/report.html")
        yield found


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_wider_than_the_window(tab: Tab, width: int) -> None:
    tab.size(width, 900)
    assert tab.run("document.documentElement.scrollWidth") <= width
    parts = "[...document.querySelectorAll('section > div > *, .verdict, dl')]"
    assert tab.run(f"{parts}.filter(one => one.scrollWidth > innerWidth).length") == 0
    assert tab.complaints() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_seen_on_its_ground(tab: Tab, theme: str) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    style = "getComputedStyle(document.body)"
    light = [sum(map(int, tab.run(f"{style}.{one}").strip("rgb()").split(","))) for one in ("color", "backgroundColor")]
    assert (light[0] < 200 and light[1] > 600) if theme == "light" else (light[0] > 600 and light[1] < 200)


def test_tables_are_sorted_by_a_click(tab: Tab) -> None:
    column = "[...document.querySelector('#s0 table').tBodies[0].rows].map(row => row.cells[1].textContent)"
    heading = "document.querySelectorAll('#s0 th')[1]"
    first = tab.run(column)
    for direction in ("descending", "ascending"):
        tab.run(f"{heading}.querySelector('button').click()")
        assert tab.run(f"{heading}.getAttribute('aria-sort')") == direction
        assert tab.run(column) == sorted(first, reverse=direction == "descending")


def test_mistakes_can_be_played(tab: Tab) -> None:
    tab.run("document.querySelector('audio').preload = 'metadata'")
    tab.until("document.querySelector('audio').readyState > 0", 20)
    assert tab.run("document.querySelector('audio').duration") == pytest.approx(1, abs=0.2)
    assert tab.complaints() == []
