"""Deliver outboxes to MLflow in a thread of the driver, with retries: a server that is down stops no run.

Nothing is lost: entries that aren't marked as delivered are delivered by the next job with the same storage. Nothing is
logged twice: runs are found by their key, steps that are logged are skipped, points with the same time are one point,
files replace themselves. The metrics of a training are delivered up to its newest checkpoint: a restart may take back
later ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from raymae.config import redact
from raymae.storage.events import committed_events
from raymae.storage.folder import Folder
from raymae.storage.lease import Lease
from raymae.tracking.outbox import Entry, Outbox
from raymae.tracking.receiver import AwayError, Receiver

log = logging.getLogger(__name__)

Found = TypeVar("Found")

POLL_SECONDS = 3.0
"""Between two rounds of delivery."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
"""Seconds between tries while the server is down."""
START_SECONDS = 30.0
"""How long a job waits for the first answer of a server before it starts without it."""
WAIT_SECONDS = 0.1
"""Between two looks at whether something is done."""
OTHERS_SECONDS = 12.0
"""How long a job that ends waits for another one of the same run that is delivering."""
MARKED = 32
"""Files that are marked as delivered at once: an outage repeats at most so many, which changes nothing."""


class Delivery:
    """The thread that delivers a run's outbox, and leftovers of other runs of the storage.

    Args:
        connect: connects to the server; AwayError if it is down, ValueError if it can't be used with these settings.
        others: returns outboxes with leftovers; called once, when the server has answered.
    """

    def __init__(
        self,
        outbox: Outbox,
        storage: Folder,
        connect: Callable[[], Receiver],
        others: Callable[[], list[Outbox]] = lambda: [],
    ) -> None:
        self.outbox, self.storage, self.connect, self.others = outbox, storage, connect, others
        self.tracker: Receiver | None = None
        self.away_since: float | None = None
        self.reason = ""
        self._leftovers: list[Outbox] | None = None
        self._ids: dict[tuple[str, str], str] = {}
        self._logged_steps: dict[str, int] = {}
        self._calls: list[tuple[Callable[[Any, str], Any], Future[Any]]] = []
        self._error: ValueError | None = None
        self._known_before = outbox.is_known
        self._late = self._others_deliver = False
        self._first_answer, self._wake, self._closing, self._stop = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)

    # For the job ------------------------------------------------------------------------------------------------

    def start(self, seconds: float | None = START_SECONDS) -> None:
        """Start, and wait for the server's first answer, for `seconds` or (None) as long as it takes.

        ValueError if the settings are wrong. If the server is down, or silent, a warning is logged and the thread
        retries beside the work; if its host is unknown and this run never reached it, that is a ValueError too.
        """
        self._thread.start()
        if not self._first_answer.wait(seconds):
            self._late = True
            log.warning("MLflow hasn't answered for %.0f s; the job starts without it", seconds)
        self.check()

    def check(self) -> None:
        """Raise ValueError if the server has answered, perhaps late, that it can't be used."""
        if self._error is not None:
            raise self._error

    def wake(self) -> None:
        """Start a round now: there is something new in the outbox."""
        self._wake.set()

    def call(self, function: Callable[[Any, str], Found], patience: float) -> Found:
        """Call `function` with the tracker and the id of the job's run, after all that was written before; its result.

        AwayError if the server is down for `patience` seconds; ValueError if it refuses.
        """
        future: Future[Found] = Future()
        self._calls.append((function, future))
        self._await(future.done, patience)
        if not future.done():
            self._calls = []
            raise AwayError(self.reason or "no answer")
        return future.result()

    def close(self, patience: float) -> int:
        """Deliver the rest, unless the server is down for `patience` seconds; returns how many files still wait."""
        self._closing.set()
        self._await(lambda: not self._thread.is_alive(), patience)
        self._stop.set()
        self._thread.join(1)
        return 0 if self._others_deliver else len(self.outbox.pending())

    def _await(self, done: Callable[[], bool], patience: float) -> None:
        """Wait until it is done, or the server has been down for `patience` seconds; while it is up, without limit."""
        asked = time.monotonic()
        self._wake.set()
        while not done():
            self.check()
            since = max(asked, self.away_since) if self.away_since is not None else None
            silent = self.tracker is None and not self._others_deliver and time.monotonic() - asked > patience
            if silent or (since is not None and time.monotonic() - since > patience):
                return
            time.sleep(WAIT_SECONDS)

    # The thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        lease, held, delay, left = Lease(self.outbox.claims), False, FIRST_DELAY, OTHERS_SECONDS / POLL_SECONDS
        while not self._stop.is_set():
            closing = self._closing.is_set()
            try:
                held = (held and not lease.lost) or lease.take()
                self._others_deliver = not held
                if held:
                    finished = self._round()
                else:  # another job of this run delivers its entries and ours
                    self._answer_calls()
                    self._first_answer.set()
                    left -= closing
                    finished = left <= 0
            except Exception as error:  # every kind of server and of storage has its own exceptions
                if isinstance(error, ValueError) and self.tracker is None:
                    self._error = error
                    self._first_answer.set()
                    if self._late:
                        log.error("%s; the job will end with this error after the running stages", error)
                    break
                self._note_failure(error)
                self._stop.wait(delay)
                delay = min(2 * delay, LONGEST_DELAY)
                continue
            delay = FIRST_DELAY
            if closing and finished:
                break
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
        if held:
            lease.release()

    def _round(self) -> bool:
        """Deliver what there is; True if nothing is left."""
        if self.tracker is None:
            self.tracker = self._connected()
        self._first_answer.set()
        self._deliver(self.outbox)
        self._answer_calls()
        if self.away_since is not None:
            seconds = time.monotonic() - self.away_since
            log.info("MLflow answers again after %.0f s; everything that waited is delivered", seconds)
            self.away_since = None
        if self._leftovers is None:
            self._leftovers = self.others()
        while self._leftovers:
            self._deliver_leftover(self._leftovers[0])
            self._leftovers.pop(0)
        return not self.outbox.pending()

    def _answer_calls(self) -> None:
        for call in list(self._calls):
            if self.tracker is None:
                self.tracker = self._connected()
            self._answer(*call)
            self._calls = [one for one in self._calls if one is not call]

    def _connected(self) -> Receiver:
        try:
            tracker = self.connect()
        except AwayError as error:
            if error.unknown_host and not self._known_before:
                raise ValueError(str(error)) from None
            self._note_server()
            raise
        self._note_server()
        return tracker

    def _note_server(self) -> None:
        """Record that the run belongs to this server, so that later jobs deliver its leftovers there."""
        if not self.outbox.is_known:
            self.outbox.mark()

    def _deliver_leftover(self, other: Outbox) -> None:
        lease = Lease(other.claims)
        if lease.take():  # else its own job is running
            try:
                self._deliver(other)
                log.info("delivered to MLflow what was left in %s", redact(other.folder.url))
            finally:
                lease.release()

    def _note_failure(self, error: Exception) -> None:
        self.reason = " ".join(redact(str(error) or type(error).__name__).split())
        self._logged_steps.clear()
        if self.tracker is not None:
            self.tracker.forget()
        if self.away_since is None:
            self.away_since = time.monotonic()
            log.warning(
                "nothing can be delivered to MLflow for now; the job continues and retries (%s)", self.reason[:500]
            )
        self._first_answer.set()

    def _answer(self, function: Callable[[Any, str], Any], future: Future[Any]) -> None:
        assert self.tracker is not None
        try:
            future.set_result(function(self.tracker, self._id(self.outbox, "")))
        except Exception as error:
            if type(error) is not ValueError and not self.tracker.refuses(error):
                raise
            future.set_exception(ValueError(f"MLflow refuses: {' '.join(redact(str(error)).split())}"))

    # Entries ----------------------------------------------------------------------------------------------------

    def _deliver(self, outbox: Outbox) -> None:
        pending = outbox.pending()
        for start in range(0, len(pending), MARKED):
            names = pending[start : start + MARKED]
            for name in names:
                taken = [self._try(outbox, one["run"], partial(self._apply, outbox, one)) for one in outbox.read(name)]
                if not all(taken):
                    outbox.refused.add(name)
            outbox.mark(*(name for name in names if name not in outbox.refused))
        for run in outbox.open_runs():
            self._try(outbox, run, partial(self._log_committed, outbox, run))

    def _try(self, outbox: Outbox, run: str, deliver: Callable[[], None]) -> bool:
        """Deliver something of a run. What the server refuses is logged and skipped: False."""
        assert self.tracker is not None
        try:
            deliver()
        except Exception as error:
            lost = isinstance(error, FileNotFoundError) or type(error) is ValueError  # a damaged file
            if not lost and not self.tracker.refuses(error):
                raise
            what = f"{run or 'the run'} of {redact(outbox.folder.url)}"
            kept = "" if lost else "; it is kept, and the next job with this storage offers it again"
            log.warning("not delivered to MLflow, %s: %s%s", what, " ".join(redact(str(error)).split()), kept)
            return lost
        return True

    def _id(self, outbox: Outbox, run: str) -> str:
        """The MLflow id of a run, which is created if there is none."""
        place = (outbox.folder.url, run)
        if place not in self._ids:
            self._begin(outbox, outbox.begun()[run])
        return self._ids[place]

    def _begin(self, outbox: Outbox, entry: Entry) -> None:
        assert self.tracker is not None
        self._ids[outbox.folder.url, entry["run"]] = self.tracker.run(
            entry["key"],
            entry["name"],
            parent=self._id(outbox, "") if entry["run"] else None,
            params=entry["params"],
            tags=entry["tags"],
            when=entry["time"],
        )
        if data := entry.get("data"):
            self.tracker.log_data(self._ids[outbox.folder.url, entry["run"]], data)

    def _apply(self, outbox: Outbox, entry: Entry) -> None:
        assert self.tracker is not None
        if entry["do"] == "begin":  # also of a run that had ended: it resumes
            self._begin(outbox, entry)
            return
        run_id = self._id(outbox, entry["run"])
        if entry["do"] == "log":
            self.tracker.log_events(run_id, entry["events"])
        elif entry["do"] == "tell":
            artifact = self.storage / entry["artifact"]
            for prefix, numbers in entry["numbers"].items():
                self.tracker.log_numbers(run_id, numbers, prefix, entry["time"])
            for file in entry["files"]:
                self.tracker.log_bytes(run_id, file, artifact.read_bytes(file))
        else:
            self._log_committed(outbox, entry["run"])
            self.tracker.finish(run_id, entry["status"], entry["time"])

    def _log_committed(self, outbox: Outbox, run: str) -> None:
        """Log a training's metrics up to its newest checkpoint, from the last logged step on, and their figures."""
        folder = outbox.begun()[run]["events"]
        if not folder:
            return
        assert self.tracker is not None
        artifact, run_id = self.storage / folder, self._id(outbox, run)
        events = committed_events(artifact, self._logged_steps.get(run_id, -1))
        if not events:
            return
        self.tracker.log_events(run_id, events)
        for file in dict.fromkeys(file for event in events for file in event.get("figures", ())):
            self.tracker.log_bytes(run_id, file, artifact.read_bytes(file))
        self._logged_steps[run_id] = events[-1]["step"]
