"""Run a job from the command line: parse, run, write its JSON, and turn errors into messages and exit statuses."""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raymae.cli.job import FLAGS, Command, Job, called
from raymae.cli.mistakes import as_typed
from raymae.config import Config, redact
from raymae.console.native import native_output_kept
from raymae.console.screen import LogHandler

INTERRUPTED = 130
"""Exit status of a job that Ctrl-C ended, as shells give it: 128 + SIGINT."""


def start(job: Job | Command, arguments: list[str]) -> None:
    """Run a job with some arguments.

    Exit status 0: everything asked for exists; 75: run the same command again, because its time was up or MLflow was
    down; 130: Ctrl-C; 1: an error, printed in one line; 2: a wrong command line.
    """
    try:
        run(job, arguments) if isinstance(job, Job) else job.run(job, arguments)
    except KeyboardInterrupt:
        command = redact(shlex.join([*called(job.name).split(), *arguments]))
        print(f"\ninterrupted; what is finished is kept, and this resumes the rest: {command}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        gc.freeze()  # the end of the process would look through all objects of torch, Ray and MLflow for 2 to 3 s


def run(job: Job, arguments: list[str]) -> None:
    """Run a job that takes a recipe, or print its help."""
    from raymae.cli.arguments import parse

    if wants_help(arguments):
        from raymae.cli.help import job_help, show

        show(job_help(job, arguments))
    config = parse(arguments)
    print(f"{job.name} {config.recipe}: storage {redact(config.storage)}", flush=True)  # before what takes seconds
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler(AsTyped("%(levelname)s %(name)s: %(message)s"))])
    logging.getLogger("raymae").setLevel(logging.INFO)
    with native_output_kept():
        run_with(job.run, config)


class AsTyped(logging.Formatter):
    """Log lines with every setting as it is typed on the command line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of a record, which stays as it is for other handlers."""
        typed = logging.makeLogRecord(record.__dict__)
        typed.message = as_typed(record.message) if record.name.startswith("raymae.") else record.message
        return super().formatMessage(typed)


def wants_help(arguments: list[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word.partition("=")[0] in FLAGS for word in arguments)


def run_with(job: Callable[[Config], dict[str, Any]], config: Config) -> None:
    """Run what a job calls with its settings; exits with a message where that fails."""
    from raymae.cluster.connect import stay_local
    from raymae.training.guards.deadline import EXIT_STATUS, TimeIsUpError

    stay_local(config.compute.address)
    try:
        check_target("--json", config.json)
        result = job(config)
        if config.json:
            with open(config.json, "w") as file:
                json.dump(result, file, indent=1)
        if config.data.check and result.get("problems"):
            sys.exit(1)
        if is_unregistered(result):
            sys.exit(EXIT_STATUS)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {as_typed(redact(str(error)))}")
    except TimeIsUpError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except Exception:  # a bug or an error of the cluster: its traceback, without credentials of URLs
        sys.exit(redact(traceback.format_exc()))


def is_unregistered(result: Mapping[str, Any]) -> bool:
    """Whether a pipeline (of any seed or fold) could not register its model because MLflow was down."""
    return any(
        one.get("job") == "pipeline" and "undelivered" in one and "model_uri" not in one
        for one in (result.get("seeds") or result.get("folds") or {"": result}).values()
    )


def check_target(option: str, name: str | None) -> None:
    """ValueError where a file can't be written: raised at the start, not after the work."""
    if name is None:
        return
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{option} {name} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {name} can't be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {name} can't be written: permission denied")
