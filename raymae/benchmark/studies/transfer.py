"""`transfer`: gain from pre-training and unlabelled clips on seen and unseen devices, against baselines without them.

Every table is one run of a protocol (labelled and unlabelled clips, held-out splits); all share one pre-training on the
pool. The stages of a table are kept in the storage, so the same command resumes a stopped benchmark.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymae.benchmark.harness.result import Result
from raymae.config import AugmentConfig, Config
from raymae.config.paths import changed, from_text
from raymae.config.recipes import RECIPES
from raymae.evaluation.baselines import SVMS, SvmKind
from raymae.storage.folder import open_storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Row of the table → split → macro accuracy by table."""

SVM_ROWS: tuple[SvmKind, ...] = SVMS
NETWORKS = ("cnn", "finetune_scratch", "finetune_frozen", "finetune", "student", "consistency")
"""Each is run with and without domain generalisation; tables keep this order."""
WITH, WITHOUT = "", " (no generalisation)"
"""Suffixes of the row name of a network."""


def without_generalisation(config: Config) -> Config:
    """Remove domain generalisation from a run: no random EQ, no Freq-MixStyle and no band-mean subtraction.

    Affects fine-tuning and consistency training. Pre-training is unchanged, since all runs share it.
    """

    def plain(augment: AugmentConfig) -> AugmentConfig:
        return replace(augment, eq_p=0.0, mixstyle_p=0.0, responses=(), response_p=None)

    finetune = replace(
        config.finetune, subtract_band_mean=False, with_raw=False, augment=plain(config.finetune.augment)
    )
    consistency = replace(config.consistency, strong=plain(config.consistency.strong))
    return replace(config, finetune=finetune, consistency=consistency)


def run_config(recipe: Config, table: str, pool: Sequence[str], *, generalised: bool, baselines: bool) -> Config:
    """Configuration of one run of a table, which evaluates every network; `baselines` adds the SVMs."""
    svms = SVM_ROWS if baselines else ()
    config = replace(
        recipe,
        data=replace(recipe.data, dataset="table", tables=(table,), pool_tables=tuple(pool)),
        pretrain=replace(recipe.pretrain, pool_only=True, probe_clips=0),
        evaluate=replace(recipe.evaluate, baselines=(*svms, "cnn"), ablation=("scratch", "frozen"), probe_clips=0),
        unlabelled=("pseudo_labels", "consistency"),
    )
    return config if generalised else without_generalisation(config)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Train and evaluate all models on every table; prints mean ± standard deviation over the tables, and the
    differences paired by table.

    Models: five support vector machines on log-mel statistics; a small CNN from scratch, with the augmentation of
    fine-tuning, for its FLOPs or `evaluate.cnn_steps`; the encoder fine-tuned from random weights, pre-trained on the
    pool and frozen, fine-tuned from there, with pseudo-labels and with consistency training; each network with and
    without domain generalisation (random EQ, Freq-MixStyle, band-mean subtraction). Test splits are only scored, never
    used for training or selection.

    `--json` keys: `scores`, row → split → macro accuracy by table; `differences`, pair → split → differences by table;
    `tables`; `seconds`.
    """

    tables: tuple[str, ...]
    """Tables with some labelled clips, groups and splits whose names begin with test; each is a separate run."""
    pool: tuple[str, ...]
    """Tables of unlabelled recordings, the only ones used for pre-training."""
    recipe: str = "small"
    """Recipe for everything else."""
    settings: tuple[str, ...] = ()
    """Changes to the recipe, each as FIELD=VALUE with the dotted path of the field: pretrain.epochs=562."""
    storage: str = "raymae-storage"
    """Storage for the stages; finished stages in it are reused."""
    generalisation: tuple[bool, ...] = (True, False)
    """With domain generalisation, without it, or both."""
    figure: str | None = None
    """Draw the scores to this PNG file."""
    json: str | None = None
    """Write the numbers to this JSON file, after every table."""

    def run(self) -> Result:
        """Measure."""
        from raymae.benchmark.studies.side_by_side import run_side_by_side

        recipe = changed_recipe(self.recipe, self.settings)
        started, storage = time.time(), open_storage(self.storage)
        wanted = [(table, turn) for table in self.tables for turn in range(len(self.generalisation))]
        configs = [
            run_config(recipe, table, self.pool, generalised=self.generalisation[turn], baselines=turn == 0)
            for table, turn in wanted
        ]
        names = [f"{table}{self._suffix(turn)}" for table, turn in wanted]
        found: dict[tuple[str, int], Mapping[str, Any]] = {}
        result = Result("transfer")
        for number, evaluation in run_side_by_side(configs, names, storage):
            found[wanted[number]] = evaluation["metrics"]
            result = self._conclude(found, time.time() - started)
            if self.json:
                result.save(self.json)
        if self.figure:
            from pathlib import Path

            from raymae.evaluation.png import png

            Path(self.figure).write_bytes(png(scores_figure(result.values["scores"])))
        return result

    def _suffix(self, turn: int) -> str:
        return WITH if self.generalisation[turn] else WITHOUT

    def _conclude(self, found: Mapping[tuple[str, int], Mapping[str, Any]], seconds: float) -> Result:
        """Result over the tables whose runs are all finished, in the given order."""
        turns = range(len(self.generalisation))
        done = [table for table in self.tables if all((table, turn) in found for turn in turns)]
        scores: dict[str, dict[str, list[float]]] = {}
        for table in done:
            for turn in turns:
                add_scores(scores, found[table, turn], self._suffix(turn))
        return conclude(scores, done, seconds) if done else Result("transfer")


def changed_recipe(name: str, settings: Sequence[str]) -> Config:
    """Apply settings, each FIELD=VALUE, to a recipe; ValueError names an unknown field or a value of the wrong type."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; valid: {', '.join(RECIPES)}")
    found = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--settings {setting}: must be FIELD=VALUE, such as finetune.epochs=60")
        found[path] = from_text(Config, path, value)
    config: Config = changed(RECIPES[name](), found)
    return config


