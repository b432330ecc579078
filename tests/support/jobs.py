"""Jobs of the command line that call what a test gives them."""

from collections.abc import Callable
from typing import Any

from raymae.cli.job import Job


def job_of(run: Callable[..., Any]) -> Job:
    """A job that calls a function with its settings."""
    return Job(name="pretrain", purpose="A job.", examples=(), own=("storage",), run=run)
