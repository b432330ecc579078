"""The page of a sweep: whole in itself, escaped, and true to the records, whatever the space and however far it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import SweepConfig
from raymae.config.recipes import RECIPES
from raymae.storage.folder import Folder
from raymae.sweep.outcome import Outcome
from raymae.sweep.page.charts import curves, heat_map, pareto
from raymae.sweep.page.importance import MOST, considered, importances
from raymae.sweep.page.page import PAGE, REFRESH_SECONDS, Progress, State, sweep_page, write_page
from raymae.sweep.points import Point
from raymae.sweep.results import Record, front
from raymae.sweep.space import drawn, parse_axis
from tests.support.browser import CHROMIUM, chromium

TWO = ("model.mask_ratio=0.6,0.75,0.9", "pseudo_label.coverage=0.3,0.5,0.7")
SIX = (
    "finetune.lr=log:1e-4..1e-2",
    "model.depth=5..9",
    "finetune.pool=cls,mean",
    "finetune.weight_decay=0..0.1",
    "model.mlp_ratio=2,4",
    "seed=0..40",
)
METRIC = "val/macro_accuracy"
NASTY = "OSError: </script><script>alert('&')</script>"


def trials(space: tuple[str, ...], count: int) -> list[Record]:
    """Trials of which every fourth failed, and the one after it was stopped."""
    found = []
    for number, values in enumerate(drawn([parse_axis(text) for text in space], count, 0)):
        status: Any = {2: "failed", 3: "stopped"}.get(number % 4, "finished")
        score = None if status == "failed" else 0.5 + number / 100
        history = [] if score is None else [{"percent": p, "step": 1.0, "score": score - 0.1} for p in (20.0, 40.0)]
        more: dict[str, Any] = {"error": NASTY} if status == "failed" else {"flops": 1e12 * (1 + number % 3)}
        found.append(Record(key=Point(values).key, changes=values, status=status, score=score, history=history, **more))
    return found


def outcome_of(folder: Path, space: tuple[str, ...], records: list[Record]) -> Outcome:
    config = replace(RECIPES["small"](), recipe="small", sweep=SweepConfig())
    axes = [parse_axis(text) for text in space]
    return Outcome(config=config, folder=Folder(str(folder)), axes=axes, metric=METRIC, records=records)


def progress(state: State, done: int, total: int = 12, known: int = 0) -> Progress:
    return Progress(state=state, total=total, known=known, done=done, seconds=60.0)


@pytest.mark.parametrize("space", [TWO[:1], SIX[:1], TWO, SIX], ids=["list", "range", "two", "six"])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_page_is_whole_in_itself_for_any_space(tmp_path: Path, space: tuple[str, ...], count: int) -> None:
    records = trials(space, count)
    page = sweep_page(outcome_of(tmp_path, space, records), progress("running", len(records)))
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org)", page)
    assert "alert('&')" not in page
    assert ("alert(&#x27;&amp;&#x27;)" in page) == any(one.error for one in records)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 2
    for one in drawings:
        for element in ElementTree.fromstring(one).iter():
            numbers = [element.get(name) for name in ("x", "y", "cx", "cy", "width", "height")]
            assert all(0 <= float(number) < 5000 for number in numbers if number is not None)
        assert "nan" not in one


def test_the_page_reads_itself_again_only_while_the_sweep_runs(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, TWO, trials(TWO, 5))
    write_page(outcome, progress("running", 5))
    assert b'http-equiv="refresh"' in outcome.folder.read_bytes(PAGE)
    assert b"time left" in outcome.folder.read_bytes(PAGE)
    write_page(outcome, progress("finished", 12))
    assert b'http-equiv="refresh"' not in outcome.folder.read_bytes(PAGE)
    assert b"time left" not in outcome.folder.read_bytes(PAGE)


def test_a_page_that_cannot_be_drawn_does_not_end_the_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = replace(trials(TWO, 1)[0], changes={})
    write_page(outcome_of(tmp_path, TWO, [broken]), progress("running", 1))
    assert "could not be written" in caplog.text


def test_the_time_left_is_of_the_trials_that_ended_here() -> None:
    assert progress("running", done=6, known=6).eta is None
    assert progress("running", done=9, known=6).eta == 60.0  # three in 60 s, three left


def test_every_cell_counts_its_trials_and_shows_the_best() -> None:
    axes = [parse_axis(text) for text in (*TWO, "seed=0..9")]
    place = {"model.mask_ratio": 0.6, "pseudo_label.coverage": 0.3}
    records = [
        Record(key=str(seed), changes=place | {"seed": seed}, status="finished", score=0.4 + seed / 10)
        for seed in range(3)
    ]
    texts = [one.text for one in ElementTree.fromstring(heat_map(records, axes)).iter("text")]
    assert ("3 trials" in texts, "0.600" in texts, "0.500" in texts) == (True, True, False)
    assert texts.count("–") == 8


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=12))
def test_nothing_beats_the_front(found: list[tuple[int, int]]) -> None:
    records = [
        Record(key=str(n), changes={}, status="finished", score=score / 10, flops=float(cost))
        for n, (cost, score) in enumerate(found)
    ]
    best = {(one.flops, one.score) for one in front(records)}
    beaten = {
        (a.flops, a.score)
        for a in records
        for b in records
        if (b.flops or 0) <= (a.flops or 0)
        and (b.score or 0) >= (a.score or 0)
        and (b.flops, b.score) != (a.flops, a.score)
    }
    assert best == {(one.flops, one.score) for one in records} - beaten


def test_the_setting_that_decides_the_score_is_the_important_one() -> None:
    axes = [parse_axis("model.depth=2..6"), parse_axis("finetune.pool=cls,mean")]
    records = [
        Record(key=str(n), changes=values, status="finished", score=values["model.depth"] / 10)
        for n, values in enumerate(drawn(axes, 10, 0))
    ]
    shares = importances(records, axes)
    assert shares["model.depth"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(records[:3], axes) == {}
    assert importances([replace(one, score=0.5) for one in records], axes) == {}


def test_trials_without_a_validation_or_a_cost_have_no_curve_and_no_place() -> None:
    bare = [Record(key="a", changes={}, status="finished", score=0.5), Record(key="b", changes={}, status="failed")]
    assert curves(bare, METRIC) is None
    assert pareto(bare, METRIC) is None


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_the_page_and_reads_it_again(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, SIX, trials(SIX, 9))
    with chromium(tmp_path / "profile") as tab:
        write_page(outcome, progress("finished", 12))
        tab.open(f"file://{tmp_path}/{PAGE}")
        for width in (400, 1280):
            tab.size(width, 900)
            assert tab.run("document.documentElement.scrollWidth") <= width
        fills = set()
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            fills.add(tab.run("getComputedStyle(document.querySelector('.heat')).fill"))
        assert len(fills - {"rgb(0, 0, 0)", "none"}) == 2, "the colors of scores follow the scheme"
        assert tab.complaints() == []
        write_page(replace(outcome, records=[]), progress("running", 0))
        page = outcome.folder.read_bytes(PAGE).replace(f'content="{REFRESH_SECONDS}"'.encode(), b'content="1"')
        outcome.folder.write_bytes(PAGE, page)
        tab.open(f"file://{tmp_path}/{PAGE}")
        write_page(outcome, progress("finished", 12))
        tab.until("document.querySelector('.verdict.finished') !== null", seconds=20)


def test_importance_looks_at_so_many_trials_evenly() -> None:
    records = [
        Record(key=str(place), changes={"finetune.lr": 1e-3}, status="finished" if place % 2 else "failed", score=0.5)
        for place in range(1002)
    ]
    found = considered(records)
    assert len(found) == MOST
    places = [int(one.key) for one in found]
    assert places == sorted(set(places))
    assert places[0] < 10
    assert places[-1] > 990
    assert len(considered(records[:300])) == 150
