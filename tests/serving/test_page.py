"""The page of a served classifier, in a real browser."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from tests.support.audio_files import TINY_AUDIO
from tests.support.browser import CHROMIUM, Tab, chromium
from tests.support.serving import NAMES, serving, until, write_small_classifier

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

RATE = TINY_AUDIO.sample_rate


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of a tone that rises through noise."""
    time = np.arange(5 * RATE) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (200 + 250 * time) * time) + 0.05 * np.random.default_rng(0).normal(size=len(time))
    path = tmp_path_factory.mktemp("audio") / "street <b>corner.wav"
    soundfile.write(path, wave, RATE)
    return path


def texts(selector: str) -> str:
    """A script for the text of elements."""
    return f"[...document.querySelectorAll('{selector}')].map(one => one.textContent)"


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_dropped_recording_is_drawn(browser: Tab, recording: Path, tmp_path: Path, labels: str) -> None:
    predictor = Predictor(write_small_classifier(tmp_path, labels), threads=1)
    expected = predictor(recording)
    with serving(predictor, ServeConfig()) as (port, _):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until("document.querySelector('#served').textContent")
        assert all(name in browser.run("document.querySelector('#served').textContent") for name in NAMES)
        browser.drop(recording, "#drop")
        browser.until("document.body.dataset.state !== 'ready' && document.body.dataset.state !== 'busy'")
        assert browser.run("document.body.dataset.state") == "done"
        text = browser.run("document.querySelector('#result').innerText")
        assert browser.run("document.querySelector('#scene').textContent") == predictor.label(
            np.array(list(expected.values()))
        )[0].replace(";", ", ")
        for name, share in expected.items():
            number = "< 0.1" if 0 < round(share, 6) < 0.001 else f"{100 * share:.1f}"
            assert re.search(rf"{re.escape(name)}\s+{number} %", text), f"{name} {share}: {text}"
        assert "street <b>corner.wav, 5 s" in text
        assert {"time (s)", "frequency (Hz)", "probability", "0 dB", "100 %", "1000"} <= {
            *text.replace("1k", "1000").split("\n")
        }
        assert browser.run("[...document.querySelectorAll('#legend li')].map(one => one.textContent).sort()") == sorted(
            NAMES
        )
        shapes = browser.run(
            f"document.querySelectorAll('#chart {'.step' if labels == 'multi' else 'g rect + rect'}').length"
        )
        assert shapes == len(NAMES) * (1 if labels == "multi" else len(predictor.windows(recording)))
        spectrogram = browser.run("document.querySelector('#spectrogram image').href.baseVal.length")
        assert spectrogram > 5000, "there is no picture"
        assert browser.complaints() == []


def test_errors_are_shown_until_the_next_recording(browser: Tab, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "large.wav").write_bytes(bytes(300_000))
    predictor = Predictor(write_small_classifier(tmp_path / "classifier"), threads=1)
    failed = "document.body.dataset.state === 'error' && document.querySelector('#error').innerText"
    with serving(predictor, ServeConfig(max_mb=0.2)) as (port, _):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until("document.querySelector('#served').textContent")
        for name, words in (("notes.txt", "can't be decoded"), ("large.wav", "0.3 MB; the server takes up to 0.2 MB")):
            browser.drop(tmp_path / name, "#drop")
            browser.until(f"({failed} || '').includes({name!r})")
            assert words in browser.run(failed)
            assert not browser.run("document.querySelector('#result').offsetHeight")
        browser.drop(recording, "#drop")
        browser.until("document.body.dataset.state === 'done'")
        assert not browser.run("document.querySelector('#error').offsetHeight")
    browser.drop(recording, "#drop")
    browser.until(failed)
    assert "could not be reached" in browser.run(failed)


class Places(Predictor):
    """A predictor that finds a scene in the first ten seconds, another one in the next, and so on."""

    def of_clips(self, clips: Any) -> Any:
        """Probabilities by the place of the clip."""
        found = np.full((len(clips), len(NAMES)), 0.1, np.float32)
        for row, clip in enumerate(clips):
            found[row, int(clip.start / 10)] = 0.7
        return found


def test_the_scenes_of_the_sample_are_drawn_and_saved(browser: Tab, tmp_path: Path) -> None:
    predictor = Places(write_small_classifier(tmp_path / "classifier"), threads=1)
    with serving(predictor, ServeConfig()) as (port, _):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until("document.querySelector('#served').textContent")
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.run("document.querySelector('#sample').click()")
        browser.until("document.body.dataset.state === 'done'")
        assert browser.run("document.querySelector('#several').textContent") == f"Along time: {' → '.join(NAMES[:3])}"
        assert browser.run(texts("#scenes .block text")) == NAMES[:3]
        places = browser.run(
            "[...document.querySelectorAll('#scenes .block rect')].map(one => +one.getAttribute('width'))"
        )
        assert places[0] == pytest.approx(places[1], rel=0.1)
        browser.run("document.querySelector('#save-json').click()")
        browser.run("document.querySelector('#save-csv').click()")
        until(lambda: {"sample.wav.json", "sample.wav.csv"} <= {path.name for path in tmp_path.iterdir()})
        assert browser.complaints() == []
    saved = json.loads((tmp_path / "sample.wav.json").read_text())
    assert [one["scene_label"] for one in saved["scenes"]] == NAMES[:3]
    with open(tmp_path / "sample.wav.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(saved["windows"])
    for row, window in zip(rows, saved["windows"], strict=True):
        assert row["scene_label"] == NAMES[int(window["start"] / 10)]
        assert {name: float(row[f"p_{name}"]) for name in NAMES} == window["probabilities"]


def test_a_saved_table_holds_no_formula(browser: Tab, tmp_path: Path) -> None:
    predictor = Places(write_small_classifier(tmp_path / "classifier"), threads=1)
    with serving(predictor, ServeConfig()) as (port, _):
        browser.open(f"http://127.0.0.1:{port}/")
        for text in ("=1+1", "-1", "@x", "+1"):
            assert browser.run(f"cell({text!r})") == f'"\'{text}"'
        assert browser.run("cell('a \"b\", c')") == '"a ""b"", c"'


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_cut_off(browser: Tab, recording: Path, tmp_path: Path, width: int) -> None:
    with serving(Predictor(write_small_classifier(tmp_path), threads=1), ServeConfig()) as (port, _):
        browser.size(width, 900)
        browser.open(f"http://127.0.0.1:{port}/")
        browser.drop(recording, "#drop")
        browser.until("document.body.dataset.state === 'done'")
        assert browser.run("document.documentElement.scrollWidth") <= width
        beyond = (
            "[...document.querySelectorAll('svg text')].filter(one => one.getBoundingClientRect().right > innerWidth"
        )
        assert browser.run(f"{beyond} || one.getBoundingClientRect().left < 0).map(one => one.textContent)") == []
