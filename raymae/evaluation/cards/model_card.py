"""Model cards: Markdown with the metadata of Hugging Face's Hub, for registered and exported models.

https://huggingface.co/docs/hub/model-cards. The licence of a model depends on the recordings that it was trained on, so
that a card names none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymae.evaluation.cards.yaml_lines import yaml_lines
from raymae.evaluation.scores import KINDS
from raymae.evaluation.wording import model_title, score
from raymae.storage.folder import Folder

CARD, FACTS = "README.md", "evaluation.json"
"""The names of a card, and of what an evaluation says of a model, beside a registered classifier."""

SCORES = {
    "macro_accuracy": ("macro_accuracy", "Macro accuracy (mean recall of the classes)"),
    "accuracy": ("accuracy", "Accuracy"),
    "mAP": ("mean_average_precision", "mAP (mean average precision of the classes)"),
    "ece": ("expected_calibration_error", "Expected calibration error"),
}
"""The scores of a card: type and name in its metadata."""
NAMED = 20
"""Most devices or cities that a card names."""
WEAK = 3
"""Classes of which a card says that the model is worst at them."""


def card_facts(report: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the result of an evaluation says of one of its models: all that a card needs of it.

    Keys: model, labels, classes, split, note, made, trained_on, val_chose (whether val selected the weights), verdict
    (None for any but the final model), scores: split → clips, groups, scores with their _ci, and weakest: the classes
    that it is worst at, with their recall or average precision.
    """
    kept = ("clips", "groups", *(f"{key}{end}" for key in SCORES for end in ("", "_ci")))
    scores = {
        split: {key: found[key] for key in kept if key in found} | {"weakest": weakest(found)}
        for split, found in report["metrics"][model].items()
    }
    return {
        **{key: report[key] for key in ("labels", "classes", "split", "note", "made", "trained_on")},
        "model": model,
        "val_chose": model in report["val_chose"],
        "verdict": report["verdict"] if report["verdict"]["model"] == model else None,
        "scores": scores,
    }


def weakest(found: Mapping[str, Any]) -> dict[str, float]:
    """The classes of a split with the lowest recall, or of multi-label clips average precision."""
    key = "recall" if "confusion" in found else "average_precision"
    values = {name: one[key] for name, one in found["by_class"].items() if one[key] is not None}
    return dict(sorted(values.items(), key=lambda item: item[1])[:WEAK])


def card_text(
    classifier: Mapping[str, Any], facts: Mapping[str, Any] | None, name: str, loading: str, files: Sequence[str] = ()
) -> str:
    """The card of a classifier, or of an encoder alone.

    Args:
        classifier: class_names (None of an encoder) and audio, the front end, as in classifier.json.
        facts: from `card_facts`; None where no evaluation is known.
        name: of the model, its title.
        loading: Markdown that says how to load it.
        files: names for the metadata, as "onnx", of the forms in which the model is there.
    """
    head = metadata(facts, name, "audio-classification" if classifier["class_names"] else "feature-extraction", files)
    parts = ["\n".join(["---", *yaml_lines(head), "---"]), f"# {name}"]
    if facts:
        parts += [f"**{line}**" for line in verdict_lines(facts)]
        parts += ["## Scores", *score_lines(facts), "## Training", *training_lines(facts)]
    elif classifier["class_names"]:
        parts.append("No evaluation of this model was found: how well it does is not known.")
    else:
        parts.append("An encoder of log-mels, which has no scores of its own.")
    parts += ["## Input", input_text(classifier["audio"])]
    if classifier["class_names"]:
        parts += [f"## Classes ({len(classifier['class_names'])})", ", ".join(map(code, classifier["class_names"]))]
    parts += ["## Loading", loading, "## Limits", "\n".join(f"- {line}" for line in limits(classifier, facts))]
    return "\n\n".join(parts) + "\n"


