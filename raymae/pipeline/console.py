"""Print the plan before it runs, and the result."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from raymae.config import FinetuneConfig, TrainConfig, redact
from raymae.config.stages import STAGES, turn_of
from raymae.console.screen import print_markdown, print_rows, styled
from raymae.datasets.overview import summary
from raymae.datasets.splits.assign import split_name
from raymae.pipeline.plan.estimate import estimate
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.plan.workers import trained_sections
from raymae.storage.commits import latest_step

REUSED = "reused"


def print_plan(plan: Plan) -> None:
    """Print the stages: which run, which are reused, and what they take."""
    print(f"recipe {plan.config.recipe}, storage {redact(plan.storage.url)}")
    print(f"  split: {split_name(plan.config.data.split)}")
    for line in summary(plan.clips, plan.config.finetune.labels):
        print(f"  {line}")
    for section, given in plan.given.items():
        start = plan.config.evaluate.supervised_from if section == "supervised" else None
        source = redact(str(start or getattr(plan.config, section).init_from))
        print(f"  {section} starts from {source}, weights {given.key}")
    details = estimate(plan)
    rows = []
    for name, node in plan.nodes.items():
        step = None if node.reused else latest_step(node.artifact)
        state = REUSED if node.reused else "to run" if step is None else f"to resume from step {step}"
        does = STAGES[node.stage].does + repeat_of(name, node.stage)
        rows.append((name, node.key, state, f"{does}{details.get(name, '')}"))
    print_rows(rows, lambda row: "dim" if row[2] == REUSED else None)
    sections = trained_sections(plan)
    for line in (*warmup_lines(sections), *head_lines(sections)):
        print(f"  {line}")
    sys.stdout.flush()
    if any(STAGES[plan.nodes[name].stage].kind for name in plan.to_do):
        from raymae.pipeline.plan.sizes import size_lines  # takes torch, and seconds

        for line in size_lines(plan):
            print(f"  {line}")
    for ablation, name in plan.ablation_models.items():
        if name == "finetune":
            print(f"  ablation {ablation}: {name} starts from the same, so one row shows both")
    if "consistency" in plan.nodes and not plan.has_unlabelled:
        print("  split train has no unlabelled clip: consistency training uses the labels alone")
    if "evaluate" in plan.nodes and plan.config.finetune.labels == "multi":
        print("  multi-label clips: no pseudo-labels and no student, the fine-tuned classifier is the final one")


def warmup_lines(sections: Mapping[str, TrainConfig]) -> list[str]:
    """A line for each training, by section, that is no longer than its warm-up."""
    return [
        f"{name}: warmup_epochs = {train.warmup_epochs:g} don't fit into epochs = {train.epochs:g}, so that the "
        f"warm-up takes a tenth of them, {train.warmup_share * train.epochs:g}"
        for name, train in sections.items()
        if not train.warmup_fits
    ]


def head_lines(sections: Mapping[str, TrainConfig]) -> list[str]:
    """A line for each training, by section, that trains the head alone to its end."""
    return [
        f"{name}: head_epochs = {train.head_epochs:g} are not fewer than epochs = {train.epochs:g}, so that only the "
        "head is trained; --finetune.head-epochs sets fewer"
        for name, train in sections.items()
        if isinstance(train, FinetuneConfig) and train.head_epochs >= train.epochs
    ]


def repeat_of(name: str, stage: str) -> str:
    """The round or ablation of a node, where the plan has several of its stage."""
    if name == stage:
        return ""
    turn = turn_of(name)[1]
    return f" (round {turn})" if turn > 1 else f" (ablation {name.removeprefix(stage + '_')})"


def round_lines(found: Mapping[str, Any]) -> list[str]:
    """Lines about a round of pseudo-labels, from the result of `pseudo_label.run_round`."""
    lines = [
        f"{found['accepted']} of {found['unlabelled']} unlabelled clips get a label ({found['rule']}); temperature "
        f"{found['temperature']:.2f}, calibrated on {found['calibrated_on']}"
    ]
    if found["calibrated_on"] == "nothing":
        lines.append(found["calibration"]["reason"])
    if not found["accepted"]:
        lines.append("no pseudo-label was accepted: the student trains on the given labels alone")
    elif found["empty_classes"]:
        lines.append(f"classes without an accepted pseudo-label: {', '.join(found['empty_classes'])}")
    return lines


def print_result(plan: Plan, result: dict[str, Any]) -> None:
    """Print the table, the report and the next commands."""
    print(f"\n{plan.job} finished in {result['seconds']:.0f} s; run folder {result['run_folder']}")
    if "evaluate" in plan.nodes:
        evaluation = plan.nodes["evaluate"].artifact
        print_markdown(headline(evaluation.read_bytes("report.md").decode()))
        print(styled(f"verdict:           {verdict_line(evaluation.result())}", "bold"))
        print(f"full report:       {redact(evaluation.url)}/report.html (report.md, report.json, figures/)")
    if "model_uri" in result:
        print(f"registered model:  {result['model_uri']}")
        print(f"open MLflow:       {result['commands']['mlflow_ui']}")
        print(f"runs in MLflow:    {result['commands']['mlflow_page']}")
        print(f"predict:           {result['commands']['predict']}")


def headline(text: str) -> str:
    """The first section of a `report.md`, without its figure."""
    first = text.split("\n## ")[1].split("\n\n![")[0]
    return f"## {first.rstrip()}\n"


def verdict_line(result: Mapping[str, Any]) -> str:
    """Where the final model of an evaluation stands against the best baseline, in a line."""
    note = f" ({result['note']})" if result["note"] else ""
    return f"{result['verdict']['sentence']}{note}"
