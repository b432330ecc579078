"""Counts of a server's answers for Prometheus, those of all its replicas together."""

from __future__ import annotations

import asyncio
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the buckets of latencies, seconds."""
SHARE_SECONDS = 1.0
"""How old the counts of another replica may be."""
REPEAT_SECONDS = 5.0
"""Time between two reports of a replica that has requests in its queue."""
STALE_SECONDS = 3 * REPEAT_SECONDS
"""After so long without a report, a replica's queue counts as empty: it has died."""
GONE = "gone"
"""Status of a request whose client left before the answer."""
OTHER = "other"

Counts = Counter[tuple[str, ...]]
"""Counts by ("responses", method, path, status), ("seconds", bucket), ("seconds",), their sum, and ("windows",)."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the replicas have counted, together."""

    counts: Counts
    """Since the job's start; those of replicas that have died, too."""
    queue: int
    """Requests in the queues of the running replicas."""


class Board:
    """Holds the last report of each replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.counts: dict[str, Counts] = {}
        self.queues: dict[str, tuple[float, int]] = {}

    def report(self, replica: str, counts: Counts, queue: int) -> Totals:
        """Take a replica's report; returns the totals."""
        now = self.clock()
        self.counts[replica], self.queues[replica] = counts, (now, queue)
        waiting = sum(length for at, length in self.queues.values() if now - at < STALE_SECONDS)
        return Totals(counts=sum(self.counts.values(), Counter()), queue=waiting)


Report = Callable[[str, Counts, int], Awaitable[Totals]]
"""Reports to the board of all replicas: `Board.report`."""


class Metrics:
    """The counts of one replica.

    Args:
        queue: the length of its queue.
        report: to a board shared with other replicas; None: it has none.
    """

    def __init__(self, queue: Callable[[], int], report: Report | None = None) -> None:
        self.queue, self.name = queue, uuid.uuid4().hex
        self.counts: Counts = Counter()
        own = Board()

        async def alone(replica: str, counts: Counts, length: int) -> Totals:
            return own.report(replica, counts, length)

        self._report = report or alone
        self._sharing: asyncio.Task[None] | None = None

    def count(self, method: str, path: str, status: str, seconds: float) -> None:
        """Count a response; `seconds` from the request's head on, kept of classified recordings."""
        self.counts["responses", method, path, status] += 1
        if (method, path, status) == ("POST", "/", "200"):
            self.counts["seconds", str(bisect_left(BUCKETS, seconds))] += 1
            self.counts["seconds",] += seconds  # type: ignore[assignment]

    def share(self) -> None:
        """Report to the board soon, and again while there are requests in the queue."""
        if self._sharing is None or self._sharing.done():
            self._sharing = asyncio.get_running_loop().create_task(self._share())

    async def _share(self) -> None:
        await asyncio.sleep(SHARE_SECONDS)
        while True:
            reported = self.counts.copy()
            await self.totals()
            if self.counts == reported and not self.queue():
                return
            await asyncio.sleep(SHARE_SECONDS if self.counts != reported else REPEAT_SECONDS)

    async def totals(self) -> Totals:
        """The counts of all replicas: this one's of now, others' of up to `SHARE_SECONDS` ago."""
        return await self._report(self.name, self.counts.copy(), self.queue())

    async def text(self) -> bytes:
        """The totals in Prometheus's text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(await self.totals()))
        return generate_latest(registry)


class _Collector:
    """The totals as metrics of prometheus_client."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals

    def collect(self) -> Iterator[Metric]:
        counts = self.totals.counts
        responses = CounterMetricFamily(
            "raymae_http_responses", "Responses, by method, path and status", labels=("method", "path", "status")
        )
        for (kind, *labels), value in sorted(counts.items()):
            if kind == "responses":
                responses.add_metric(labels, value)
        yield responses
        steps = accumulate(counts["seconds", str(place)] for place in range(len(BUCKETS) + 1))
        buckets = list(zip((*map(str, BUCKETS), "+Inf"), map(float, steps), strict=True))
        yield HistogramMetricFamily(
            "raymae_request_seconds",
            "Time from the head of a request to the answer of a classified recording",
            buckets=buckets,
            sum_value=float(counts["seconds",]),
        )
        yield CounterMetricFamily("raymae_windows", "Windows classified", value=counts["windows",])
        yield GaugeMetricFamily(
            "raymae_queue_length", "Uploaded recordings that are worked on or wait", value=self.totals.queue
        )


class Counted:
    """ASGI middleware that counts responses."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its response."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self.metrics.share()
        try:
            await self.app(scope, receive, noted)
        except Exception:  # the server answers 500 above
            status = "500"
            raise
        finally:
            path = scope["path"] if scope["path"] in self.paths else OTHER
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self.metrics.count(method, path, status, time.perf_counter() - started)
            self.metrics.share()


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
