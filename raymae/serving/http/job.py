"""`jobs/serve.py`: a classifier behind Ray Serve until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from raymae.cluster.connect import start_ray
from raymae.cluster.ray_private import begin_to_delete
from raymae.cluster.resources.nodes import alive
from raymae.cluster.resources.pools import await_actor, torch_device
from raymae.config import ComputeConfig, Config, ServeConfig, redact
from raymae.serving.http.metrics import Board, Totals
from raymae.serving.predict import find_classifier
from raymae.storage.folder import Folder

APPLICATION = "raymae"
BOARD = "board"
"""Name of the actor that holds the counts of all replicas (`raymae.serving.http.metrics.Board`)."""
CHECK_SECONDS = 10.0
"""Time between two checks that Ray is still running."""
SPARE = 1024
"""Requests beyond the queue that still reach a replica: uploads under way, and those that it answers 503 in JSON."""
GRACE_SECONDS = 5.0
"""How much longer than its longest request a replica may take to end."""


@serve.ingress()
class Scenes:
    """A replica of the deployment."""

    def __init__(self, classifier: Folder, settings: ServeConfig, threads: int, board: Any) -> None:
        from raymae.inference.predictor import Predictor
        from raymae.serving.http.service import Service

        predictor = Predictor(classifier, torch_device=torch_device(), threads=threads)

        async def report(*what: Any) -> Totals:
            found: Totals = await board.report.remote(*what)
            return found

        self.service = Service(predictor, settings, redact(classifier.url), report)

    def __serve_build_asgi_app__(self) -> Starlette:
        from raymae.serving.http.app import application

        return application(self.service)


def serve_classifier(config: Config) -> dict[str, Any]:
    """Serve the configured classifier until SIGINT or SIGTERM.

    Returns what `--json` writes: job, classifier, classes, address, seconds (of serving). ValueError where there is no
    classifier, the port is taken, or Ray Serve already runs on the cluster.
    """
    from raymae.inference.classifier import read_classifier

    settings = config.serve
    classifier = find_classifier(config, "--serve.model", settings.model)
    classes = read_classifier(classifier).class_names  # raises for a damaged one before Ray starts
    require_free(settings.host, settings.port)
    start_ray(config.compute)
    if serve.status().proxies:
        raise ValueError(
            "Ray Serve already runs on this cluster, at an address of its own: end it (serve shutdown), or leave out "
            "--compute.address"
        )
    with stop_signal() as stop:
        try:
            address = deploy(classifier, settings, config.compute)
            print(
                f"serving {redact(classifier.url)} ({len(classes)} classes) at {address}; Ctrl-C stops it", flush=True
            )
            started = time.monotonic()
            while not stop.wait(CHECK_SECONDS):
                serve.status()  # raises where Ray has ended
            print("shutting down", flush=True)
        finally:
            end(settings.timeout_seconds + GRACE_SECONDS)
    return {
        "job": "serve",
        "classifier": redact(classifier.url),
        "classes": classes,
        "address": address,
        "seconds": time.monotonic() - started,
    }


class Closer:
    """A Ray actor that ends Serve once its replicas have answered what they have begun, for which they have `seconds`.

    It does so where it is made, so that it needs nothing more of the process that asked: `ray job stop` kills that one
    after a few seconds.
    """

    def __init__(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        begin_to_delete(APPLICATION)
        while APPLICATION in serve.status().applications and time.monotonic() < until:
            time.sleep(0.1)
        serve.shutdown()
        remove_board()


def remove_board() -> None:
    """End the actor that holds the counts of all replicas, if there is one."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(BOARD, APPLICATION))


def end(seconds: float) -> None:
    """End Serve by a `Closer`, and wait for it."""
    closer: Any = ray.remote(num_cpus=0, max_restarts=0)(Closer).options(lifetime="detached").remote(seconds)
    try:
        ray.get(closer.__ray_ready__.remote())
    finally:
        ray.kill(closer)
        serve.shutdown()  # this process's own connection


def deploy(classifier: Folder, settings: ServeConfig, compute: ComputeConfig) -> str:
    """Start Serve with the application and wait until it answers; returns its address."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=settings.host, port=settings.port),
        logging_config=quiet,
    )
    gpu = await_actor(compute, "replicas")
    cores = max(node.get("CPU", 1) for node in alive())
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if gpu else 0},
        max_ongoing_requests=settings.queue + SPARE,
        graceful_shutdown_timeout_s=settings.timeout_seconds + GRACE_SECONDS,
        logging_config=quiet,
    )(Scenes)
    threads = compute.torch_threads or max(1, int(cores / settings.replicas))
    remove_board()  # of a job that was killed
    named = {"name": BOARD, "namespace": APPLICATION, "lifetime": "detached"}
    board = ray.remote(num_cpus=0)(Board).options(**named).remote()
    serve.run(deployment.bind(classifier, settings, threads, board), name=APPLICATION)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def require_free(host: str, port: int) -> None:
    """ValueError where the address is taken or can't be listened on: Serve's proxies would share a taken one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(f"serve.host = {host}, serve.port = {port}: {error.strerror or error}") from None


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, for the block."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
