"""Run a job for several seeds: every score as mean ± standard deviation, for papers (`seeds`).

Each seed is a run with its own run folder. Stages that don't depend on the seed (the feature store) are shared, and
finished ones are reused, so that a job that was stopped continues with the seeds that are missing.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymae.config import Config, redact, to_dict
from raymae.config.stages import Target, requires
from raymae.evaluation.report import model_title, result_table
from raymae.pipeline.run import run_plan
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder

METRICS = {"single": "macro_accuracy", "multi": "mAP"}
"""The score of a split, by `finetune.labels`."""
COLUMNS = ("seed", "model", "split", "clips", "metric", "score")
LATEX_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Spread:
    """The scores of one model on one split, a score per seed."""

    model: str
    split: str
    clips: int
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def text(self, plus_minus: str = "±") -> str:
        """Mean and deviation, three digits each."""
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" {plus_minus} {self.deviation:.3f}")


def run_seeds(config: Config, target: Target, storage: Folder) -> dict[str, Any]:
    """Run a job once, or for `config.seeds` seeds; the result, of several with the keys `seeds` and `summary`.

    Raises:
        ValueError: several seeds of a job that has no scores.
        TimeIsUpError: `max_hours`, which count for all seeds together, are over; finished seeds are kept.
    """
    if config.seeds == 1:
        return run_plan(config, target, storage)
    if not requires(target, "evaluate"):
        raise ValueError(f"seeds = {config.seeds} is for jobs that evaluate: jobs/evaluate.py and jobs/pipeline.py")
    started = time.time()
    results = {}
    for seed in range(config.seed, config.seed + config.seeds):
        print(f"\nseed {seed} ({seed - config.seed + 1} of {config.seeds})")
        results[seed] = run_plan(replace(config, seed=seed, seeds=1), target, storage, started)
    return conclude(config, results, storage, time.time() - started)


def conclude(config: Config, results: Mapping[int, dict[str, Any]], storage: Folder, seconds: float) -> dict[str, Any]:
    """Write and print the tables over all seeds."""
    metric = METRICS[config.finetune.labels]
    spreads = spreads_of({seed: result["metrics"] for seed, result in results.items()}, metric)
    first = next(iter(results.values()))
    names = [result["run_folder"].rpartition("/")[2] for result in results.values()]
    folder = storage / f"runs/{config.recipe or 'run'}-{first['job']}-{len(results)}-seeds-{digest(names)}"
    folder.write_json("config.json", to_dict(config))
    folder.write_bytes("scores.csv", scores_csv(results, metric).encode())
    folder.write_bytes("scores.tex", latex(spreads, metric, list(results)).encode())
    print(f"\n{metric}, mean ± standard deviation over seeds {', '.join(map(str, results))}:\n")
    print(markdown(spreads))
    print(f"\nevery score and the table for LaTeX: {redact(folder.url)}/scores.csv, scores.tex")
    result = {
        "job": first["job"],
        "recipe": config.recipe,
        "seconds": seconds,
        "run_folder": redact(folder.url),
        "seeds": {str(seed): one for seed, one in results.items()},
        "summary": summary(spreads),
    }
    folder.write_json("result.json", result)
    return result


def spreads_of(metrics: Mapping[int, Mapping[str, Any]], metric: str) -> list[Spread]:
    """The spreads of every model and split, in the order of the report, from `metrics[seed][model][split]`."""
    first = next(iter(metrics.values()))
    return [
        Spread(model, split, found["clips"], tuple(one[model][split][metric] for one in metrics.values()))
        for model, splits in first.items()
        for split, found in splits.items()
    ]


def summary(spreads: Sequence[Spread]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and scores by model and split, for JSON."""
    found: dict[str, dict[str, Any]] = {}
    for one in spreads:
        values = {"mean": one.mean, "sd": one.deviation, "scores": list(one.scores)}
        found.setdefault(one.model, {})[one.split] = values
    return found


def scores_csv(results: Mapping[int, dict[str, Any]], metric: str) -> str:
    """A line per seed, model and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for seed, result in results.items():
        for model, splits in result["metrics"].items():
            for split, found in splits.items():
                writer.writerow([seed, model, split, found["clips"], metric, found[metric]])
    return text.getvalue()


def columns_of(spreads: Sequence[Spread]) -> dict[str, int]:
    """The splits and their clips, in their order."""
    return {one.split: one.clips for one in spreads}


def rows_of(spreads: Sequence[Spread], plus_minus: str) -> list[list[str]]:
    """A line of cells per model, a cell per split."""
    cells: dict[str, list[str]] = {}
    for one in spreads:
        cells.setdefault(one.model, [model_title(one.model)]).append(one.text(plus_minus))
    return list(cells.values())


def markdown(spreads: Sequence[Spread]) -> str:
    """The table in Markdown."""
    header = ["model", *(f"{split} ({clips} clips)" for split, clips in columns_of(spreads).items())]
    return result_table(header, rows_of(spreads, "±"))


def latex(spreads: Sequence[Spread], metric: str, seeds: Sequence[int]) -> str:
    """The table for LaTeX (package booktabs), described in comments above it."""
    splits = columns_of(spreads)
    lines = [
        f"% {metric}, mean and standard deviation over the seeds {', '.join(map(str, seeds))}; package booktabs",
        "% clips: " + ", ".join(f"{split} {clips}" for split, clips in splits.items()),
        r"\begin{tabular}{l" + "r" * len(splits) + "}",
        r"\toprule",
        " & ".join(["model", *map(escape, splits)]) + r" \\",
        r"\midrule",
        *(" & ".join([escape(title), *cells]) + r" \\" for title, *cells in rows_of(spreads, r"$\pm$")),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)
