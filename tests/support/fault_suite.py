"""Inject faults at random times into whole pipelines, by real signals, until there were `--faults` of them.

    python -m tests.support.fault_suite --faults 50 --seed 0 --json faults.json

A cluster of real nodes runs the pipeline once without faults and then repeatedly, each time in a new storage, while
worker processes, nodes and drivers are killed at random times, a second driver gets the same command, a driver is
stopped for longer than its lease, and checkpoints and shards are damaged. Every run's results have to equal those of
the first to the bit, and no step that a sound checkpoint holds may be repeated. Exit status 0 means that this was so
for all. Two training workers, never fewer: one alone would add up in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raymae.storage.commits import complete, latest_step, step_of
from raymae.storage.events import read_events
from raymae.storage.folder import COMMITS, EVENTS, Folder
from raymae.storage.lease import EXPIRE_SECONDS
from tests.support.audio_files import write_clips, write_table
from tests.support.nodes import ROOT, Nodes, wait_until

TARGETS = {
    "training worker": 4,
    "other process": 3,
    "node": 2,
    "driver": 2,
    "second driver": 2,
    "paused driver": 1,
    "checkpoint": 2,
    "shard": 1,
}
"""What a fault meets, with relative frequencies. "other process": Ray's processes that read, featurize or control."""
PAUSE = 1.25 * EXPIRE_SECONDS
"""How long a paused driver is stopped, seconds; a second driver takes over meanwhile."""
SETTINGS = {
    "--data.dataset": "table",
    "--data.shard-mb": 0.1,
    "--unlabelled": "pseudo_labels consistency",
    "--pretrain.epochs": 60,
    "--pretrain.precision": "fp32",
    "--pretrain.commit-minutes": 0.02,
    "--pretrain.report-steps": 1,
    "--finetune.epochs": 60,
    "--finetune.precision": "fp32",
    "--finetune.commit-minutes": 0.02,
    "--finetune.report-steps": 1,
    "--consistency.epochs": 20,
    "--evaluate.baselines": "svm svm_robust",  # the CNN trains for seconds, not steps: no two runs of it are equal
    "--pretrain.micro-batch-size": 16,
    "--finetune.micro-batch-size": 8,
    "--compute.num-workers": 2,
    "--compute.min-workers": 2,
    "--compute.torch-threads": 1,
    "--compute.max-failures": 6,  # a removed shard ends the job after so many; every checkpoint refills it
    "--compute.wait-minutes": 2,
}
PATIENCE = 900
REPAIRS = "the same command computes it again"


@dataclass(frozen=True)
class Fault:
    """One kill."""

    seed: int
    number: int
    target: str
    what: str
    """Ray's name for the process."""
    stage: str
    step: int | None
    recovered: float
    """Seconds until there was something new in the storage."""


@dataclass
class Pipeline:
    """One run of the pipeline in its own storage, and the steps that checkpoints held before each fault."""

    nodes: Nodes
    storage: Path
    table: Path
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    repaired: int = 0
    """How often the command had to be given again, as its error said."""
    kept: dict[Path, float] = field(default_factory=dict)
    """Times at which the event files of steps up to a checkpoint were written, in nanoseconds."""

    def start(self) -> None:
        """Run the command, again or beside itself."""
        fields = SETTINGS | {"--storage": self.storage, "--data.tables": self.table}
        words = [word for name, value in fields.items() for word in (name, *str(value).split())]
        command = [sys.executable, "jobs/pipeline.py", "synthetic", *words, "--compute.address", self.nodes.address]
        with self.log.open("ab") as log:
            self.drivers.append(
                subprocess.Popen(command, cwd=ROOT, env=self.nodes.environment, stdout=log, stderr=subprocess.STDOUT)
            )

    @property
    def log(self) -> Path:
        """The output of its drivers."""
        return self.storage.with_suffix(".log")

    def ended(self) -> bool:
        """Whether all drivers have ended successfully; RuntimeError if one failed.

        One that says that the same command repairs a damaged shard is given that command again.
        """
        for driver in list(self.drivers):
            status = driver.poll()
            if status and REPAIRS in self.log.read_text()[-4000:]:
                self.drivers.remove(driver)
                self.repaired += 1
                self.start()
            elif status:
                raise RuntimeError(f"the pipeline failed with status {status}:\n{self.log.read_text()[-4000:]}")
        return all(driver.poll() == 0 for driver in self.drivers)

    def stages(self) -> dict[str, Folder]:
        """The folders of its stages by name, in order; empty before the run has written them."""
        found = sorted(self.storage.glob("runs/*/stages.json"))
        if not found:
            return {}
        stages = json.loads(found[-1].read_text())["stages"]
        return {name: Folder(f"{self.storage}/artifacts/{one['stage']}/{one['key']}") for name, one in stages.items()}

    def now(self) -> tuple[str, int | None]:
        """The stage that is running, and the step of its newest checkpoint."""
        for name, folder in self.stages().items():
            if not folder.is_done():
                return name, latest_step(folder)
        return "start", None

    def finished_files(self) -> frozenset[str]:
        """All files that a fault must not remove."""
        paths = self.storage.glob("artifacts/**/*")
        return frozenset(
            str(path) for path in paths if path.name in ("done.json", "commit.json") or "shards" in str(path)
        )

    def remember(self) -> None:
        """Record the steps up to the newest checkpoints."""
        for folder in self.stages().values():
            committed = latest_step(folder) or (10**9 if folder.is_done() else 0)
            for path in Path(folder.path(EVENTS)).glob("*.json"):
                if int(path.stem) <= committed:
                    self.kept.setdefault(path, path.stat().st_mtime_ns)

    def forget(self, folder: Folder, step: int) -> None:
        """The steps of a stage after this one may be repeated."""
        for path in Path(folder.path(EVENTS)).glob("*.json"):
            if int(path.stem) > step:
                self.kept.pop(path, None)

    def repeated(self) -> list[str]:
        """Recorded steps that were repeated."""
        return [str(path) for path, when in self.kept.items() if path.stat().st_mtime_ns != when]


