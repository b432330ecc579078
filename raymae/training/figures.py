"""Figures of training, drawn without a display: learning curves, and inputs beside their reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymae.config import AudioConfig
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.storage.png import png
from raymae.training.interval import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TICKS_KHZ = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)

PANELS = {
    "loss": ("loss",),
    "training score": ("train_accuracy", "train_precision"),
    "validation": ("val/",),
    "probe": ("probe/",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
"""Panels of the learning curves and the prefixes of their metrics' names; other metrics share one last panel."""

NOT_DRAWN = ("epoch", "clips_per_second", "data_wait_share")
"""Metrics of speed and time, which are in MLflow."""


def learning_curves(events: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The metrics of a stage over its steps, from its events {step, metrics}: a panel for each kind of `PANELS`."""
    panels = curve_panels({name for event in events for name in event["metrics"]})
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(8, 0.7 + 2.2 * max(1, len(panels))), layout="constrained")
    figure.suptitle(title)
    column = figure.subplots(max(1, len(panels)), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (panel, chosen) in zip(column, panels.items(), strict=False):
        for name in chosen:
            points = [(event["step"], event["metrics"][name]) for event in events if name in event["metrics"]]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_ylabel(panel)
        axes.grid(alpha=0.3)
        if chosen != [panel]:
            axes.legend(fontsize="small", ncols=1 + len(chosen) // 5)
    column[-1].set_xlabel("step")
    return figure


def curve_panels(names: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of each panel: panels in the order of `PANELS`, then one of all other metrics."""
    left = sorted(set(names) - set(NOT_DRAWN))
    panels = {}
    for panel, prefixes in PANELS.items():
        panels[panel] = [name for name in left if name.startswith(prefixes)]
        left = [name for name in left if name not in panels[panel]]
    return {panel: chosen for panel, chosen in (panels | {"other": left}).items() if chosen}


def reconstruction_figure(
    log_mel: NDArray[np.floating],
    removed: NDArray[np.bool_],
    reconstruction: NDArray[np.floating],
    audio: AudioConfig,
    title: str,
) -> Figure:
    """A clip, the part visible to the encoder (`removed` is white) and the reconstruction; all (T, F), normalised."""
    return _panel_figure(
        {**_inputs(log_mel, removed, audio), "reconstruction": _nats(reconstruction, audio)}, audio, title
    )


def component_figure(
    log_mel: NDArray[np.floating],
    removed: NDArray[np.bool_],
    components: Mapping[str, NDArray[np.floating]],
    audio: AudioConfig,
    title: str,
) -> Figure:
    """A clip, the part visible to the encoder, and maps of features below, on a scale of their own; all (T, F)."""
    return _panel_figure(_inputs(log_mel, removed, audio), audio, title, components)


def _nats(values: NDArray[np.floating], audio: AudioConfig) -> NDArray[np.floating]:
    return values * audio.norm_scale + audio.norm_mean


def _inputs(log_mel: NDArray[np.floating], removed: NDArray[np.bool_], audio: AudioConfig) -> dict[str, Any]:
    nats = _nats(log_mel, audio)
    return {"input": nats, f"visible to the encoder ({1 - removed.mean():.0%})": np.where(removed, np.nan, nats)}


def _panel_figure(
    power: Mapping[str, NDArray[np.floating]],
    audio: AudioConfig,
    title: str,
    others: Mapping[str, NDArray[np.floating]] | None = None,
) -> Figure:
    """Panels over the same seconds and bands: log powers on the scale of the first, `others` on their own scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(title)
    others = others or {}
    column = list(figure.subplots(len(power) + len(others), 1, sharex=True))
    for panels, label, cmap in ((power, "ln power", "viridis"), (others, "target", "coolwarm")):
        if not panels:
            continue
        axes, column = column[: len(panels)], column[len(panels) :]
        first = next(iter(panels.values()))
        low, high = np.percentile(first, [1, 99])
        for one, (name, values) in zip(axes, panels.items(), strict=True):
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
            bands, labels = _frequency_ticks(audio)
            one.set_yticks(bands, labels)
            one.set(title=name, ylabel="kHz")
        figure.colorbar(image, ax=axes, label=label)
    figure.axes[len(power) + len(others) - 1].set_xlabel("seconds")
    return figure


def _frequency_ticks(audio: AudioConfig) -> tuple[list[int], list[str]]:
    """The mel bands nearest to round frequencies, and those frequencies in kHz, as text."""
    from raymae.audio.logmel import mel_bank

    peaks = mel_bank(audio).argmax(axis=1) * audio.sample_rate / audio.n_fft / 1000
    ticks = [khz for khz in TICKS_KHZ if audio.f_min / 1000 <= khz <= audio.f_high / 1000]
    return [int(np.abs(peaks - khz).argmin()) for khz in ticks], [f"{khz:g}" for khz in ticks]


CURVES = "figures/learning_curves.png"

DRAW_SECONDS = 60.0
"""Least seconds between two drawings, which stop the training for a second or two."""


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
