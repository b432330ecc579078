"""The page of a sweep: how far it is, what it found, and drawings of its trials."""

from __future__ import annotations

import html
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from raymae.config import Config, leaves, to_dict, to_text
from raymae.config.recipes import RECIPES
from raymae.console.bars import duration
from raymae.evaluation.report.document import Table
from raymae.evaluation.report.page import table_html, whole
from raymae.sweep.outcome import Outcome
from raymae.sweep.page.charts import bars, curves, heat_map, parallel, pareto
from raymae.sweep.page.importance import FEWEST, considered, importances
from raymae.sweep.page.svg import figure
from raymae.sweep.results import Record, settings_of
from raymae.sweep.standing import Standings
from raymae.sweep.tables import trials_table

PAGE = "sweep.html"
REFRESH_SECONDS = 10

State = Literal["running", "finished", "interrupted", "failed"]
STATES: dict[State, str] = {
    "running": "Running",
    "finished": "Finished",
    "interrupted": "Interrupted",
    "failed": "Ended by an error",
}
"""The heading of each state."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is."""

    state: State
    total: int
    """Number of trials."""
    known: int
    """Trials that an earlier start recorded."""
    done: int
    """Trials that have ended, the known ones included."""
    seconds: float
    """Since this start's first trial began."""

    @property
    def left(self) -> int:
        """Number of trials that have not ended."""
        return max(0, self.total - self.done)

    @property
    def eta(self) -> float | None:
        """Seconds until the last trial ends at the pace of this start; None before its first one has ended."""
        return self.left * self.seconds / (self.done - self.known) if self.done > self.known else None


def write_page(outcome: Outcome, progress: Progress) -> None:
    """Write the page; a sweep of hours doesn't end because its page can't be drawn."""
    try:
        outcome.folder.write_bytes(PAGE, sweep_page(outcome, progress).encode())
    except Exception:
        logging.getLogger(__name__).exception("the sweep's page could not be written")


def sweep_page(outcome: Outcome, progress: Progress) -> str:
    """The page as HTML; while the sweep runs its points aren't compared, and the browser reads the page again."""
    running = progress.state == "running"
    found: Standings = {} if running else outcome.standings
    title = f"Sweep of recipe {outcome.config.recipe or '-'}"
    style = files(__package__).joinpath("page.css").read_text()
    body = "\n".join([_head(title, outcome, progress, found), *_sections(outcome, found)])
    return whole(title, body, style, REFRESH_SECONDS if running else None)


def _head(title: str, outcome: Outcome, progress: Progress, found: Standings) -> str:
    winner = outcome.winner
    left = progress.left
    share = 100 * (progress.total - left) / max(1, progress.total)
    sentences = ["No trial has finished yet." if winner is None else f"Highest score: {_named(winner, outcome)}."]
    if found:
        sentences += outcome.sentences()
        best = outcome.best
        if best and best is not winner:
            sentences.append(f"Cheapest of these: {_named(best, outcome)}.")
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in _facts(outcome, progress)
    )
    return (
        f"<h1>{html.escape(title)}</h1>\n"
        f'<div class="verdict {progress.state}"><strong>{STATES[progress.state]}</strong>'
        f'<div class="progress"><div style="width:{share:.1f}%"></div></div>'
        f"{''.join(f'<p>{html.escape(one)}</p>' for one in sentences)}</div>\n<dl>{facts}</dl>"
    )


def _named(record: Record, outcome: Outcome) -> str:
    return f"{record.label}, {outcome.metric} {record.score:.4f}"


def _facts(outcome: Outcome, progress: Progress) -> Iterator[tuple[str, str]]:
    records = outcome.records
    counts = Counter(one.status for one in records)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none has ended"
    left = progress.left
    yield "trials", f"{ended}; {left} left of {progress.total}"
    if progress.state == "running" and left:
        eta = progress.eta
        yield "time left", "not known before a trial has ended" if eta is None else f"about {duration(eta)}"
    flops = sum(one.flops or 0.0 for one in records)
    spent = duration(sum(one.seconds for one in records))
    digits = 0 if flops > 1e14 else 2
    yield "cost so far", f"{spent} of trials; {flops / 1e12:,.{digits}f} TFLOP to train the finished ones one by one"
    yield "compared by", f"{outcome.metric} on split val"
    for axis in outcome.axes:
        yield "varied", axis.text()
    yield "written", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _sections(outcome: Outcome, found: Standings) -> Iterator[str]:
    records, axes, metric = outcome.records, outcome.axes, outcome.metric
    several = len(axes) > 2
    caption = "Best score and number of trials of each cell"
    caption += f", over all values of {', '.join(axis.path for axis in axes[2:])}." if several else "."
    yield _section("Scores", figure(heat_map(records, axes), f"{caption} In brackets: only stopped trials."))
    caption = "A line is a trial, the stronger the higher its score; dashed: stopped early; dotted: without a score."
    yield _section("Trials by their settings", figure(parallel(records, axes, metric), caption))
    level = [one.key for one in outcome.tied] if found else []
    plots = [_learning(records, metric), _cost(records, metric, level), _importance(outcome), _settings(outcome)]
    yield f'<div class="two">{"".join(plots)}</div>'
    yield _section("All trials", table_html(trials_table(records, axes, metric, found)))


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{inner}</section>"


def _text(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def _learning(records: Sequence[Record], metric: str) -> str:
    drawn = curves(records, metric)
    caption = "Score of each validation of the last stage; a trial's curve is here when the trial has ended."
    return _section("Learning curves", figure(drawn, caption) if drawn else _text("No validation is recorded yet."))


def _cost(records: Sequence[Record], metric: str, level: Sequence[str]) -> str:
    drawn = pareto(records, metric, level)
    caption = "Dashed: the trials that no other beats at the same or a smaller cost."
    caption += " Ringed: the winner and the points that can't be told from it." if level else ""
    return _section("Score against cost", figure(drawn, caption) if drawn else _text("No trial has finished yet."))


def _importance(outcome: Outcome) -> str:
    shares = importances(outcome.records, outcome.axes)
    count, finished = len(considered(outcome.records)), sum(one.status == "finished" for one in outcome.records)
    which = "the" if count == finished else f"{count} of the {finished}"
    caption = f"Share of the scores' variance, by fANOVA over {which} finished trials; rough if they are few."
    none = f"It takes {FEWEST} finished trials, and scores that differ."
    return _section("Importance of the settings", figure(bars(shares), caption) if shares else _text(none))


def _settings(outcome: Outcome) -> str:
    best = outcome.best if outcome.config.sweep.prefer == "cheap" else outcome.winner
    if best is None:
        return _section("Best settings", _text("No trial has finished yet."))
    recipe = outcome.config.recipe
    default = leaves(to_dict(RECIPES[recipe]() if recipe in RECIPES else Config()))
    found = {path: best.changes[path] for path in best.changes} | {
        path: value for path, value in settings_of(outcome.config, best.changes).items() if path != "recipe"
    }
    rows = [[path, _shown(value), _shown(default.get(path))] for path, value in found.items()]
    varied = frozenset((row, 1) for row in range(len(best.changes)))
    return _section("Best settings", table_html(Table(["setting", "best", "the recipe's"], rows, bold=varied)))


def _shown(value: object) -> str:
    return to_text(tuple(value) if isinstance(value, list) else value)