def metadata(facts: Mapping[str, Any] | None, name: str, task: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """The card's metadata: library_name, pipeline_tag, tags, and the scores as model-index."""
    tags = ["audio", "acoustic-scene-classification", "masked-autoencoder", *files]
    found: dict[str, Any] = {"library_name": "raymae", "pipeline_tag": task, "tags": tags}
    if not facts:
        return found
    results = [
        {
            "task": {"type": "audio-classification", "name": "Acoustic scene classification"},
            "dataset": {"type": "custom", "name": f"Split {facts['split']}", "split": split},
            "metrics": [
                {"type": kind, "name": title, "value": float(scores[key])}
                for key, (kind, title) in SCORES.items()
                if scores.get(key) is not None
            ],
        }
        for split, scores in facts["scores"].items()
    ]
    return found | {"model-index": [{"name": name, "results": results}]}


def verdict_lines(facts: Mapping[str, Any]) -> list[str]:
    """The verdict, if the evaluation is about this model."""
    verdict = facts["verdict"]
    return [verdict["sentence"], *verdict["notes"]] if verdict else []


def score_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """A table of scores with intervals by split."""
    scores = facts["scores"]
    keys = [key for key in SCORES if any(one.get(key) is not None for one in scores.values())]
    header = ["split", "clips", "groups", *(SCORES[key][1] for key in keys)]
    rows = [
        [split, str(one["clips"]), str(one["groups"]), *(score(one, key) for key in keys)]
        for split, one in scores.items()
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
    yield (
        f"In brackets 95 % bootstrap intervals over groups. Split: {facts['split']}. {model_title(facts['model'])}, "
        f"evaluated by run {facts['made']['run']} on {facts['made']['date'][:10]}."
    )


def training_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the model was trained on, and by which command."""
    made = facts["made"]
    for split in ("train", "pool"):
        if one := made["clips"].get(split):
            keys = ("clips", "labelled", "groups", "devices", "cities", "hours")
            counts = [f"{one[key]} {key}" for key in keys if one[key]]
            domains = [
                f"{domain}: {', '.join(map(code, names[split][:NAMED]))}{', …' * (len(names[split]) > NAMED)}"
                for domain, names in facts["trained_on"].items()
                if names[split]
            ]
            use = "" if split == "train" else " (pre-training alone)"
            yield f"Split {split}{use}: {'; '.join([', '.join(counts), *domains])}."
    yield f"Recipe {made['recipe']}, {', '.join(f'{name} {one}' for name, one in made['versions'].items())}:"
    yield f"```sh\n{made['command'].replace('`', '')}\n```"


def input_text(audio: Mapping[str, Any]) -> str:
    """The input that the front end expects."""
    rate = audio["sample_rate"]
    return (
        f"Recordings are mixed to mono and resampled to {rate} Hz; log-mels of {audio['n_mels']} bands, "
        f"{1000 * audio['win_length'] / rate:g} ms windows every {1000 * audio['hop_length'] / rate:g} ms, in clips of "
        f"{audio['clip_seconds']:g} s. Longer recordings are cut into clips, and their probabilities averaged."
    )


def limits(classifier: Mapping[str, Any], facts: Mapping[str, Any] | None) -> Iterator[str]:
    """What the model can't do, or isn't known to do."""
    if classifier["class_names"] and (not facts or facts["labels"] == "single"):
        yield "It gives every recording one of its classes, also where none of them fits."
    yield "The licence of the weights is open: it depends on that of the recordings."
    if not facts:
        return
    if facts["note"]:
        yield f"{facts['note']}."
    known = KINDS[facts["labels"]]
    for split, one in facts["scores"].items():
        worst = ", ".join(f"{code(name)} ({value:.2f})" for name, value in one["weakest"].items())
        yield f"Worst classes on {split}, by {'recall' if known.HEADLINE != 'mAP' else 'average precision'}: {worst}."
    if facts["val_chose"]:
        yield "Its weights were selected on val, where its scores are optimistic."
    devices = facts["trained_on"]["device"]["train"]
    if devices:
        yield f"It was trained on {len(devices)} recording device{'s' * (len(devices) != 1)}; others may do worse."


def code(text: str) -> str:
    """A name as code in Markdown."""
    return f"`{text.replace('`', chr(39))}`"


def facts_beside(folder: Folder) -> dict[str, Any] | None:
    """`card_facts` of a classifier's folder: those beside a registered one, or in the newest evaluation of its storage
    that scored it; None where there is none."""
    if folder.exists(FACTS):
        return dict(folder.read_json(FACTS))
    root, _, place = folder.url.rpartition("/artifacts/")
    if not root:
        return None
    evaluations = Folder(f"{root}/artifacts/evaluate")
    found = []
    for key in evaluations.names():
        one = evaluations / key
        report = one.result() if one.is_done() else {}
        found += [
            (report["made"]["date"], card_facts(report, model))
            for model, artifact in report.get("artifacts", {}).items()
            if artifact == f"artifacts/{place}"
        ]
    return max(found, key=lambda item: item[0])[1] if found else None


def registered_loading(name: str, alias: str) -> str:
    """How to load a registered model."""
    uri = f"models:/{name}@{alias}"
    return (
        f"```python\nimport mlflow\n\nmodel = mlflow.pyfunc.load_model({uri!r})  # or its version\n"
        'model.predict(["street.wav"])  # a row per recording: scene_label, confidence, error, p_<class>\n```'
    )
