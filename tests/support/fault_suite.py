"""Inject faults at random times into whole pipelines, by real signals, until there were `--faults` of them.

    python -m tests.support.fault_suite --faults 50 --seed 0 --json faults.json

A cluster of real nodes runs the pipeline once without faults and then repeatedly, each time in a new storage. Worker
processes, nodes and drivers are killed at random times, a second driver gets the same command, a driver is stopped for
longer than its lease, checkpoints, shards and other files are damaged, and with `--s3` the storage fails for half a
minute. Where an error says how damage is repaired, that is done. Every run's results have to equal those of the first
to the bit, and no step that a sound checkpoint holds may be repeated. Exit status 0 means that this was so for all. Two
training workers, never fewer: one alone would add up in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fsspec.config import conf

from raymae.benchmark.harness.s3_server import CREDENTIALS, S3, s3_server
from raymae.storage.folder import Folder
from raymae.storage.lease import EXPIRE_SECONDS
from tests.support.audio_files import write_clips, write_table
from tests.support.disturbed_pipeline import Pipeline
from tests.support.nodes import Nodes, wait_until

TARGETS = {
    "training worker": 4,
    "other process": 3,
    "node": 2,
    "driver": 2,
    "second driver": 2,
    "paused driver": 1,
    "checkpoint": 2,
    "shard": 1,
    "any file": 2,
    "storage": 2,
}
"""What a fault meets, with relative frequencies. "other process": Ray's processes that read, featurize or control;
"any file": a flipped bit in one; "storage": an object store that answers nothing but errors for a while."""
PAUSE = 1.25 * EXPIRE_SECONDS
"""How long a paused driver is stopped, seconds; a second driver takes over meanwhile."""
OUTAGE = 30
"""How long the object store fails, seconds."""
PATIENCE = 900


@dataclass(frozen=True)
class Fault:
    """One fault."""

    seed: int
    number: int
    target: str
    what: str
    """Ray's name for the process, or the file and its damage."""
    stage: str
    step: int | None
    recovered: float
    """Seconds until there was something new in the storage."""


def inject(run: Pipeline, rng: random.Random, s3: S3 | None) -> tuple[str, str]:
    """Let a random fault happen; returns its kind and its name."""
    nodes = run.nodes
    names = [name for name in TARGETS if s3 or name != "storage"]
    target = rng.choices(names, weights=[TARGETS[name] for name in names])[0]
    there, training = nodes.workers(), set(nodes.training_workers())
    run.remember()
    those = [one for one in there if (one[0] in training) == (target == "training worker")] or there
    if target in ("training worker", "other process") and those:
        pid, name = rng.choice(those)
        os.kill(pid, signal.SIGKILL)
        return "training worker" if pid in training else "other process", name
    if target == "node":
        nodes.kill(rng.choice(nodes.nodes))
        nodes.add()
        return target, "raylet and all its workers"
    if target == "checkpoint" and (damaged := run.damage_checkpoint(rng)):
        for pid in training:  # they resume, and meet it
            os.kill(pid, signal.SIGKILL)
        return target, damaged
    if target == "shard" and (damaged := run.damage_shard(rng)):
        return target, damaged
    if target == "any file" and (damaged := run.damage_any(rng)):
        return target, damaged
    if target == "storage" and s3:
        fault = rng.choice(["503", "reset"])
        with s3.failing(fault):
            time.sleep(OUTAGE)
        return target, fault
    if target == "second driver":
        run.start()
        return target, "jobs/pipeline.py"
    driver = rng.choice([one for one in run.drivers if one.poll() is None])
    if target == "paused driver":
        driver.send_signal(signal.SIGSTOP)
        run.start()
        time.sleep(PAUSE)
        driver.send_signal(signal.SIGCONT)
        return target, "jobs/pipeline.py"
    driver.kill()
    driver.wait()
    run.drivers.remove(driver)
    run.start()
    return "driver", "jobs/pipeline.py"


def disturb(run: Pipeline, seed: int, faults: list[Fault], most: int, s3: S3 | None) -> None:
    """Run the pipeline to its end, with a fault whenever it has made progress since the last one."""
    rng = random.Random(seed)
    run.start()
    while not run.ended():
        if len(faults) >= most or not run.stages():
            time.sleep(0.5)
            continue
        time.sleep(rng.uniform(0, 8))
        if run.ended():
            return
        (stage, step), started = run.now(), time.monotonic()
        target, what = inject(run, rng, s3)
        before = run.finished_files()  # what was about to be finished doesn't count as recovered
        wait_until(lambda: run.ended() or run.finished_files() - before, f"progress after {target}", PATIENCE, 1)  # noqa: B023
        faults.append(Fault(seed, len(faults) + 1, target, what, stage, step, time.monotonic() - started))
        print(line(faults[-1]), flush=True)


def line(one: Fault) -> str:
    """A line for a fault."""
    where = f"{one.stage}, step {one.step}" if one.step is not None else one.stage
    return f"fault {one.number} (seed {one.seed}): {one.target} {one.what}; {where}; recovered in {one.recovered:.0f} s"


@contextmanager
def server() -> Iterator[S3]:
    """The S3 server of the tests, for this process and all that it starts."""
    os.environ.update(CREDENTIALS)
    with s3_server() as found:
        conf["s3"] = {"endpoint_url": found.url}
        os.environ["FSSPEC_S3"] = json.dumps(conf["s3"])
        yield found


def main() -> None:
    """Run the suite and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count up")
    parser.add_argument("--s3", action="store_true", help="store on an S3 server of the tests' own, which fails, too")
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    faults: list[Fault] = []
    wrong: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raymae-faults-")))
        s3 = stack.enter_context(server()) if given.s3 else None
        nodes = stack.enter_context(Nodes(folder))
        table = write_table(folder / "recordings", write_clips(folder / "recordings", 120))

        def pipeline(name: str) -> Pipeline:
            return Pipeline(nodes, s3.folder(name) if s3 else Folder(str(folder / name)), table, folder / f"{name}.log")

        calm, started = pipeline("calm"), time.monotonic()
        disturb(calm, given.seed, [], 0, s3)
        print(f"without faults: {time.monotonic() - started:.0f} s", flush=True)
        for seed in range(given.seed, given.seed + given.faults):
            if len(faults) >= given.faults:
                break
            run, started = pipeline(f"run{seed}"), time.monotonic()
            disturb(run, seed, faults, given.faults, s3)
            found = run.differences(calm) + [f"repeated: {path}" for path in run.repeated()]
            wrong += [f"seed {seed}: {one}" for one in found]
            seconds, unread = time.monotonic() - started, run.unread()
            print(
                f"seed {seed}: {seconds:.0f} s, {run.repaired} repairs, "
                + (f"damaged and not read since: {', '.join(unread)}, " if unread else "")
                + ("; ".join(found) or "no difference"),
                flush=True,
            )
    by_target, by_stage = Counter(one.target for one in faults), Counter(one.stage for one in faults)
    print(f"{len(faults)} faults: {dict(by_target)}; {dict(by_stage)}; {len(wrong)} differences")
    if given.json:
        Path(given.json).write_text(json.dumps({"faults": [asdict(one) for one in faults], "wrong": wrong}, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