def add_scores(scores: dict[str, dict[str, list[float]]], metrics: Mapping[str, Any], suffix: str) -> None:
    """Add the macro accuracies of an evaluation on its test splits; `suffix` is appended to the names of networks."""
    for model, splits in metrics.items():
        row = model if model in SVM_ROWS else f"{model}{suffix}"
        for split, found in splits.items():
            if split.startswith("test"):
                scores.setdefault(row, {}).setdefault(split, []).append(found["macro_accuracy"])


def conclude(scores: Scores, tables: Sequence[str], seconds: float) -> Result:
    """Result with the tables of scores and of differences."""
    differences = paired(scores)
    values = {"scores": scores, "differences": differences, "tables": tables, "seconds": seconds}
    text = f"{score_table(scores, len(tables))}\n\nTable by table:\n\n{difference_table(differences)}"
    return Result("transfer", [], values, text)


def pairs(scores: Scores) -> dict[str, tuple[str, str]]:
    """Compared rows: name → (row, row that is subtracted)."""
    from raymae.evaluation.report import model_title

    baselines = [row for row in (*SVM_ROWS, "cnn", f"cnn{WITHOUT}") if row in scores]
    best = max(baselines, key=lambda row: sum(statistics.fmean(values) for values in scores[row].values()))
    wanted = [
        ("finetune", best),
        ("finetune", "finetune_scratch"),
        ("finetune", "finetune_frozen"),
        ("student", "finetune"),
        ("consistency", "finetune"),
    ]
    wanted += [("student", best), ("consistency", best)]
    wanted += [(name, f"{name}{WITHOUT}") for name in NETWORKS]
    found = {}
    for row, other in wanted:
        if row in scores and other in scores:
            titles = [row_title(name, model_title) for name in (row, other)]
            found[f"{titles[0]} − {titles[1]}"] = (row, other)
    return found


def row_title(row: str, title: Any) -> str:
    """Title of a row; `title` maps a model to its title."""
    model = row.removesuffix(WITHOUT)
    return f"{title(model)}{row.removeprefix(model)}"


def paired(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """Differences by table: pair → split → score of the first row minus score of the second."""
    return {
        name: {
            split: [one - another for one, another in zip(values, scores[other][split], strict=True)]
            for split, values in scores[row].items()
        }
        for name, (row, other) in pairs(scores).items()
    }


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.3f}{deviation}"


def in_order(scores: Scores) -> list[str]:
    """Available rows in the order of table and figure."""
    order = [*SVM_ROWS, *(f"{name}{suffix}" for name in NETWORKS for suffix in (WITHOUT, WITH))]
    return [row for row in order if row in scores]


def score_table(scores: Scores, tables: int) -> str:
    """Mean and standard deviation of every row as a Markdown table."""
    from raymae.evaluation.report import model_title, result_table

    splits = list(next(iter(scores.values())))
    header = [f"macro accuracy, {tables} table{'s' if tables > 1 else ''}", *splits]
    rows = [
        [row_title(row, model_title), *(spread(scores[row][split]) for split in splits)] for row in in_order(scores)
    ]
    return result_table(header, rows)


def difference_table(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Mean and standard deviation of the differences, and the number of tables in which they are positive."""
    from raymae.evaluation.report import result_table

    splits = list(next(iter(differences.values()), {}))
    rows = [
        [name, *(f"{spread(found[split], '+')} ({sum(value > 0 for value in found[split])})" for split in splits)]
        for name, found in differences.items()
    ]
    return result_table(["difference (tables in which it is positive)", *splits], rows)


def scores_figure(scores: Scores) -> Figure:
    """Figure with one panel per split: a dot for the score on each table, a bar for the mean."""
    from matplotlib.figure import Figure

    from raymae.evaluation.report import model_title

    rows = in_order(scores)
    splits = list(next(iter(scores.values())))
    figure = Figure(figsize=(5.5 + 3.5 * len(splits), 1 + 0.35 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    places = range(len(rows), 0, -1)
    for axes, split in zip(panels, splits, strict=True):
        for place, row in zip(places, rows, strict=True):
            values = scores[row][split]
            axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markeredgewidth=0)
            axes.plot([statistics.fmean(values)] * 2, [place - 0.3, place + 0.3], color="C1", linewidth=2.5)
        axes.set(xlabel=f"macro accuracy on {split}", title=split)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(list(places), [row_title(row, model_title) for row in rows])
    return figure
