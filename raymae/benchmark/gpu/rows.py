"""The measured figures as rows with their goals, and as a table of all steps."""

from __future__ import annotations

from raymae.benchmark.gpu.record import Record, Values
from raymae.benchmark.harness.result import Result, Row

PEAK_SHARE, IDLE_SHARE, HOST_MS, OVER_PLAIN, LOOP_SHARE, OVER_PREDICTION = 0.5, 0.02, 3.0, 2.0, 0.97, 1.1
"""Goals: of a compiled step's share of the matrix product's rate, of the GPU's idle share, of the host's work on the
step's thread (beside the launches of the passes), of the rate over that of the plain step, of the loop's rate over that
of a step on the device, and of the memory over the prediction (a tenth is what it leaves to spare)."""


def result(record: Record, clips: int, left: list[str]) -> Result:
    """Rows and text of what is measured so far; `clips` is the size of the steps that have goals."""
    rows = [*step_rows(record, clips), *loop_rows(record, clips)]
    failed = [f"{name}: {values['error']}" for name, values in record.figures.items() if "error" in values]
    lines = [steps_table(record), "", *other_lines(record)]
    lines += [f"Failed: {line}" for line in failed]
    lines += [f"Not measured yet: {', '.join(left)}."] if left else []
    return Result("gpu", rows, {}, "\n".join(lines))


def step_rows(record: Record, clips: int) -> list[Row]:
    """Rows of the steps of `clips`, on the device and outside the loop."""
    rows = []
    peak = record.get("product: peak")
    for name, step in steps(record):
        *what, side, size = name.split()
        if int(size) != clips or what == ["finetune"]:
            continue
        decoder, rate = what[0], step["clips_per_second"]
        title = f"{decoder} decoder, {side}, {size} clips"
        if peak and side == "compiled":
            ours, theirs = (f"{tflops:.3g} TFLOP/s" for tflops in (step["tflops"], peak["tflops"]))
            share = step["tflops"] / peak["tflops"]
            rows.append(
                Row("gpu", title, f"{rate:.0f} clips/s = {ours}", f"{theirs} (matrix product)", share, PEAK_SHARE)
            )
        plain = record.get(f"{decoder} plain {size}: step")
        if plain and side == "compiled":
            other = plain["clips_per_second"]
            baseline = f"{other:.0f} clips/s (unfused attention, not compiled)"
            rows.append(Row("gpu", title, f"{rate:.0f} clips/s", baseline, rate / other, OVER_PLAIN))
        if kernels := record.get(f"{name}: kernels"):
            idle, span = kernels["idle_share"], kernels["busy_ms"] + kernels["idle_ms"]
            what_idle = f"idle, {title}"
            rows.append(Row("gpu", what_idle, f"{idle:.1%}", f"{span:.1f} ms (a step)", idle, IDLE_SHARE, at_most=True))
        if side != "plain" and "peak_gb" in step:
            ours, theirs = f"{step['peak_gb']:.1f} GB", f"{step['predicted_gb']:.1f} GB (predicted)"
            over = step["peak_gb"] / step["predicted_gb"]
            rows.append(Row("gpu", f"memory, {title}", ours, theirs, over, OVER_PREDICTION, at_most=True))
    return rows


def loop_rows(record: Record, clips: int) -> list[Row]:
    """Rows of the loop and of the host's work in it."""
    rows, loop, side = [], record.get("loop: loop"), ("compiled", "eager")
    found = [(record.get(f"local {one} {clips}: step"), record.get(f"local {one} {clips}: host")) for one in side]
    step, host = next((pair for pair in found if all(pair)), (None, None))
    if loop and step:
        rate, alone = loop["clips_per_second"], step["clips_per_second"]
        baseline = f"{alone:.0f} clips/s (a step on the device)"
        rows.append(Row("gpu", "loop, from a store", f"{rate:.0f} clips/s", baseline, rate / alone, LOOP_SHARE))
    if loop and host:
        spent = host["step_ms"] + loop["loop_ms"]
        title = "work of the step's thread beside launching the passes"
        rows.append(Row("gpu", title, f"{spent:.2f} ms", f"{HOST_MS:g} ms (limit)", spent / HOST_MS, 1.0, at_most=True))
    return rows


def steps(record: Record) -> list[tuple[str, Values]]:
    """The cases whose step was measured, and that figure."""
    names = [name.removesuffix(": step") for name in record.figures if name.endswith(": step")]
    return [(name, found) for name in names if (found := record.get(f"{name}: step"))]


def steps_table(record: Record) -> str:
    """All steps as a Markdown table."""
    peak = record.get("product: peak")
    lines = [
        "| step | clips/s | fed, clips/s | TFLOP/s | of the peak | memory | predicted | idle | launches | first step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, step in steps(record):
        kernels, host = record.get(f"{name}: kernels"), record.get(f"{name}: host")
        cells = [
            f"{step['clips_per_second']:.0f}",
            f"{step['fed_clips_per_second']:.0f}",
            f"{step['tflops']:.3g}",
            f"{step['tflops'] / peak['tflops']:.2f}" if peak else "",
            f"{step['peak_gb']:.1f} GB" if "peak_gb" in step else "",
            f"{step['predicted_gb']:.1f} GB",
            f"{kernels['idle_share']:.1%}, {kernels['idle_ms']:.2f} ms" if kernels else "",
            f"{host['launch_ms']:.1f} ms" if host else "",
            f"{step['first_seconds']:.1f} s",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def other_lines(record: Record) -> list[str]:
    """The loop's wait and checkpoints, and the thread that prepares steps, in words."""
    lines = []
    if loop := record.get("loop: loop"):
        lines.append(f"The loop waits for data {loop['data_wait_share']:.1%} of the time.")
    if commit := record.get("loop: commit"):
        lines.append(
            f"A checkpoint of {commit['gb']:.2f} GB stops the training for {commit['stopped_seconds']:.2f} s and is "
            f"written after {commit['written_seconds']:.1f} s."
        )
    if draws := record.get("preparation: draws"):
        lines.append(
            f"Preparing a step of {draws['clips']} clips takes its own thread {draws['prepare_ms']:.1f} ms, "
            f"{draws['masks_ms']:.1f} ms of it for the masks."
        )
    return lines
