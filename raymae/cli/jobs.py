"""The jobs: purpose, examples, own settings and what each calls; each is a script in jobs/ and a `raymae` subcommand.

What a job calls is imported when it runs: its help, and the answer to a wrong command line, load nothing of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from raymae.cli.job import Command, Job
from raymae.config import Config
from raymae.config.stages import Target

CLIPS = ("data.tables", "data.pool_tables", "data.dataset", "data.root", "data.label_column", "data.split.kind")
"""Settings that name the clips."""
RUN = ("storage", "settings", "json", "seed")
STAGES = (*CLIPS, *RUN, "dry_run", "max_hours", "compute.num_workers", "compute.use_gpu", "tracking.uri")
"""Settings of every job that runs stages."""
MODEL = ("model.size", "model.mask_ratio", "model.decoder")
TABLE = "small --data.tables rec/metadata.csv"


def up_to(target: Target) -> Callable[[Config], dict[str, Any]]:
    """A job that runs the pipeline up to a stage."""

    def run(config: Config) -> dict[str, Any]:
        from raymae.pipeline.job import run_job

        return run_job(target, config)

    return run


def label_files(config: Config) -> dict[str, Any]:
    """Predict."""
    from raymae.serving import predict

    return predict.label_files(config)


def serve_classifier(config: Config) -> dict[str, Any]:
    """Serve."""
    from raymae.serving.http import job

    return job.serve_classifier(config)


def embed_clips(config: Config) -> dict[str, Any]:
    """Embed."""
    from raymae.serving import embed

    return embed.embed_clips(config)


def export_model(config: Config) -> dict[str, Any]:
    """Export."""
    from raymae.serving import export

    return export.export(config)


def promote(config: Config) -> dict[str, Any]:
    """Promote."""
    from raymae.pipeline import promote

    return promote.promote(config)


def audit(config: Config) -> dict[str, Any]:
    """Audit."""
    from raymae.evaluation.leaks import audit

    return audit.audit_run(config)


def sweep(config: Config) -> dict[str, Any]:
    """Sweep."""
    from raymae.sweep.run import run_sweep

    return run_sweep(config)


def artifacts(command: Command, arguments: list[str]) -> None:
    """Artifacts."""
    from raymae.cli.artifacts import main

    main(command, arguments)


def benchmark(command: Command, arguments: list[str]) -> None:
    """Benchmark."""
    from raymae.cli.benchmark import main

    main(command, arguments)


ALL: tuple[Job | Command, ...] = (
    Job(
        name="prepare",
        purpose="Compute the log-mel feature store from audio files, in parallel CPU workers.",
        examples=(
            TABLE,
            "small --data.dataset cas2023 --data.root cas --data.check",
            "small --data.tables recordings/ --data.store none",
        ),
        own=(
            *CLIPS,
            "data.check",
            "data.verify",
            "data.store",
            "data.compression",
            "data.shard_mb",
            "data.max_bad_share",
            "data.file_timeout",
            "data.follow_links",
            "data.audio_root",
            "data.filename_column",
            "audio.clip_seconds",
            "audio.sample_rate",
            "audio.device",
            *RUN,
            "compute.data_workers",
        ),
        run=up_to("prepare"),
    ),
    Job(
        name="pretrain",
        purpose="Pre-train the masked autoencoder on all clips of train and pool; prepare the features if needed.",
        examples=(
            "small --data.tables recordings/",
            f"{TABLE} --model.mask-ratio 0.8 --pretrain.epochs 20",
            "audiomae --data.tables rec/metadata.csv --model.size small --dry-run",
        ),
        own=("pretrain.*", *MODEL, *STAGES),
        run=up_to("pretrain"),
    ),
    Job(
        name="finetune",
        purpose="Fine-tune the pre-trained encoder on the labelled clips; run the stages before it if needed.",
        examples=(
            TABLE,
            f"{TABLE} --finetune.epochs 50",
            f"{TABLE} --finetune.init-from runs/artifacts/pretrain/1a2b3c4d5e6f7a8b",
        ),
        own=("finetune.*", "model.size", *STAGES),
        run=up_to("finetune"),
    ),
    Job(
        name="pseudo_label",
        purpose="Label the unlabelled training clips with the fine-tuned classifier; run the stages before it if "
        "needed.",
        examples=(
            TABLE,
            f"{TABLE} --pseudo-label.coverage 0.3",
            f"{TABLE} --pseudo-label.coverage None --pseudo-label.confidence-threshold 0.9",
        ),
        own=("pseudo_label.*", *STAGES),
        run=up_to("pseudo_label"),
    ),
    Job(
        name="consistency",
        purpose="Train the fine-tuned classifier on labelled and unlabelled clips at once; run the stages before it if "
        "needed.",
        examples=(
            TABLE,
            f"{TABLE} --consistency.method fixmatch",
            f"{TABLE} --consistency.epochs 10 --consistency.ratio 3",
        ),
        own=("consistency.*", *STAGES),
        run=up_to("consistency"),
    ),
    Job(
        name="evaluate",
        purpose="Evaluate every classifier and the baselines on the held-out splits; run the stages before it if "
        "needed.",
        examples=(
            TABLE,
            f"{TABLE} --seeds 5",
            "--evaluate.compare runs/runs/small-pipeline-1a2b runs/runs/small-pipeline-3c4d",
        ),
        own=("evaluate.*", "seeds", "folds", "data.fold_column", *STAGES),
        run=up_to("evaluate"),
    ),
    Job(
        name="pipeline",
        purpose="Run the whole pipeline, from audio files to a registered scene classifier.",
        examples=(
            "synthetic",
            f"{TABLE} --data.pool-tables more/metadata.csv --storage runs",
            f"{TABLE} --seeds 5 --dry-run",
        ),
        own=(
            *CLIPS,
            *RUN,
            "unlabelled",
            "seeds",
            "folds",
            "dry_run",
            "max_hours",
            *MODEL,
            "pretrain.epochs",
            "pretrain.init_from",
            "finetune.epochs",
            "finetune.init_from",
            "pseudo_label.coverage",
            "pseudo_label.rounds",
            "evaluate.baselines",
            "evaluate.ablation",
            "tracking.*",
            "compute.address",
            "compute.num_workers",
            "compute.use_gpu",
        ),
        run=up_to("register"),
    ),
    Job(
        name="sweep",
        purpose="Sweep hyper-parameters: run trials side by side on Ray Tune, share their stages, and compare them on "
        "split val.",
        examples=(
            TABLE,
            "synthetic --sweep.space model.mask_ratio=0.6,0.75,0.9 pseudo_label.coverage=0.3,0.5",
            "synthetic --sweep.space finetune.lr=log:1e-4..1e-2 --sweep.search optuna --sweep.trials 20",
        ),
        own=("sweep.*", *STAGES),
        run=sweep,
    ),
    Job(
        name="predict",
        purpose="Predict the labels of audio files with a finished or registered classifier.",
        examples=(
            f"{TABLE} --predict.inputs recordings/ --predict.output scenes.csv",
            "--predict.model runs/classifier --predict.inputs recordings/ --predict.output scenes.parquet",
            "--predict.model models:/raymae-scene-classifier@champion --storage runs --predict.inputs day.flac "
            "--predict.level window --predict.output windows.csv",
        ),
        own=("predict.*", *CLIPS, *RUN, "tracking.uri", "compute.torch_threads", "compute.data_workers"),
        run=label_files,
    ),
    Job(
        name="serve",
        purpose="Serve a finished or registered classifier over HTTP, with a page for uploads, until Ctrl-C.",
        examples=(
            f"{TABLE} --storage runs",
            "--serve.model models:/raymae-scene-classifier@champion --storage runs --serve.port 8080",
            "--serve.model runs/classifier --serve.replicas 2",
        ),
        own=("serve.*", *CLIPS, *RUN, "tracking.uri", "compute.use_gpu"),
        run=serve_classifier,
    ),
    Job(
        name="embed",
        purpose="Write embeddings of every clip, or of every time column of it, from any layers of a pre-trained "
        "encoder.",
        examples=(
            f"{TABLE} --embed.output vectors",
            f"{TABLE} --embed.level frame --embed.layers 6 --embed.output frames",
            f"{TABLE} --embed.model hf://OWNER/NAME --embed.output vectors",
        ),
        own=("embed.*", *CLIPS, *RUN, "tracking.uri", "compute.use_gpu"),
        run=embed_clips,
    ),
    Job(
        name="export",
        purpose="Export a classifier or a pre-trained encoder to timm's VisionTransformer (safetensors) and to ONNX, "
        "and check both.",
        examples=(
            "--export.model models:/raymae-scene-classifier@candidate --export.output exported/ --storage runs",
            "--export.model runs/artifacts/pretrain/1a2b3c4d5e6f7a8b --export.output exported/",
            "--export.model hf://OWNER/NAME --export.output exported/",
        ),
        own=("export.*", *RUN, "tracking.uri"),
        run=export_model,
    ),
    Job(
        name="promote",
        purpose="Promote the registry's candidate to champion if it is better on the same held-out clips.",
        examples=(
            "small --storage runs",
            "small --storage runs --promote.level 0.01",
            "small --storage s3://BUCKET/raymae --tracking.uri http://MLFLOW:5000",
        ),
        own=("promote.*", *RUN, "tracking.*"),
        run=promote,
    ),
    Job(
        name="audit",
        purpose="Find leaks between the training and held-out clips of a table, and score labels guessed from its "
        "metadata alone.",
        examples=(
            TABLE,
            f"{TABLE} --data.split.kind session --json audit.json",
            f"{TABLE} --audit.same-recording",
        ),
        own=("audit.*", *CLIPS, "data.split.*", *RUN),
        run=audit,
    ),
    Command(
        name="artifacts",
        purpose="List, verify and clean a storage, and list the models that were trained on a clip.",
        examples=(
            "ls --storage runs",
            "verify --storage runs",
            "gc --storage runs --forget runs/small-pipeline-1a2b3c4d5e6f7a8b --delete",
            "trained-on --storage runs --column group --values walk-17",
        ),
        run=artifacts,
    ),
    Command(
        name="benchmark",
        purpose="Measure raymae against baselines that a user could take instead, and plan a cluster from measured "
        "rates.",
        examples=(
            "all --json benchmark.json",
            "front-end --repetitions 10",
            "plan --hours 5000 --clip-seconds 10 --gpus 8 --cpus 64",
        ),
        run=benchmark,
    ),
)
JOBS: dict[str, Job | Command] = {job.name: job for job in ALL}


def main(name: str) -> None:
    """Run a job with the arguments of this process: a script of jobs/."""
    from raymae.cli.main import start

    start(JOBS[name], sys.argv[1:])


def console() -> None:
    """The command `raymae JOB …`."""
    from raymae.cli.subcommands import choose_job

    choose_job(JOBS, sys.argv[1:])


if __name__ == "__main__":
    console()
