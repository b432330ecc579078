"""What can be read from embeddings in which it was hidden on purpose."""

import numpy as np
import pyarrow as pa

from raymae.invariance import read_out


def make_clips(n: int, groups_per_device: int = 30) -> pa.Table:
    """Clips of two scenes and two devices; a group is one recording through one device."""
    rows = [
        {
            "clip_id": f"clip{number}",
            "device": "ab"[number % 2],
            "city": "x",
            "scene_label": "bus" if number // 2 % 2 else "park",
            "group": f"g{number % (2 * groups_per_device)}",
        }
        for number in range(n)
    ]
    return pa.Table.from_pylist(rows)


def test_what_is_in_the_embeddings_is_read_and_nothing_else() -> None:
    clips = make_clips(240)
    rng = np.random.default_rng(0)
    device = np.array([name == "b" for name in clips["device"].to_pylist()], float)
    scene = np.array([name == "bus" for name in clips["scene_label"].to_pylist()], float)
    noise = rng.normal(size=(240, 6)) * 0.3
    tells_device, tells_scene = noise.copy(), noise.copy()
    tells_device[:, 0] += device
    tells_scene[:, 0] += scene
    found = read_out({"device": tells_device, "scene": tells_scene}, clips, "single", 4)
    assert found["layer"] == 4
    assert set(found["targets"]) == {"device", "scene"}  # there is one city alone
    assert found["targets"]["device"]["chance"] == 0.5
    assert found["scores"]["device"]["device"] > 0.9
    assert found["scores"]["scene"]["scene"] > 0.9
    assert abs(found["scores"]["scene"]["device"] - 0.5) < 0.2
    assert abs(found["scores"]["device"]["scene"] - 0.5) < 0.2
    assert "scene" not in read_out({"x": tells_scene}, clips, "multi", 4)["targets"]


def test_a_device_with_too_few_groups_is_left_out() -> None:
    clips = make_clips(40, groups_per_device=3)
    assert read_out({"x": np.ones((40, 2))}, clips, "single", 1)["targets"].get("device") is None
