"""What a worker raised reaches the user as one line, whatever Ray wraps around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raymae.cluster.errors import user_error
from raymae.features.store import FeatureStore
from tests.support.audio_files import damaged_copy


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
