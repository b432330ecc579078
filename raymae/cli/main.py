"""Run a job from the command line: parse, run, write its JSON, and turn errors into messages and exit statuses."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymae.cli.arguments import parse
from raymae.cluster.connect import stay_local
from raymae.config import Config, redact
from raymae.training.guards.deadline import EXIT_STATUS, TimeIsUpError


def main(job: Callable[[Config], dict[str, Any]], doc: str) -> None:
    """Run a job from the command line.

    Exit status 0: everything asked for exists; 75: run the same command again, because its time was up or MLflow was
    down; 1: an error, printed in one line; 2: a wrong command line.

    Args:
        job: maps the settings to what `--json` writes. It imports Ray when it is called, not before.
        doc: the job's documentation, for `--help`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("raymae").setLevel(logging.INFO)
    config = parse(sys.argv[1:], doc)
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
        sys.exit(f"error: {redact(str(error))}")
    except TimeIsUpError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes from the last checkpoint")
    except Exception:  # a bug or an error of the cluster: its traceback, without credentials of URLs
        sys.exit(redact(traceback.format_exc()))


def is_unregistered(result: dict[str, Any]) -> bool:
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
