"""Run a job for several seeds (`seeds`) or folds (`folds`): every score as mean ± standard deviation, for papers.

Each repeat is a run with its own run folder. Stages that all repeats share (the feature store) are made once, and
finished ones are reused, so that a job that was stopped continues with the repeats that are missing.
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
from raymae.datasets.clips import load_folds
from raymae.evaluation.report import model_title, result_table
from raymae.pipeline.run import run_plan
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder

METRICS = {"single": "macro_accuracy", "multi": "mAP"}
"""The score of a split, by `finetune.labels`."""
COLUMNS = ("model", "split", "clips", "metric", "score")
FILES = {"seed": "scores", "fold": "folds"}
"""Name of the tables without ending, by what is repeated."""
LATEX_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Spread:
    """The scores of one model on one split, a score per repeat."""

    model: str
    split: str
    clips: tuple[int, ...]
    """Clips of the split in each repeat: folds may differ in size."""
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the repeats."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the repeats (n - 1); None for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def text(self, plus_minus: str = "±") -> str:
        """Mean and deviation, three digits each."""
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" {plus_minus} {self.deviation:.3f}")


def runs_of(config: Config) -> dict[str, Config]:
    """The settings of every repeat by its seed or fold; ValueError where a fold can't be tested on."""
    if not config.folds:
        seeds = range(config.seed, config.seed + config.seeds)
        return {str(seed): replace(config, seed=seed, seeds=1) for seed in seeds}
    folds = load_folds(config.data, config.finetune.labels)
    return {name: replace(config, folds=False, data=replace(config.data, test_fold=name)) for name in folds}


def kind_of(config: Config) -> str:
    """What is repeated: seed or fold."""
    return "fold" if config.folds else "seed"


def run_repeats(config: Config, target: Target, storage: Folder) -> dict[str, Any]:
    """Run a job once, or for every seed or fold; the result, of several with the keys `seeds` or `folds`, `summary`.

    Raises:
        ValueError: several repeats of a job that has no scores.
        TimeIsUpError: `max_hours`, which count for all repeats together, are over; finished repeats are kept.
    """
    if config.seeds == 1 and not config.folds:
        return run_plan(config, target, storage)
    if not requires(target, "evaluate"):
        option = "folds" if config.folds else f"seeds = {config.seeds}"
        raise ValueError(f"{option} is for jobs that evaluate: jobs/evaluate.py and jobs/pipeline.py")
    started = time.time()
    runs, results = runs_of(config), {}
    for number, (name, one) in enumerate(runs.items(), start=1):
        print(f"\n{kind_of(config)} {name} ({number} of {len(runs)})")
        results[name] = run_plan(one, target, storage, started)
    return conclude(config, results, storage, time.time() - started)


def conclude(config: Config, results: Mapping[str, dict[str, Any]], storage: Folder, seconds: float) -> dict[str, Any]:
    """Write and print the tables over all repeats."""
    metric, kind = METRICS[config.finetune.labels], kind_of(config)
    spreads = spreads_of({name: result["metrics"] for name, result in results.items()}, metric)
    first = next(iter(results.values()))
    names = [result["run_folder"].rpartition("/")[2] for result in results.values()]
    folder = storage / f"runs/{config.recipe or 'run'}-{first['job']}-{len(results)}-{kind}s-{digest(names)}"
    over = f"{kind}s {', '.join(results)}"
    folder.write_json("config.json", to_dict(config))
    folder.write_bytes(f"{FILES[kind]}.csv", scores_csv(results, metric, kind).encode())
    folder.write_bytes(f"{FILES[kind]}.tex", latex(spreads, metric, over).encode())
    print(f"\n{metric}, mean ± standard deviation over {over}:\n")
    print(markdown(spreads))
    print(f"\nevery score and the table for LaTeX: {redact(folder.url)}/{FILES[kind]}.csv, {FILES[kind]}.tex")
    result = {
        "job": first["job"],
        "recipe": config.recipe,
        "seconds": seconds,
        "run_folder": redact(folder.url),
        f"{kind}s": dict(results),
        "summary": summary(spreads),
    }
    folder.write_json("result.json", result)
    return result


def spreads_of(metrics: Mapping[str, Mapping[str, Any]], metric: str) -> list[Spread]:
    """The spreads of every model and split, in the order of the report, from `metrics[repeat][model][split]`."""
    first = next(iter(metrics.values()))
    return [
        Spread(
            model,
            split,
            tuple(one[model][split]["clips"] for one in metrics.values()),
            tuple(one[model][split][metric] for one in metrics.values()),
        )
        for model, splits in first.items()
        for split in splits
    ]


def summary(spreads: Sequence[Spread]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and scores by model and split, for JSON."""
    found: dict[str, dict[str, Any]] = {}
    for one in spreads:
        values = {"mean": one.mean, "sd": one.deviation, "scores": list(one.scores)}
        found.setdefault(one.model, {})[one.split] = values
    return found


def scores_csv(results: Mapping[str, dict[str, Any]], metric: str, kind: str = "seed") -> str:
    """A line per repeat, model and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([kind, *COLUMNS])
    for name, result in results.items():
        for model, splits in result["metrics"].items():
            for split, found in splits.items():
                writer.writerow([name, model, split, found["clips"], metric, found[metric]])
    return text.getvalue()


def columns_of(spreads: Sequence[Spread]) -> dict[str, str]:
    """The splits and their clips, in their order; least and most clips where the repeats differ."""
    least_most = {one.split: (min(one.clips), max(one.clips)) for one in spreads}
    return {name: f"{least}" if least == most else f"{least} to {most}" for name, (least, most) in least_most.items()}


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


def latex(spreads: Sequence[Spread], metric: str, over: str) -> str:
    """The table for LaTeX (package booktabs), described in comments above it."""
    splits = columns_of(spreads)
    lines = [
        f"% {metric}, mean and standard deviation over {over}; package booktabs",
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
