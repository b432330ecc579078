"""What a worker raised reaches the user as one line, whatever Ray wraps around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymae.cluster import train
from raymae.cluster.errors import user_error
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from tests.support.audio_files import damaged_copy
from tests.support.training import TINY, make_spec


def test_damage_is_named_in_one_line(store: FeatureStore, tmp_path: Path) -> None:
    damaged = damaged_copy(store, tmp_path)
    with pytest.raises(ValueError, match=r"^shard .* is damaged .* computes it again$") as raised:
        damaged.read(np.arange(len(damaged)))
    of_ray = f"""ray::SplitCoordinator.get() (pid=1, ip=127.0.0.1)
  File "dataset.py", line 1, in get_next
ray.exceptions.RayTaskError(UserCodeException): ray::MapWorker(MapBatches(WindowReader)).submit() (pid=2)
OSError: could not verify page integrity
The above exception was the direct cause of the following exception:
ValueError: {raised.value}
The above exception was the direct cause of the following exception:
ray.exceptions.UserCodeException: UDF failed to process a data block.
"""
    assert str(user_error(["a worker that was told to stop", of_ray])) == str(raised.value)


@pytest.mark.ray
@pytest.mark.slow
def test_damage_ends_a_run_in_one_line(store: FeatureStore, tmp_path: Path, ray_cluster: None) -> None:
    own = damaged_copy(store, tmp_path)
    config = replace(TINY, compute=replace(TINY.compute, max_failures=0))
    spec = make_spec(own, tmp_path / "run", config=config)
    with pytest.raises(ValueError, match=r"^shard .* is damaged .* computes it again$"):
        train.train([spec], Folder(str(tmp_path)))
