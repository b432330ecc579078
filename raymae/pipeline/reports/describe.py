"""What MLflow says of a run and of a registered model: data set, source, description, model card."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from raymae.config import DataConfig, redact
from raymae.config.stages import STAGES
from raymae.datasets.splits.split_file import DESCRIPTION
from raymae.evaluation.cards.model_card import CARD, FACTS, card_facts, card_text, registered_loading
from raymae.evaluation.scores import KINDS
from raymae.pipeline.best_baseline import baseline_line
from raymae.pipeline.plan.plan import Plan
from raymae.storage.checksums import digest
from raymae.training.state.provenance import source

NOTE = "mlflow.note.content"
"""The tag that MLflow's page shows as description, in Markdown."""


def run_tags(plan: Plan, note: str) -> dict[str, str]:
    """The tags of a run of the plan: the job and commit that made it, and a description."""
    commit = source().get("git_commit")
    tags = {"mlflow.source.name": f"jobs/{plan.job}.py", "mlflow.source.type": "LOCAL", NOTE: note}
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def job_note(plan: Plan) -> str:
    """What a job does, in a line."""
    split = plan.run_folder.read_json(DESCRIPTION)["name"]
    stages = ", ".join(name for name in plan.nodes)
    return f"Recipe {plan.config.recipe} on {data_name(plan.config.data)}, split {split}: {stages}"


def data_set(plan: Plan, stage: str = "") -> dict[str, Any]:
    """The data set of a run, for `Tracker.log_data`: the clip table, with its split and the counts of each part.

    The digest changes with the clips, their labels and their split.
    """
    split = plan.run_folder.read_json(DESCRIPTION)
    splits = split["splits"]
    kind, where = data_source(plan.config.data)
    return {
        "name": data_name(plan.config.data),
        "digest": digest([split["hash"], split["table"]]),
        "context": "evaluation" if stage == "evaluate" else "training",
        "source_type": kind,
        "source": where,
        "profile": {
            "num_rows": sum(one["clips"] for one in splits.values()),
            "split": split["name"],
            "split_hash": split["hash"],
            "splits": splits,
        },
    }


def data_name(data: DataConfig) -> str:
    """The name of the configured data: that of a published data set, or those of the tables."""
    tables = [PurePosixPath(urlsplit(table).path) for table in data.tables]
    names = ["/".join(path.parts[-2:]).strip("/") for path in tables]
    return "+".join(names)[:200] or data.dataset


def data_source(data: DataConfig) -> tuple[str, dict[str, Any]]:
    """Where the data are from, as MLflow's source_type and source."""
    places = [redact(place) for place in (*data.tables, *([data.root] if data.root else []))]
    if not places:
        return "code", {"tags": {"mlflow.source.name": f"raymae {data.dataset}"}}
    return urlsplit(places[0]).scheme or "local", {"uri": places[0], "uris": places}


def version_facts(plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
    """The tags of a registered version, and the metadata of its model.

    Both hold recipe, split with its hash, metrics by split and, from a working tree of git, the commit; the tags class
    names and front end too (`Registry.register` adds them to the metadata) and what jobs/promote.py looks for.
    """
    classifier, evaluation = plan.nodes[plan.final].artifact.read_json("classifier.json"), plan.nodes["evaluate"]
    metrics = evaluation.artifact.result()["metrics"][plan.final]
    split = plan.run_folder.read_json(DESCRIPTION)
    said = {"recipe": plan.config.recipe, "split": split["name"], "split_hash": split["hash"], **source()}
    tags = {
        **said,
        "class_names": json.dumps(classifier["class_names"]),
        "front_end": json.dumps(classifier["audio"]),
        "evaluation": evaluation.key,
        "model": plan.final,
        **{name: f"{value:.6g}" for name, value in scores(metrics).items()},
    }
    stages = {name: other.key for name, other in plan.nodes.items() if name != "register"}
    return tags, {**said, "stages": stages, "metrics": metrics}


def card_files(plan: Plan) -> dict[str, str]:
    """The files of the final classifier's card by name: the card, and what the evaluation says of the model."""
    tracking = plan.config.tracking
    facts = card_facts(plan.nodes["evaluate"].artifact.result(), plan.final)
    classifier = plan.nodes[plan.final].artifact.read_json("classifier.json")
    loading = registered_loading(tracking.registered_model, tracking.alias)
    return {
        CARD: card_text(classifier, facts, tracking.registered_model, loading),
        FACTS: json.dumps(facts, indent=1),
    }


def version_note(plan: Plan) -> str:
    """The description of a registered version: what was trained on what, its scores, the best baseline."""
    report = plan.nodes["evaluate"].artifact.result()
    kind = KINDS[report["labels"]]
    found = {split: values[kind.HEADLINE] for split, values in report["metrics"][plan.final].items()}
    told = ", ".join(f"{split} {value:.3f}" for split, value in found.items() if value is not None)
    return (
        f"{STAGES[plan.nodes[plan.final].stage].title or plan.final}, recipe {plan.config.recipe}, on "
        f"{data_name(plan.config.data)}, split {report['split']}.\n\n{kind.TITLE}: {told}.\n\n"
        f"Best baseline: {baseline_line(report)}."
    )


def scores(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics as "model/split/score", without those by class, bin, city or device."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if (isinstance(value, dict) and prefix.count("/") < 2) or (key.startswith(("seen_", "unseen_")) and value):
            found |= scores(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found
