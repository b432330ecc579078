"""A pipeline in a storage of its own, whose drivers may be killed and whose files may be damaged."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raymae.storage.commits import complete, latest_step, step_of
from raymae.storage.events import read_events
from raymae.storage.folder import COMMITS, EVENTS, Folder
from tests.support.nodes import ROOT, Nodes

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
    "--pretrain.mixing-group": 16,
    "--finetune.mixing-group": 8,
    "--compute.num-workers": 2,
    "--compute.min-workers": 2,
    "--compute.torch-threads": 1,
    "--compute.max-failures": 6,  # a removed shard ends the job after so many; every checkpoint refills it
    "--compute.wait-minutes": 2,
    "--compute.stall-minutes": 1,  # three for the first step: Ray sometimes starts no reader after a kill
}
REPAIRS = "the same command computes it again"
UNDONE = re.compile(r"(\S+)/[^/\s]+ is damaged: it doesn't have the checksum")
"""The message of a finished stage that a person has to remove `done.json` of."""


@dataclass
class Pipeline:
    """One run of the pipeline in its own storage, and the steps that checkpoints held before each fault."""

    nodes: Nodes
    storage: Folder
    table: Path
    log: Path
    """The output of its drivers."""
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    repaired: int = 0
    """How often the command had to be given again, as its error said."""
    kept: dict[tuple[Folder, int], float] = field(default_factory=dict)
    """Times of the events of steps up to a checkpoint, by the stage's folder and the step."""
    damaged: dict[str, bytes] = field(default_factory=dict)
    """Damaged files and their contents; an unread one may still be there at the end."""

    def start(self) -> None:
        """Run the command, again or beside itself."""
        fields = SETTINGS | {"--storage": self.storage.url, "--data.tables": self.table}
        fields["--tracking.uri"] = f"sqlite:///{self.log.with_suffix('.db')}"
        words = [word for name, value in fields.items() for word in (name, *str(value).split())]
        command = [sys.executable, "jobs/pipeline.py", "synthetic", *words, "--compute.address", self.nodes.address]
        with self.log.open("ab") as log:
            self.drivers.append(
                subprocess.Popen(command, cwd=ROOT, env=self.nodes.environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def ended(self) -> bool:
        """Whether all drivers have ended successfully; RuntimeError if one failed.

        One that says how damage is repaired is given that repair.
        """
        for driver in list(self.drivers):
            status = driver.poll()
            if status and self._repair(self.log.read_text()[-4000:]):
                self.drivers.remove(driver)
                self.repaired += 1
                self.start()
            elif status:
                raise RuntimeError(f"the pipeline failed with status {status}:\n{self.log.read_text()[-4000:]}")
        return all(driver.poll() == 0 for driver in self.drivers)

    def _repair(self, said: str) -> bool:
        """Do what an error asks a person to do; whether it asked for something."""
        for url in UNDONE.findall(said):
            stage = Folder(url)
            self.forget(stage, -1)
            if stage.exists("done.json"):
                stage.remove("done.json")
            return True
        return REPAIRS in said

    def stages(self) -> dict[str, Folder]:
        """The folders of its stages by name, in order; empty before the run has written them."""
        found = sorted(name for name in (self.storage / "runs").files() if name.endswith("/stages.json"))
        if not found:
            return {}
        try:
            stages = (self.storage / "runs").read_json(found[-1])["stages"]
        except (ValueError, KeyError):  # damaged; the command writes it again
            return {}
        return {name: self.storage / f"artifacts/{one['stage']}/{one['key']}" for name, one in stages.items()}

    def now(self) -> tuple[str, int | None]:
        """The stage that is running, and the step of its newest checkpoint."""
        for name, folder in self.stages().items():
            if not folder.is_done():
                return name, latest_step(folder)
        return "start", None

    def finished_files(self) -> frozenset[str]:
        """All files that a fault must not remove."""
        names = (self.storage / "artifacts").files()
        return frozenset(
            name for name in names if name.endswith(("done.json", "commit.json")) or name.startswith("shards/")
        )

    def remember(self) -> None:
        """Record the steps up to the newest checkpoints."""
        for folder in self.stages().values():
            committed = latest_step(folder) or (10**9 if folder.is_done() else 0)
            for event in read_events(folder):
                if event["step"] <= committed:
                    self.kept.setdefault((folder, event["step"]), event["time"])

    def forget(self, folder: Folder, step: int) -> None:
        """The steps of a stage after this one may be repeated."""
        self.kept = {key: when for key, when in self.kept.items() if key[0] != folder or key[1] <= step}

    def repeated(self) -> list[str]:
        """Recorded steps that were repeated."""
        times = {
            (folder, event["step"]): event["time"]
            for folder in {folder for folder, _ in self.kept}
            for event in read_events(folder)
        }
        return [f"{key[0].url} step {key[1]}" for key, when in self.kept.items() if times.get(key, when) != when]

    # Damage -----------------------------------------------------------------------------------------------------------

    def damage(self, name: str, rng: random.Random, what: str = "") -> str:
        """Flip a bit of a file, cut it or remove it; returns what was done."""
        what = what or rng.choice(["a bit of", "the end of", "the file"])
        content = bytearray(self.storage.read_bytes(name))
        if what == "the file":
            self.storage.remove(name)
            return f"{what} {name}"
        if what == "the end of":
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        self.storage.write_bytes(name, bytes(content))
        self.damaged[name] = bytes(content)
        return f"{what} {name}"

    def damage_checkpoint(self, rng: random.Random) -> str | None:
        """Damage the newest checkpoint of the stage that is trained; None without any."""
        for folder in self.stages().values():
            names = [] if folder.is_done() else complete(folder)
            if names:
                files = sorted((folder / f"{COMMITS}/{names[-1]}").files())
                self.forget(folder, step_of(names[-2]) if len(names) > 1 else 0)
                return self.damage(self._name(folder, f"{COMMITS}/{names[-1]}/{rng.choice(files)}"), rng)
        return None

    def damage_shard(self, rng: random.Random) -> str | None:
        """Damage a shard; None without any."""
        shards = sorted(name for name in self.storage.files() if name.startswith("artifacts/shards/"))
        return self.damage(rng.choice(shards), rng) if shards else None

    def damage_any(self, rng: random.Random) -> str | None:
        """Flip a bit of any file."""
        files = sorted(name for name, info in self.storage.files().items() if info["size"])
        if not files:
            return None
        name = rng.choice(files)
        for folder in self.stages().values():
            inside = name.startswith(self._name(folder, ""))
            if inside and name.endswith(("done.json", "checksums.json")):
                self.forget(folder, -1)  # the stage counts as unfinished
            elif inside and COMMITS in name:
                self.forget(folder, 0)
        return self.damage(name, rng, "a bit of")

    def _name(self, folder: Folder, name: str) -> str:
        return f"{folder.url.removeprefix(self.storage.url).strip('/')}/{name}"

    # Results ----------------------------------------------------------------------------------------------------------

    def unread(self) -> list[str]:
        """Damaged files that nobody has read since, so that they still are as the fault left them."""
        return [
            name
            for name, content in self.damaged.items()
            if self.storage.exists(name) and self.storage.read_bytes(name) == content
        ]

    def content(self, folder: Folder) -> dict[str, Any]:
        """The contents of a stage that faults must not change: by file, its bytes or its rows."""
        found: dict[str, Any] = {}
        unread = set(self.unread())
        for name in sorted(folder.files()):
            if self._name(folder, name) in unread:
                continue
            if name.endswith(".safetensors"):
                found[name] = folder.read_bytes(name)
            elif name.endswith(".parquet"):
                with folder.open(name) as file:
                    table = pq.read_table(file)
                found[name] = table.drop([one for one in ("teacher",) if one in table.column_names])  # a path
        if self._name(folder, "done.json") not in unread:
            result = folder.result()
            fields = ("trail", "steps", "clips", "quarantined", "mean", "std", "metrics", "counts", "accepted")
            found |= {name: result[name] for name in fields if name in result and result.get("stage") is None}
        return found | {f"event {event['step']}": event.get("trail") for event in read_events(folder)}

    def differences(self, other: Pipeline) -> list[str]:
        """The differences to another run, without files that are damaged and were not read since."""
        stages, expected = self.stages(), other.stages()
        found = [] if stages.keys() == expected.keys() else [f"stages {list(stages)}, not {list(expected)}"]
        unread = self.unread()
        for name in stages.keys() & expected.keys():
            one, two = self.content(stages[name]), other.content(expected[name])
            left = {part for part in two if self._name(stages[name], part) in unread}
            left |= {f"event {int(path.split('/')[-1][:9])}" for path in unread if f"/{EVENTS}/" in path}
            keys = (one.keys() | two.keys()) - left
            found += [f"{name}: {file}" for file in sorted(keys) if one.get(file) != two.get(file)]
        return found + self._other_shards(other)

    def _other_shards(self, other: Pipeline) -> list[str]:
        mine, others = (
            {name: each.storage.read_bytes(name) for name in each.storage.files() if "artifacts/shards/" in name}
            for each in (self, other)
        )
        names = (mine.keys() | others.keys()) - set(self.unread())
        return [f"shard {name}" for name in sorted(names) if mine.get(name) != others.get(name)]
