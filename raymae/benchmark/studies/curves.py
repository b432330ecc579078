"""`curves`: pre-training targets and decoders after equal training time, compared by probes on labelled clips."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raymae.benchmark.harness.result import Result
from raymae.benchmark.studies.frozen import tables_store
from raymae.config import Config, LatentConfig, to_dict
from raymae.config.recipes import RECIPES
from raymae.datasets.rows import rows_of
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALIBRATION_STEPS = 12
"""Steps timed to find how many fit into the seconds; the first third is skipped."""
PROBE_CLIPS = 100_000
"""Larger than any table, so that all labelled clips are probed."""
MASKS = 4
"""Masks per clip with latent targets."""
PIXEL_LIGHT, PIXEL_FAITHFUL, LATENT = "pixel, light decoder", "pixel, local decoder of 16 blocks", "latent"


def variants(config: Config) -> dict[str, Config]:
    """Variants of a configuration by name: one encoder with three targets or decoders, and the widths of the recipe.

    With latent targets a step has a quarter of the clips, each under four masks.
    """
    train, model = config.pretrain, config.model
    pixel = replace(model, name="mae", masks_per_clip=1, latent=LatentConfig())
    latent = replace(model, name="latent", masks_per_clip=MASKS, norm_target=False)
    fewer = replace(train, global_batch_size=max(1, train.global_batch_size // MASKS), lr=train.peak_lr)
    return {
        PIXEL_LIGHT: replace(config, model=pixel),
        PIXEL_FAITHFUL: replace(config, model=replace(pixel, decoder="local", decoder_depth=16)),
        LATENT: replace(config, model=latent, pretrain=fewer),
    }


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Pre-train every variant on the pool for the same CPU seconds, with probes on labelled tables during training.

    All variants share the front end, encoder, crops, augmentation, batches and schedule of the recipe. The cosine
    schedule of a run ends with its seconds, so only the last point is a finished run. Seconds are CPU seconds of this
    process per thread, without the probes, so other processes hardly affect them. The probes are those of every
    pre-training (`raymae.training.tasks.probe_monitor`), here on all labelled clips of the tables' split train.

    `--json` keys: `runs`, a list of `variant`, `seed`, `seconds`, `steps`, `scores` (probe → values at each
    validation; the first is the untrained encoder), `step_seconds` (CPU seconds of all threads); `settings`.
    """

    pool: tuple[str, ...]
    """Tables of the unlabelled recordings."""
    tables: tuple[str, ...]
    """Tables with labels and groups; only their split train is read, for probes cross-validated by group."""
    recipe: str = "small"
    """Recipe for everything except the variants."""
    seconds: float = 480.0
    """CPU seconds of training per run and thread."""
    seeds: int = 3
    """Number of seeds per variant."""
    only: tuple[str, ...] = ()
    """Variants to run; the default is all."""
    precision: Literal["fp32", "bf16"] | None = None
    """Autocast type; the default is the recipe's."""
    threads: int = 1
    """Threads of torch."""
    figure: str | None = None
    """Draw the curves to this PNG file."""
    json: str | None = None
    """Write the numbers to this JSON file, after every run."""

    def run(self) -> Result:
        """Measure."""
        import torch

        torch.set_num_threads(self.threads)
        config = RECIPES[self.recipe]()
        configs = variants(config)
        chosen = {name: one for name, one in configs.items() if name in (self.only or (name,))}
        if not chosen:
            raise ValueError(f"--only {self.only}: valid are {', '.join(map(repr, configs))}")
        precision = self.precision or config.pretrain.precision
        runs: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as name:
            folder = Folder(name)
            store = tables_store(folder, config.audio, self.tables, self.pool)
            for seed in range(self.seeds):
                for variant, one in chosen.items():
                    train = replace(one.pretrain, pool_only=True, probe_clips=PROBE_CLIPS, precision=precision)
                    found = self._train(replace(one, seed=seed, pretrain=train), store, folder / f"{seed}-{len(runs)}")
                    runs.append({"variant": variant, "seed": seed, **found})
                    result = Result("curves", [], {"runs": runs, "settings": to_dict(config)}, summary(runs))
                    print(f"{variant}, seed {seed}\n{result.text}", flush=True)
                    self._save(result, runs)
        return result

    def _save(self, result: Result, runs: list[dict[str, Any]]) -> None:
        if self.json:
            result.save(self.json)
        if self.figure:
            from raymae.evaluation.png import png

            Path(self.figure).write_bytes(png(curves_figure(runs)))

    def _train(self, config: Config, store: FeatureStore, folder: Folder) -> dict[str, Any]:
        from raymae.benchmark.studies.timed_pretraining import TimedPretraining
        from raymae.training.trainer import Trainer
        from raymae.training.worker import BareSession

        def run(steps: int, name: str, probe_clips: int) -> TimedPretraining:
            train, artifact = config.pretrain, folder / name
            epochs = steps * train.global_batch_size / clips
            warmup = epochs * train.warmup_epochs / train.epochs
            train = replace(train, epochs=epochs, warmup_epochs=warmup, probe_clips=probe_clips)
            one = replace(config, pretrain=train)
            task = TimedPretraining(
                StageSpec(name="pretrain", kind="pretrain", config=one, artifact=artifact, store=store)
            )
            Trainer.start(task, BareSession(store, artifact), artifact).run()
            return task

        clips = len(rows_of(store.clips, "pool"))
        trial = run(CALIBRATION_STEPS, "trial", 0).step_seconds()
        task = run(max(1, round(self.seconds * self.threads / trial)), "run", config.pretrain.probe_clips)
        seconds = [spent / self.threads for spent in task.seconds]
        return {"step_seconds": task.step_seconds(), "seconds": seconds, "steps": task.steps, "scores": task.scores}


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """Final scores of every variant as a Markdown table: mean and range over the seeds."""
    names = list(runs[0]["scores"])
    lines = [f"| variant | steps | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    for variant, group in by_variant(runs).items():
        ends = {name: [run["scores"][name][-1] for run in group] for name in names}
        cells = [f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in ends.values()]
        lines.append(f"| {variant} | {np.mean([run['steps'][-1] for run in group]):.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_variant(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group the runs by variant."""
    return {name: [run for run in runs if run["variant"] == name] for name in dict.fromkeys(r["variant"] for r in runs)}


def curves_figure(runs: Sequence[dict[str, Any]]) -> Figure:
    """Figure of every score over the seconds: a line per variant (mean over the seeds) with a band (range)."""
    from matplotlib.figure import Figure

    names = list(runs[0]["scores"])
    figure = Figure(figsize=(9, 3 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True):
        for variant, group in by_variant(runs).items():
            seconds = np.mean([run["seconds"] for run in group], axis=0)
            values = np.array([run["scores"][name] for run in group])
            (line,) = axes.plot(seconds, values.mean(0), marker="o", label=variant)
            axes.fill_between(seconds, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(ylabel=name)
        axes.grid(alpha=0.3)
    axes.set_xlabel("CPU seconds of pre-training")
    figure.axes[0].legend()
    return figure
