"""How much of the scores' variance each field of a space explains, by Optuna's fANOVA."""

from __future__ import annotations

from collections.abc import Sequence

from raymae.config import to_text
from raymae.sweep.results import Record
from raymae.sweep.search.optuna_study import distribution
from raymae.sweep.space import Axis

FEWEST = 4
"""Finished trials below which nothing can be said."""
MOST = 200
"""Finished trials of which the shares are computed at most: of a thousand that would take 15 s."""


def considered(records: Sequence[Record]) -> list[Record]:
    """The finished trials whose scores are looked at: all, or `MOST` evenly among them."""
    found = [one for one in records if one.status == "finished" and one.score is not None]
    return [found[place * len(found) // MOST] for place in range(MOST)] if len(found) > MOST else found


def importances(records: Sequence[Record], axes: Sequence[Axis]) -> dict[str, float]:
    """The share of each field, 1 in all; empty for fewer than `FEWEST` finished trials or where all scores are equal.

    fANOVA fits a forest of regression trees to the scores (Hutter et al. 2014), so the shares of few trials are rough.
    """
    found = considered(records)
    if len(found) < FEWEST or len({one.score for one in found}) < 2:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = {axis.path: distribution(axis) for axis in axes}
    for one in found:
        values = {
            axis.path: one.changes[axis.path] if axis.is_range else to_text(one.changes[axis.path]) for axis in axes
        }
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=one.score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in shares.items()}
