"""What a sweep has found so far: its winner with the points that can't be told from it, tables, figure, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raymae.config import Config, redact
from raymae.evaluation.png import png
from raymae.storage.folder import Folder
from raymae.sweep.heatmap import sweep_figure
from raymae.sweep.results import BEST, CSV, TABLE, Record, best_of, front, settings_of
from raymae.sweep.space import Axis
from raymae.sweep.standing import ALPHA, Standings, chosen, standings, tied
from raymae.sweep.tables import table, table_csv

HEAT_MAP, LINEAGE = "figures/heatmap.png", "lineage.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The records of a sweep and what follows from them."""

    config: Config
    folder: Folder
    axes: Sequence[Axis]
    metric: str
    records: Sequence[Record]

    @cached_property
    def standings(self) -> Standings:
        """Every finished trial beside the winner."""
        return standings(self.records, self.folder, self.config.finetune.labels)

    @property
    def winner(self) -> Record | None:
        """The finished trial of the highest score."""
        return best_of(self.records)

    @property
    def tied(self) -> list[Record]:
        """The winner and the points that can't be told from it."""
        return tied(self.records, self.standings)

    @property
    def best(self) -> Record | None:
        """The trial whose settings best.json holds (`SweepConfig.prefer`)."""
        return chosen(self.records, self.standings, self.config.sweep.prefer)

    def write(self) -> None:
        """Write the tables, the heat map and the best settings."""
        self.folder.write_bytes(CSV, table_csv(self.records, self.axes, self.metric, self.standings).encode())
        text = table(self.records, self.axes, self.metric, self.standings)
        self.folder.write_bytes(TABLE, "\n\n".join([text, *self.sentences(), ""]).encode())
        title = f"{self.config.recipe}: {self.metric} by trial"
        self.folder.write_bytes(HEAT_MAP, png(sweep_figure(self.records, self.axes, self.metric, title)))
        if any(one.lineage for one in self.records):
            members = [
                {"key": one.key, "score": one.score, "values": one.changes, **one.lineage} for one in self.records
            ]
            self.folder.write_json(LINEAGE, sorted(members, key=lambda one: (one["generation"], one["member"])))
        if best := self.best:
            self.folder.write_json(BEST, settings_of(self.config, best.changes))

    def sentences(self) -> list[str]:
        """What the comparison of the winner with the other points says."""
        winner, compared = self.winner, len(self.standings) - 1
        if winner is None or compared < 1:
            return []
        others = [one.label for one in self.tied[1:]]
        test = f"paired test over the groups of split val, p >= {ALPHA:g} corrected for {compared} points by Holm"
        if not others:
            return [f"The winner can be told from each of the other points ({test})."]
        return [
            f"{len(others)} of {compared} other points can't be told from the winner ({test}): {'; '.join(others)}."
        ]

    def closing(self) -> list[str]:
        """The last lines of the console; ValueError where no trial finished."""
        best, winner, url = self.best, self.winner, redact(self.folder.url)
        if best is None or winner is None:
            reasons = Counter(one.error or one.status for one in self.records)
            raise ValueError(f"no trial finished: {reasons.most_common(1)[0][0]}")
        lines = [f"winner:            {self._scored(winner)}"]
        if best is not winner:
            lines.append(f"cheapest of these: {self._scored(best)}")
        lines += self.sentences()
        if len(self.config.sweep.objectives) > 1:
            lines.append("score against cost, none of these is beaten in both:")
            lines += [f"  {(one.flops or 0) / 1e12:.3g} TFLOP: {self._scored(one)}" for one in front(self.records)]
        if winner.lineage:
            key = winner.stages[max(winner.stages, key=list(winner.stages).index)]["key"]
            lines.append(f"its lineage:       {url}/{LINEAGE}; its classifier: the artifact {key}")
        return [*lines, f"run the best:      python jobs/pipeline.py {self.config.recipe} --settings {url}/{BEST}"]

    def _scored(self, record: Record) -> str:
        standing = self.standings.get(record.key)
        found = standing.interval if standing else None
        interval = f", 95 % interval {found[0]:.4f} to {found[1]:.4f}" if found else ""
        return f"{record.label}: {self.metric} {record.score:.4f}{interval} (split val)"

    def result(self) -> dict[str, Any]:
        """The best settings, the points that can't be told from the winner, and all trials, for JSON."""
        best, winner = self.best, self.winner
        assert best is not None
        assert winner is not None
        return {
            "metric": self.metric,
            "best": {
                "changes": best.changes,
                "score": best.score,
                "settings": f"{redact(self.folder.url)}/{BEST}",
            },
            "winner": {"changes": winner.changes, "score": winner.score},
            "pareto": [{"changes": one.changes, "score": one.score, "flops": one.flops} for one in front(self.records)],
            "tied": [{"changes": one.changes, "score": one.score} for one in self.tied[1:]],
            "trials": [self._trial(one) for one in self.records],
        }

    def _trial(self, one: Record) -> dict[str, Any]:
        found = {"changes": one.changes, "status": one.status, "score": one.score, "seconds": one.seconds}
        standing = self.standings.get(one.key) if one.status == "finished" else None
        compared = {
            "interval": standing.interval if standing else None,
            "behind": standing.behind if standing else None,
            "behind_interval": standing.behind_interval if standing else None,
            "p_holm": standing.p if standing else None,
        }
        return found | {"flops": one.flops} | ({"lineage": one.lineage} if one.lineage else {}) | compared
