"""The leak audit of a run's clips (jobs/audit.py): a printed table, a Markdown page, JSON and a figure. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from raymae.config import Config, redact, to_dict
from raymae.datasets.clips import load_rows, own_folder
from raymae.datasets.splits.assign import assign
from raymae.datasets.splits.split_file import table_hash
from raymae.evaluation.leaks.look_ups import LOOK_UPS, audit_splits
from raymae.evaluation.leaks.pairs import find_pairs
from raymae.evaluation.leaks.same_recording import PRECISION
from raymae.evaluation.png import png
from raymae.evaluation.report import result_table
from raymae.storage.checksums import digest
from raymae.storage.folder import open_storage

NOTE = (
    "siblings, same file: held-out clips whose group, or whose file by name and size, is in train or pool. Look-ups "
    "guess labels without audio, from those of train; in turn: the nearest in time, with each unit left out by itself."
)


SHOWN = 20
"""Same-recording pairs that the page shows; audit.json holds all."""
GROUPS = {True: "yes", False: "no", None: "unknown"}


def audit_run(config: Config) -> dict[str, Any]:
    """Audit the clips of `config.data`, print the result and write it below `config.storage`/audits/.

    Keys: job, recipe, folder, splits (`look_ups.audit_splits`) and, with audit.same_recording, same_recording
    (`pairs.find_pairs`). Raises ValueError for what `load_rows` and `assign` of `raymae.datasets` reject, and
    where no held-out split has a label.
    """
    storage = open_storage(config.storage)
    rows = load_rows(config.data, own_folder(storage))
    found = audit_splits(rows, config.data.split)
    if not any(one["held_out"] for one in found):
        raise ValueError(
            "nothing to audit: no clip of a split val or test… has a scene_label; give a --data.split.kind"
        )
    folder = storage / f"audits/{config.recipe or 'run'}-{audit_key(config, rows)}"
    result: dict[str, Any] = {"job": "audit", "recipe": config.recipe, "folder": redact(folder.url), "splits": found}
    text = audit_text(found)
    if config.audit.same_recording:
        result["same_recording"] = find_pairs(assign(rows, config.data.split))
        text += f"\n{pairs_text(result['same_recording'])}"
    folder.write_bytes("audit.md", text.encode())
    folder.write_json("audit.json", result)
    folder.write_bytes("look_ups.png", png(look_up_figure(found)))
    print(f"{text}\naudit.md, audit.json, look_ups.png: {redact(folder.url)}")
    return result


def audit_key(config: Config, rows: pa.Table) -> str:
    """Hash of the clips, the split and audit.same_recording, so that no audit overwrites another."""
    return digest([table_hash(rows), to_dict(config.data.split), config.audit.same_recording])


def audit_text(found: Sequence[dict[str, Any]]) -> str:
    """The result of `audit_splits` as a Markdown table with aligned columns."""
    header = ["split", "held out", "clips", "siblings", "same file", *LOOK_UPS.values(), "in turn"]
    rows = [
        [one["split"], name, f"{held['clips']:.0f}", _percent(held["sibling_share"]), _percent(held["same_file_share"])]
        + [_percent(held["look_ups"][key], held.get("sd", {}).get(key)) for key in LOOK_UPS]
        + [_percent(one["in_turn"])]
        for one in found
        for name, held in one["held_out"].items()
    ]
    return f"## Leaks between splits, and labels predictable from metadata\n\n{result_table(header, rows)}\n\n{NOTE}\n"


def pairs_text(found: dict[str, Any]) -> str:
    """The result of `find_pairs` as Markdown tables with aligned columns."""
    held_out, pairs = found["held_out"], found["pairs"]
    rows = [
        [name, str(held["clips"]), _percent(held["paired_share"]), _percent(held["estimate"]), _between(held)]
        for name, held in held_out.items()
    ]
    listed = [
        [one["clip_id"], one["sibling"], f"{one['score']:.2f}", GROUPS[one["same_group"]]] for one in pairs[:SHOWN]
    ]
    more = [f"{len(pairs) - SHOWN} more pairs: audit.json"] if len(pairs) > SHOWN else []
    parts = [
        "## Same-recording pairs: held-out clips that sound like a recording in train or pool",
        result_table(["held out", "clips", "in a pair", "estimated leak", "95 % interval"], rows),
        _how_measured(found),
        *(f"{name}: no estimate, because {held['reason']}." for name, held in held_out.items() if held["reason"]),
        *(
            f"{name} leaks: at least {_percent(held['interval'][0])} of its clips have a sibling in train or pool."
            for name, held in held_out.items()
            if held["interval"] and held["interval"][0] > 0
        ),
        *([result_table(["pair", "sibling", "score", "same group"], listed)] if listed else []),
        *more,
    ]
    return "\n\n".join(parts) + "\n"


def _between(held: dict[str, Any]) -> str:
    return "-" if held["interval"] is None else " to ".join(map(_percent, held["interval"]))


def _how_measured(found: dict[str, Any]) -> str:
    null = "unknown" if found["null_rate"] is None else _percent(found["null_rate"])
    return (
        f"{found['unread']} clips can't be read. Null rate (training clips that match one of their class from another "
        f"group): {null}. Recall (clips with a sibling that match): {_percent(found['recall'])}. The estimate corrects "
        f"for both, as far as the table's groups are right. Of pairs of known recordings, {PRECISION:.0%} were right."
    )


def _percent(share: float | None, deviation: float | None = None) -> str:
    """A share in per cent, with its standard deviation if given; "-" for None."""
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" if deviation is None else f"{100 * share:.1f} ± {100 * deviation:.1f} %"


def look_up_figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Bars of the look-ups' accuracies on each split's held-out clips, val aside, with their standard deviations."""
    places = [
        (f"{one['split']}, {name}".replace(", ", "\n"), held)
        for one in found
        for name, held in one["held_out"].items()
        if name != "val" or len(one["held_out"]) == 1
    ]
    figure = Figure(figsize=(9, 1.2 + 1.0 * len(places)), layout="constrained")
    axes = figure.subplots()
    scored = [key for key in LOOK_UPS if any(held["look_ups"][key] is not None for _, held in places)]
    height = 0.8 / len(scored)
    for turn, key in enumerate(scored):
        rows = [number for number, (_, held) in enumerate(places) if held["look_ups"][key] is not None]
        values = [places[number][1]["look_ups"][key] for number in rows]
        errors = [places[number][1].get("sd", {}).get(key) or 0.0 for number in rows]
        at = [number + (turn - (len(scored) - 1) / 2) * height for number in rows]
        axes.barh(at, values, height, xerr=errors, label=LOOK_UPS[key], error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(places)), [name for name, _ in places])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy without any audio", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