def inject(run: Pipeline, rng: random.Random) -> tuple[str, str]:
    """Kill a random target; returns its kind and its name."""
    nodes, target = run.nodes, rng.choices(list(TARGETS), weights=list(TARGETS.values()))[0]
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
    if target == "checkpoint" and (damaged := damage_checkpoint(run, rng)):
        for pid in training:  # they resume, and meet it
            os.kill(pid, signal.SIGKILL)
        return target, damaged
    if target == "shard" and (shards := sorted(run.storage.glob("artifacts/shards/*.parquet"))):
        return target, damage(rng.choice(shards), rng)
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


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit of a file, cut it or remove it; returns what was done."""
    what, content = rng.choice(["a bit of", "the end of", "the file"]), bytearray(path.read_bytes())
    if what == "the file":
        path.unlink()
    elif what == "the end of":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return f"{what} {path.name}"


def damage_checkpoint(run: Pipeline, rng: random.Random) -> str | None:
    """Damage the newest checkpoint of the stage that is trained; None without any."""
    for folder in run.stages().values():
        names = [] if folder.is_done() else complete(folder)
        if names:
            files = sorted(Path(folder.path(f"{COMMITS}/{names[-1]}")).iterdir())
            before = step_of(names[-2]) if len(names) > 1 else 0
            run.forget(folder, before)
            return damage(rng.choice(files), rng)
    return None


def disturb(run: Pipeline, seed: int, faults: list[Fault], most: int) -> None:
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
        target, what = inject(run, rng)
        before = run.finished_files()  # what was about to be finished doesn't count as recovered
        wait_until(lambda: run.ended() or run.finished_files() - before, f"progress after {target}", PATIENCE)  # noqa: B023
        faults.append(Fault(seed, len(faults) + 1, target, what, stage, step, time.monotonic() - started))
        print(line(faults[-1]), flush=True)


def line(one: Fault) -> str:
    """A line for a fault."""
    where = f"{one.stage}, step {one.step}" if one.step is not None else one.stage
    return f"fault {one.number} (seed {one.seed}): {one.target} {one.what}; {where}; recovered in {one.recovered:.0f} s"


def content(folder: Folder) -> dict[str, Any]:
    """The contents of a stage that faults must not change: by file, its bytes or its rows."""
    found: dict[str, Any] = {}
    for path in sorted(Path(folder.path()).rglob("*")):
        name = str(path.relative_to(folder.path()))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            found[name] = table.drop([one for one in ("teacher",) if one in table.column_names])  # a path
    result = folder.result()
    fields = ("trail", "steps", "clips", "quarantined", "mean", "std", "metrics", "counts", "accepted")
    found |= {name: result[name] for name in fields if name in result and result.get("stage") is None}
    return found | {"trails": [event.get("trail") for event in read_events(folder)]}


def differences(run: Pipeline, other: Pipeline) -> list[str]:
    """The differences between two runs."""
    stages, expected = run.stages(), other.stages()
    found = [] if stages.keys() == expected.keys() else [f"stages {list(stages)}, not {list(expected)}"]
    for name in stages.keys() & expected.keys():
        one, two = content(stages[name]), content(expected[name])
        found += [f"{name}: {file}" for file in sorted(one.keys() | two.keys()) if one.get(file) != two.get(file)]
    shards = [
        {path.name: path.read_bytes() for path in each.storage.glob("artifacts/shards/*/*")} for each in (run, other)
    ]
    return found + (["the shards"] if shards[0] != shards[1] else [])


def main() -> None:
    """Run the suite and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count up")
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    faults: list[Fault] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="raymae-faults-") as temporary, Nodes(Path(temporary)) as nodes:
        folder = Path(temporary)
        table = write_table(folder / "recordings", write_clips(folder / "recordings", 120))
        calm, started = Pipeline(nodes, folder / "calm", table), time.monotonic()
        disturb(calm, given.seed, [], 0)
        print(f"without faults: {time.monotonic() - started:.0f} s", flush=True)
        for seed in range(given.seed, given.seed + given.faults):
            if len(faults) >= given.faults:
                break
            run, started = Pipeline(nodes, folder / f"run{seed}", table), time.monotonic()
            disturb(run, seed, faults, given.faults)
            found = differences(run, calm) + [f"repeated: {path}" for path in run.repeated()]
            wrong += [f"seed {seed}: {one}" for one in found]
            print(
                f"seed {seed}: {time.monotonic() - started:.0f} s, {'; '.join(found) or 'no difference'}",
                flush=True,
            )
    by_target, by_stage = Counter(one.target for one in faults), Counter(one.stage for one in faults)
    print(f"{len(faults)} faults: {dict(by_target)}; {dict(by_stage)}; {len(wrong)} differences")
    if given.json:
        Path(given.json).write_text(json.dumps({"faults": [asdict(one) for one in faults], "wrong": wrong}, indent=1))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
