"""`benchmark left-out`: what is held out, and complete results on a few tones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.benchmark.studies.frozen import tables_store
from raymae.benchmark.studies.left_out import LEFT_OUT, SEEN, Clips, Features, LeftOut, held_out, score
from raymae.benchmark.studies.transfer import changed_recipe
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table


def make_clips(n: int, classes: int, groups: int, devices: int, seed: int) -> Clips:
    draws = np.random.default_rng(seed)
    group = draws.integers(groups, size=n)
    return Clips(group % classes, group.astype(str), draws.integers(devices, size=n).astype(str))


@given(
    n=st.integers(40, 120),
    classes=st.integers(2, 4),
    devices=st.integers(2, 4),
    seed=st.integers(0, 99),
    shots=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_a_head_is_scored_on_other_groups_and_on_each_device(
    n: int, classes: int, devices: int, seed: int, shots: int | None
) -> None:
    clips = make_clips(n, classes, 6 * classes, devices, seed)
    parts = list(held_out(clips, 3, seed, shots))
    for device in np.unique(clips.devices):
        own = [part for part in parts if part.device == device]
        for part in own:
            tested = np.concatenate([part.seen, part.left_out])
            assert not set(clips.groups[part.train]) & set(clips.groups[tested])
            assert device not in clips.devices[part.train]
            assert device not in clips.devices[part.seen]
            assert set(clips.devices[part.left_out]) <= {device}
            assert set(clips.labels[tested]) <= set(clips.labels[part.train])
            assert len(set(part.train.tolist())) == len(part.train)
            if shots:
                assert np.bincount(clips.labels[part.train]).max() <= shots
        tested = np.concatenate([np.concatenate([part.seen, part.left_out]) for part in own])
        assert len(set(tested.tolist())) == len(tested)  # once
    assert [tuple(part.train) for part in parts] == [tuple(part.train) for part in held_out(clips, 3, seed, shots)]


def test_what_only_a_device_says_misleads_where_it_is_left_out() -> None:
    clips = make_clips(300, 3, 30, 3, 0)
    truth = np.eye(3)[clips.labels] + np.random.default_rng(0).normal(size=(300, 3)) / 2
    # through device 2 another value says a class
    moved = np.where((clips.devices == "2")[:, None], np.roll(truth, 1, axis=1), truth).astype(np.float32)
    parts = [part for part in held_out(clips, 3, 0, None) if part.device == "2"]
    misled = score(parts, Features(moved), clips.labels)
    assert misled[SEEN] > 0.8
    assert misled[LEFT_OUT] < 0.2
    # standardised by copies in which these values are the other devices', a fourth one that none changes is read
    steady = np.concatenate([moved, truth], 1).astype(np.float32)
    copies = steady.copy()
    copies[:, :3] += 30 * np.random.default_rng(1).normal(size=(300, 3))
    by_copies = score(parts, Features(steady, copies), clips.labels)
    assert by_copies[LEFT_OUT] > score(parts, Features(steady), clips.labels)[LEFT_OUT] + 0.2


def test_read_outs_of_an_encoder(tmp_path: Path) -> None:
    clips = write_clips(tmp_path, 60)
    table = str(write_table(tmp_path, clips))
    short = ("pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.probe_clips=0", "compute.torch_threads=1")
    config = changed_recipe("synthetic", short)
    store = tables_store(Folder(str(tmp_path / "store")), config.audio, [table])
    encoder = Folder(str(tmp_path / "encoder"))
    run_stage(
        StageSpec(name="pretrain", kind="pretrain", config=config, artifact=encoder, store=store),
        BareSession(store, encoder),
    )
    part = LeftOut(
        model=encoder.url,
        tables=(table,),
        recipe="synthetic",
        settings=("finetune.shifts=2",),
        folds=2,
        repeats=1,
        threads=1,
        json=str(tmp_path / "left.json"),
    )
    result = part.run()
    result.save(str(tmp_path / "left.json"))
    scores = json.loads((tmp_path / "left.json").read_text())["scores"]
    eq = ", standardised by random EQ"
    assert list(scores) == ["log-mel statistics", "random weights", "1 cut", f"1 cut{eq}", "2 cuts", f"2 cuts{eq}"]
    devices = {device for device in clips["device"].to_pylist() if device}
    for found in scores.values():
        assert len(found[SEEN]) == len(found[LEFT_OUT]) == len(devices)
        assert all(0 <= value <= 1 for values in found.values() for value in values)
    assert "| 2 cuts, standardised by random EQ |" in result.text
    plain = replace(part, settings=("finetune.augment.eq_p=0",), json=None).run().values["scores"]
    assert list(plain) == ["log-mel statistics", "random weights", "1 cut"]


def test_what_can_t_be_read_is_named_before_the_tables_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model\.safetensors: name the folder of a pre-training"):
        LeftOut(model=str(tmp_path), tables=("missing.csv",), recipe="synthetic").run()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="--folds 1 leaves nothing to train on: 2 or more"):
        LeftOut(model=str(tmp_path), tables=("missing.csv",), recipe="synthetic", folds=1).run()


def test_one_device_leaves_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    clips = write_clips(tmp_path, 20)
    at = clips.column_names.index("device")
    table = str(write_table(tmp_path, clips.set_column(at, "device", [["a"] * len(clips)])))
    with pytest.raises(ValueError, match="have one device in column device, 'a': leaving out one in turn takes two"):
        LeftOut(model=str(tmp_path), tables=(table,), recipe="synthetic").run()
