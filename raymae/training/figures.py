"""Figures of training, drawn without a display: learning curves, and inputs beside their reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymae.config import AudioConfig
from raymae.evaluation.png import png
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.interval import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME_SHOWN = 24
"""Characters of a clip's name in a figure, its last ones."""
TICKS_KHZ = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
MOST_TICKS = 10
"""Of a frequency axis; others would overlap."""

PANELS = {
    "loss": ("loss",),
    "training score": ("train_accuracy", "train_precision"),
    "validation": ("val/",),
    "effective rank": ("probe/effective_rank",),
    "probe": ("probe/",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
"""Panels of the learning curves and the prefixes of their metrics' names; each other metric has its own."""
FEW_POINTS = 20
"""Fewer points of a panel are all shown."""
LONGEST_LABEL = 16
"""Characters of a panel's label in one line."""

NOT_DRAWN = ("epoch", "clips_per_second", "data_wait_share")
"""Metrics of speed and time, which are in MLflow."""


def learning_curves(events: Sequence[Mapping[str, Any]], title: str, kept: int | None = None) -> Figure:
    """The metrics of a stage over its steps, from its events {step, metrics}: a panel for each kind of `PANELS`.

    `kept` is the step whose weights the stage keeps, where that is decided.
    """
    panels = curve_panels({name for event in events for name in event["metrics"]})
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(7, 0.8 + 1.7 * max(1, len(panels))), layout="constrained")
    figure.suptitle(title)
    column = figure.subplots(max(1, len(panels)), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (panel, chosen) in zip(column, panels.items(), strict=False):
        drawn = []
        for name in chosen:
            points = [(event["step"], event["metrics"][name]) for event in events if name in event["metrics"]]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
            drawn += [value for _, value in points]
        if limits := scale(drawn):
            axes.set_ylim(*limits)
        if kept is not None:
            axes.axvline(kept, color="black", lw=1, ls="--", gid="kept")
        axes.set_ylabel(panel.replace(" ", "\n") if len(panel) > LONGEST_LABEL else panel)
        axes.grid(alpha=0.3)
        if chosen != [panel]:
            axes.legend(fontsize="small", ncols=1 + len(chosen) // 5)
    column[-1].set_xlabel("step" if kept is None else f"step (dashed: {kept}, whose weights are kept)")
    return figure


def scale(values: Sequence[float]) -> tuple[float, float] | None:
    """The range of an axis on which the first, large values of a loss don't flatten all others; None: all fit.

    It leaves out the largest fiftieth, where that reaches beyond twice the range of the rest.
    """
    finite = np.sort([value for value in values if np.isfinite(value)])
    if len(finite) < FEW_POINTS:
        return None
    low, high = float(finite[0]), float(finite[int(0.98 * (len(finite) - 1))])
    span = high - low
    return (low - 0.08 * span, high + 0.15 * span) if span > 0 and finite[-1] > high + span else None


def curve_panels(names: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of each panel: panels in the order of `PANELS`, then one for each other metric."""
    left = sorted(set(names) - set(NOT_DRAWN))
    panels = {}
    for panel, prefixes in PANELS.items():
        panels[panel] = [name for name in left if name.startswith(prefixes)]
        left = [name for name in left if name not in panels[panel]]
    return {panel: chosen for panel, chosen in (panels | {name: [name] for name in left}).items() if chosen}


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A clip for a figure; all arrays (T, F)."""

    name: str
    log_mel: NDArray[np.floating]
    """Normalised."""
    removed: NDArray[np.bool_]
    maps: Mapping[str, NDArray[np.floating]]
    """By title, what the model makes of it."""


def reconstruction_figure(clips: Sequence[Reconstruction], audio: AudioConfig, title: str) -> Figure:
    """A row per clip: the input, its part visible to the encoder (removed is white), and maps on the same scale."""
    nats = [{name: _nats(values, audio) for name, values in clip.maps.items()} for clip in clips]
    rows = [_inputs(clip, audio) | maps for clip, maps in zip(clips, nats, strict=True)]
    return _panel_figure([clip.name for clip in clips], rows, [{} for _ in clips], audio, title)


def component_figure(clips: Sequence[Reconstruction], audio: AudioConfig, title: str) -> Figure:
    """A row per clip: the input, its part visible to the encoder, and maps of features on a scale of their own."""
    rows, maps = [_inputs(clip, audio) for clip in clips], [clip.maps for clip in clips]
    return _panel_figure([clip.name for clip in clips], rows, maps, audio, title)


def _nats(values: NDArray[np.floating], audio: AudioConfig) -> NDArray[np.floating]:
    return values * audio.norm_scale + audio.norm_mean


def _inputs(clip: Reconstruction, audio: AudioConfig) -> dict[str, Any]:
    nats = _nats(clip.log_mel, audio)
    visible = f"visible to the encoder ({1 - clip.removed.mean():.0%})"
    return {"input": nats, visible: np.where(clip.removed, np.nan, nats)}


def _panel_figure(
    names: Sequence[str],
    powers: Sequence[Mapping[str, NDArray[np.floating]]],
    others: Sequence[Mapping[str, NDArray[np.floating]]],
    audio: AudioConfig,
    title: str,
) -> Figure:
    """A row per clip of panels over the same seconds and bands: log powers on the scale of the first, `others` on their
    own scale."""
    from matplotlib.figure import Figure

    columns = len(powers[0]) + len(others[0])
    figure = Figure(figsize=(3.5 * columns + 0.5, 0.7 + 2.0 * len(names)), layout="constrained")
    figure.suptitle(title)
    bands, labels = _frequency_ticks(audio)
    for line, name, power, other in zip(
        figure.subplots(len(names), columns, squeeze=False), names, powers, others, strict=True
    ):
        parts = (
            (list(line[: len(power)]), power, "ln power", "viridis"),
            (list(line[len(power) :]), other, "target", "coolwarm"),
        )
        for axes, panels, label, cmap in parts:
            if not panels:
                continue
            low, high = np.percentile(next(iter(panels.values())), [1, 99])
            for one, (panel, values) in zip(axes, panels.items(), strict=True):
                image = one.imshow(
                    values.T,
                    origin="lower",
                    aspect="auto",
                    interpolation="nearest",
                    cmap=cmap,
                    vmin=low,
                    vmax=high,
                    extent=(0, len(values) * audio.hop_length / audio.sample_rate, -0.5, audio.n_mels - 0.5),
                )
                one.set_yticks(bands, labels)
                one.set_title(panel, fontsize="medium")
            figure.colorbar(image, ax=axes, label=label)
        line[0].set_ylabel(
            f"{name if len(name) <= NAME_SHOWN else '…' + name[1 - NAME_SHOWN :]}\nkHz", fontsize="small"
        )
        for one in line:
            one.set_xlabel("seconds" if name == names[-1] else "")
    return figure


def _frequency_ticks(audio: AudioConfig) -> tuple[list[int], list[str]]:
    """The mel bands nearest to round frequencies, and those frequencies in kHz, as text."""
    from raymae.audio.logmel import mel_bank

    peaks = mel_bank(audio).argmax(axis=1) * audio.sample_rate / audio.n_fft / 1000
    ticks: dict[int, str] = {}
    for khz in TICKS_KHZ:
        band = int(np.abs(peaks - khz).argmin())
        apart = not ticks or band - max(ticks) >= audio.n_mels / MOST_TICKS
        if audio.f_min / 1000 <= khz <= audio.f_high / 1000 and apart:
            ticks[band] = f"{khz:g}"
    return list(ticks), list(ticks.values())


CURVES = "figures/learning_curves.png"

DRAW_SECONDS = 60.0
"""Least seconds between two drawings, which stop the training for a second or two."""


def final_curves(artifact: Folder, name: str) -> bytes:
    """The learning curves of a finished stage as a PNG, with the step whose weights it keeps.

    Drawn where they are shown: workers would all wait for the one that imports Matplotlib and draws.
    """
    return png(learning_curves(read_events(artifact), name, artifact.result()["selection"]["step"]))


class FigureWriter:
    """Draws the figures of one stage, at most every `DRAW_SECONDS`."""

    def __init__(self, artifact: Folder, title: str) -> None:
        self.artifact, self.title = artifact, title
        self._events: list[dict[str, Any]] = []
        self._interval = Interval(DRAW_SECONDS)

    def due(self) -> bool:
        """Whether the last drawing is long enough ago."""
        return self._interval.is_over()

    def draw(self, event: dict[str, Any], figures: Mapping[str, Figure]) -> list[str]:
        """Write the curves up to `event`, replacing the last ones, and `figures` by step; returns the files' names."""
        step = event["step"]
        files = {f"figures/{name}-{step:09d}.png": figure for name, figure in figures.items()}
        files[CURVES] = learning_curves([*self._before(step), event], self.title)
        for name, figure in files.items():
            self.artifact.write_bytes(name, png(figure))
        self._interval.restart()
        return list(files)

    def _before(self, step: int) -> list[dict[str, Any]]:
        """The events before a step, each read once; later ones are left over from before a restart."""
        last = self._events[-1]["step"] if self._events else -1
        self._events += [event for event in read_events(self.artifact, after=last) if event["step"] < step]
        return self._events
