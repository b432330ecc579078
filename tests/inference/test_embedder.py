"""Embeddings of frozen encoders: segments, pooling, layers, folders of encoders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import AugmentConfig
from raymae.features.augment import crop_frames
from raymae.features.store import FeatureStore
from raymae.inference.classifier import write_classifier
from raymae.inference.embedder import Embedder, make_embedder, read_embedder
from raymae.models import Encoder, build_classifier
from raymae.models.masking import every
from raymae.models.pooling import cut_segments, segment_starts
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.audio_files import TINY_AUDIO
from tests.support.training import TINY, make_spec

N_FRAMES = TINY_AUDIO.n_frames


def make(layers: tuple[int, ...] = (), crop_seconds: float | None = None) -> Embedder:
    torch.manual_seed(0)
    encoder = Encoder(TINY_AUDIO, TINY.model).eval()
    segment = crop_frames(AugmentConfig(crop_seconds=crop_seconds), TINY_AUDIO)
    return make_embedder(encoder, TINY_AUDIO, TINY.model, segment, layers)


def sound(batch: int, frames: int = N_FRAMES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, frames, TINY_AUDIO.n_mels)).astype(np.float32)


def lengths(batch: int, frames: int = N_FRAMES) -> np.ndarray:
    return np.full(batch, frames, np.int32)


@given(st.integers(1, 500), st.integers(1, 100), st.integers(1, 16))
def test_segments_cover_a_clip_but_for_a_rest_of_less_than_a_patch(n_frames: int, length: int, least: int) -> None:
    starts = segment_starts(n_frames, length, least)
    covered = {frame for start in starts for frame in range(start, min(start + length, n_frames))}
    assert covered == set(range(len(covered)))
    assert n_frames - len(covered) < least
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert all(start + length <= n_frames for start in starts) or len(starts) == 1
    clips = torch.arange(2.0 * n_frames).view(2, n_frames, 1)
    segments, frames = cut_segments(clips, torch.tensor([n_frames, 1]), length, least)
    expected = [clips[clip, start : start + length] for clip in range(2) for start in starts]
    assert torch.equal(segments, torch.stack(expected))
    assert frames.tolist() == [len(expected[0])] * len(starts) + [int(start == 0) for start in starts]


@pytest.mark.parametrize(("pool", "size"), [("row_stats", 2 * 4 * 32), ("mean", 32), ("cls", 32)])
def test_sizes(pool, size: int) -> None:
    assert make().clips(sound(3), lengths(3), pool).shape == (3, size)


def test_the_mean_is_that_of_the_layers_tokens() -> None:
    embedder = make(layers=(1, 2))
    log_mel = torch.from_numpy(sound(2))
    patches = embedder.encoder.patchify(log_mel)
    everything = every(None, 2, patches.values.shape[1], log_mel.device)
    outputs = embedder.encoder.layer_outputs(patches, everything)
    expected = ((outputs[0] + outputs[1]) / 2)[:, 1:].mean(1)
    assert np.allclose(embedder.clips(sound(2), lengths(2), "mean"), expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("crop_seconds", [None, 0.32])
@pytest.mark.parametrize("pool", ["row_stats", "mean"])
def test_padding_and_other_clips_of_the_batch_change_nothing(crop_seconds: float | None, pool) -> None:
    embedder = make(crop_seconds=crop_seconds)
    valid = embedder.segment // 8 * 8
    one = sound(1)
    one[:, valid:] = TINY_AUDIO.silence
    two = np.concatenate([one, sound(1, seed=1)])
    alone = embedder.clips(one[:, :valid], lengths(1, valid), pool)
    together = embedder.clips(two, np.array([valid, N_FRAMES], np.int32), pool)
    assert np.allclose(alone[0], together[0], atol=1e-4)


def test_segments_are_encoded_one_by_one() -> None:
    embedder = make(crop_seconds=0.32)
    log_mel = sound(1)
    halves = [log_mel[:, start : start + embedder.segment] for start in segment_starts(N_FRAMES, embedder.segment, 8)]
    parts = [embedder.clips(half, lengths(1, half.shape[1]), "mean") for half in halves]
    assert np.allclose(embedder.clips(log_mel, lengths(1), "mean"), np.mean(parts, axis=0), atol=1e-5)


def test_frames_have_their_times_and_their_mean_is_the_clip() -> None:
    embedder = make(crop_seconds=0.32)
    vectors, starts = embedder.frames(sound(2), lengths(2))
    assert vectors.shape == (2, len(starts), 32)
    assert starts[0] == 0
    assert starts[-1] == N_FRAMES - 8
    assert np.allclose(vectors.mean(1), embedder.clips(sound(2), lengths(2), "mean"), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_missing_layer_is_an_error(layer: int) -> None:
    with pytest.raises(ValueError, match=f"no layer {layer}: the encoder has 2 blocks"):
        make(layers=(layer,))


@pytest.mark.parametrize("name", ["mae", "latent"])
def test_folders_hold_all_settings(store: FeatureStore, tmp_path: Path, name) -> None:
    torch.set_num_threads(1)
    short = replace(TINY.pretrain, epochs=1, warmup_epochs=0, augment=AugmentConfig(crop_seconds=0.32))
    config = replace(TINY, pretrain=short, model=replace(TINY.model, name=name))
    pretrained = make_spec(store, tmp_path / "pretrain", config=config)
    run_stage(pretrained, BareSession(store, pretrained.artifact))
    embedder = read_embedder(pretrained.artifact)
    assert embedder.segment == round(0.32 * 8000 / 80)
    quick = replace(TINY.finetune, epochs=1, warmup_epochs=0, layer=1)
    finetuned = make_spec(
        store, tmp_path / "finetune", "finetune", replace(config, finetune=quick), encoder=pretrained.artifact
    )
    run_stage(finetuned, BareSession(store, finetuned.artifact))
    assert read_embedder(finetuned.artifact).layers == (1,)
    with pytest.raises(ValueError, match="holds no encoder"):
        read_embedder(Folder(str(tmp_path / "nothing")))
    figure = pretrained.artifact.read_bytes("figures/reconstruction.png")
    assert figure.startswith(b"\x89PNG")


def test_pretraining_is_probed_at_regular_steps(store: FeatureStore, tmp_path: Path) -> None:
    from raymae.storage.events import read_events

    torch.set_num_threads(1)
    spec = make_spec(store, tmp_path)
    run_stage(spec, BareSession(store, spec.artifact))
    probed = [event["metrics"] for event in read_events(spec.artifact) if "probe/linear" in event["metrics"]]
    assert len(probed) == 10
    assert all(1 <= one["probe/effective_rank"] < 40 for one in probed)
    assert probed[-1]["probe/linear"] > 0.9
    assert probed[-1]["probe/knn"] > 0.9


def test_embeddings_of_a_classifier_with_band_mean_subtraction_use_it(tmp_path: Path) -> None:
    """An offset of each band, as of a device, changes embeddings only without band-mean subtraction."""
    for band_mean in (True, False):
        finetune = replace(TINY.finetune, subtract_band_mean=band_mean)
        model, folder = build_classifier(TINY_AUDIO, TINY.model, finetune, 2), Folder(str(tmp_path / str(band_mean)))
        settings = {"audio": TINY_AUDIO, "model_config": TINY.model, "finetune": finetune}
        write_classifier(folder, model, class_names=["high", "low"], **settings)
        embedder = read_embedder(folder)
        log_mel = sound(2)
        device = np.linspace(-2, 2, log_mel.shape[2], dtype=np.float32)
        change = np.abs(embedder.clips(log_mel + device, lengths(2)) - embedder.clips(log_mel, lengths(2))).max()
        assert (change < 1e-3) == band_mean
