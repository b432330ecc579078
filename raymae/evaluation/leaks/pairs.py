"""Same-recording pairs across a split, and what share of its held-out clips has a sibling in training.

What the pairs are worth is measured on the table itself. The null rate, how often a clip without a sibling seems to
have one, is that of labelled training clips among clips of other groups, which can't be from their recording; their
scores also set the threshold. The recall is that of training clips whose group has several clips, where there are
enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raymae.datasets.checks import evaluated
from raymae.datasets.labels import class_set, target_matrix
from raymae.evaluation.leaks.leak_share import MIN_CLIPS, Rate, reason_against, sibling_share
from raymae.evaluation.leaks.same_recording import (
    RECALL,
    THRESHOLD,
    Floats,
    Numbers,
    comparable,
    embed,
    find_siblings,
    fingerprints,
)

MOST_NULL_CLIPS = 2000
"""Most training clips that the null rate and the recall are measured on."""
KNOWN_RECALL = Rate(share=RECALL, clips=370, units=250)
"""The recall that `RECALL` was measured as."""
NULL_RATE, LOWEST = 0.02, 0.3
"""The null rate for which the threshold is chosen between `LOWEST` and `THRESHOLD`. It isn't raised further: groups
that are finer than the recordings would raise it above every sibling."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips that are compared."""

    vectors: Floats
    """Embeddings (n, d)."""
    classes: csr_array
    """1 where a clip has a class (n, C)."""
    groups: Numbers
    """Number of each clip's group (n,), -1 where it isn't known."""
    known: NDArray[np.bool_]
    """Whether a clip is in train or pool (n,)."""

    def rate(self, asked: Numbers, hits: NDArray[np.bool_]) -> Rate:
        """The share of the clips `asked` (m,) that are `hits` (m,)."""
        groups = self.groups[asked]
        units = len(np.unique(groups[groups >= 0])) + int(np.sum(groups < 0))
        return Rate(share=float(np.mean(hits)), clips=len(asked), units=units)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What pairs of a table are worth, measured on its training clips."""

    threshold: float
    """Smallest score of a pair."""
    null: Rate | None
    """Share of clips that match one of another group; None with too few clips."""
    candidates: float
    """Mean number of clips that each of them was compared with."""
    recall: Rate
    """Share of clips with a sibling that match."""


def find_pairs(rows: pa.Table) -> dict[str, Any]:
    """Same-recording pairs across the final splits of `rows`, regardless of their groups.

    Keys: clips, unread; threshold; null_rate (None where unknown); recall; held_out, by split: clips (labelled ones
    that were read), paired_share, estimate (of the share with a sibling; None with the reason), interval and reason;
    pairs, every held-out clip whose most similar comparable clip of train or pool scores at least the threshold, the
    highest first: clip_id, split, sibling, score, and same_group (None where a group is unknown). ValueError where
    there is nothing to compare.
    """
    tested = pc.and_(evaluated(rows), pc.is_valid(rows["scene_label"]))
    compared = rows.filter(pc.or_(tested, pc.invert(evaluated(rows))))
    prints, read = fingerprints(compared["path"].to_pylist())
    compared, unread = compared.take(read), len(compared) - len(read)
    known = pc.invert(evaluated(compared)).to_numpy(zero_copy_only=False)
    if known.all() or not known.any():
        raise ValueError("nothing to compare: no labelled clip of val or test…, or none of train and pool, was read")
    clips = Clips(
        vectors=embed(prints),
        classes=target_matrix(compared["scene_label"], class_set(compared["scene_label"], "multi"), "multi"),
        groups=pc.fill_null(compared["group"].combine_chunks().dictionary_encode().indices, -1).to_numpy(),
        known=known,
    )
    asked = np.flatnonzero(~known)
    nearest, scores = find_siblings(clips.vectors, asked, np.flatnonzero(known), clips.classes)
    splits, found = np.array(compared["split"].to_pylist())[asked], calibrate(clips)
    hits = scores >= found.threshold
    held_out = {
        split: estimate(clips, asked[splits == split], hits[splits == split], found)
        for split in sorted(set(splits.tolist()))
    }
    sure = [number for number in np.argsort(-scores, kind="stable") if hits[number]]
    return {
        "clips": len(compared),
        "unread": unread,
        "threshold": found.threshold,
        "null_rate": None if found.null is None else found.null.share,
        "recall": found.recall.share,
        "held_out": held_out,
        "pairs": [_pair(compared, clips.groups, asked[one], nearest[one], scores[one]) for one in sure],
    }


def calibrate(clips: Clips) -> Calibration:
    """The threshold, null rate and recall of a table; defaults and no null rate where too few clips have groups."""
    known = np.flatnonzero(clips.known & (clips.groups >= 0))
    labelled = known[np.diff(clips.classes[known].indptr) > 0]
    asked = _some(labelled)
    nearest, scores = find_siblings(clips.vectors, asked, known, clips.classes, clips.groups)
    asked, scores = asked[nearest >= 0], scores[nearest >= 0]
    if len(asked) < MIN_CLIPS:
        return Calibration(threshold=THRESHOLD, null=None, candidates=1, recall=KNOWN_RECALL)
    threshold = float(np.clip(np.quantile(scores, 1 - NULL_RATE), LOWEST, THRESHOLD))
    return Calibration(
        threshold=threshold,
        null=clips.rate(asked, scores >= threshold),
        candidates=_candidates(asked, known, clips.classes),
        recall=_own_recall(clips, labelled, threshold),
    )


def _own_recall(clips: Clips, labelled: Numbers, threshold: float) -> Rate:
    """How often training clips with a sibling match any clip; `KNOWN_RECALL` where fewer than `MIN_CLIPS` have one."""
    groups, counts = np.unique(clips.groups[labelled], return_counts=True)
    asked = _some(labelled[np.isin(clips.groups[labelled], groups[counts > 1])])
    if len(asked) < MIN_CLIPS:
        return KNOWN_RECALL
    scores = find_siblings(clips.vectors, asked, np.flatnonzero(clips.known), clips.classes)[1]
    return clips.rate(asked, scores >= threshold)


def estimate(clips: Clips, asked: Numbers, hits: NDArray[np.bool_], found: Calibration) -> dict[str, Any]:
    """The entry of a split, of clips `asked` (m,), in the result of `find_pairs`."""
    paired, null = clips.rate(asked, hits), found.null
    if null is not None:  # of as many candidates as the held-out clips have
        null = null.among(_candidates(asked, np.flatnonzero(clips.known), clips.classes) / found.candidates)
    result: dict[str, Any] = {"clips": paired.clips, "paired_share": paired.share}
    reason = reason_against(paired, null, found.recall)
    if reason is not None or null is None:
        return result | {"estimate": None, "interval": None, "reason": reason}
    share, interval = sibling_share(paired, null, found.recall)
    return result | {"estimate": share, "interval": list(interval), "reason": None}


def _some(numbers: Numbers) -> Numbers:
    """At most `MOST_NULL_CLIPS` of some numbers, evenly spaced."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_NULL_CLIPS)).astype(int))]


def _candidates(asked: Numbers, known: Numbers, classes: csr_array) -> float:
    """The mean number of clips of `known` that each clip of `asked` is compared with."""
    return sum(len(mine) * len(theirs) for mine, theirs in comparable(asked, known, classes)) / len(asked)


def _pair(rows: pa.Table, groups: Sequence[int] | Numbers, clip: int, sibling: int, score: float) -> dict[str, Any]:
    names, splits = rows["clip_id"], rows["split"]
    unknown = groups[clip] < 0 or groups[sibling] < 0
    return {
        "clip_id": names[int(clip)].as_py(),
        "split": splits[int(clip)].as_py(),
        "sibling": names[int(sibling)].as_py(),
        "score": float(score),
        "same_group": None if unknown else bool(groups[clip] == groups[sibling]),
    }
