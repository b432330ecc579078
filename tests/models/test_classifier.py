"""The classifiers: pooling, masking in training, padding, band-mean subtraction, layer decay, pre-trained weights."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig
from raymae.models import AudioClassifier, Cnn, MaskedAutoencoder, build_classifier, load_encoder
from raymae.models.classifier import subtract_band_mean
from raymae.models.masking import Kept, kept_of, only
from tests.support.masks import make_draws, tensors

torch.set_num_threads(1)

AUDIO = AudioConfig(n_mels=32)
MODEL = ModelConfig(
    patch_size=(8, 8), embed_dim=32, depth=3, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
)
PLAIN = FinetuneConfig(drop_path=0.0, time_mask_ratio=0.0, freq_mask_ratio=0.0)
POOLS = pytest.mark.parametrize("pool", ["mean", "cls", "row_stats"])


def make(model: ModelConfig = MODEL, **changes: object) -> AudioClassifier:
    torch.manual_seed(0)
    classifier = AudioClassifier(AUDIO, model, dataclasses.replace(PLAIN, **changes), 3)
    nn.init.normal_(classifier.head.weight)
    return classifier.eval()


def sound(batch: int, n_frames: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n_frames, 32, generator=torch.Generator().manual_seed(seed))


def draw(
    classifier: AudioClassifier,
    batch: int,
    grid: tuple[int, int],
    seed: int = 0,
    segments: int = 1,
    valid: Tensor | None = None,
) -> tuple[Kept, Tensor | None]:
    """The arguments kept and drop of a training step, of clips whose patches are all valid by default."""
    shape = batch, segments, grid[0] * grid[1]
    sounding = np.ones(shape, np.bool_) if valid is None else valid.numpy().reshape(shape)
    drawn = tensors(classifier.draw(sounding, grid, make_draws(batch, seed)))
    return kept_of(drawn), drawn.get("drop")


def all_parameters_once(model: AudioClassifier | Cnn, groups: list[dict]) -> bool:
    grouped = [id(p) for group in groups for p in group["params"]]
    return sorted(grouped) == sorted(id(p) for p in model.parameters())


@POOLS
@pytest.mark.parametrize("subtract", [False, True])
def test_padding_changes_nothing(pool: str, subtract: bool) -> None:
    classifier = make(pool=pool, subtract_band_mean=subtract)
    short = sound(1, 43)
    padded = sound(2, 96, seed=1)
    padded[0] = AUDIO.silence
    padded[0, :43] = short[0]
    logits = classifier(padded, torch.tensor([43, 96]))
    assert torch.allclose(logits[0], classifier(short)[0], atol=1e-4)
    assert torch.allclose(logits[1], classifier(padded[1:])[0], atol=1e-4)


@POOLS
@pytest.mark.parametrize("subtract", [False, True])
def test_segments_are_encoded_separately_and_pooled_together(pool: str, subtract: bool) -> None:
    seconds = 48 * AUDIO.hop_length / AUDIO.sample_rate
    in_segments = make(pool=pool, subtract_band_mean=subtract, segment_seconds=seconds)
    whole = make(pool=pool)
    clips = sound(2, 96)
    clips[1, 64:] = AUDIO.silence
    frames = torch.tensor([96, 64])
    inputs = subtract_band_mean(clips, frames) if subtract else clips
    tokens, ids, rows = [], [], []
    for start in (0, 48):
        patches = whole.encoder.patchify(inputs[:, start : start + 48])
        valid = whole.encoder.valid(patches, (frames - start).clamp(0, 48))
        encoded = whole.encoder(patches, only(valid).kept)
        for clip in range(2):
            kept = valid[clip]
            tokens.append((encoded[clip, :1], encoded[clip, 1:][: int(kept.sum())]))
            ids.append(clip)
            rows.append(kept.nonzero()[:, 0] % patches.grid[1])
    logits = in_segments(clips, frames)
    for clip in range(2):
        mine = [index for index, owner in enumerate(ids) if owner == clip]
        classes = torch.cat([tokens[index][0] for index in mine])
        patch_tokens = torch.cat([tokens[index][1] for index in mine])
        row = torch.cat([rows[index] for index in mine])
        if pool == "cls":
            pooled = classes.mean(0)
        elif pool == "mean":
            pooled = whole.norm(patch_tokens.mean(0))
        else:
            parts = [patch_tokens[row == one] for one in range(4)]
            means = [part.mean(0) for part in parts]
            deviations = [(part.var(0, unbiased=False) + 1e-6).sqrt() for part in parts]
            pooled = whole.norm(torch.stack([*means, *deviations])).flatten()
        assert torch.allclose(logits[clip], whole.head(pooled), atol=1e-4)


@POOLS
def test_shifts_add_the_patches_that_begin_later(pool: str) -> None:
    """The same as one clip in whose segments both cuts come one after the other."""
    seconds = 64 * AUDIO.hop_length / AUDIO.sample_rate
    shifted, one = make(pool=pool, shifts=2), make(pool=pool, segment_seconds=seconds)
    clips, frames = sound(2, 64), torch.tensor([64, 40])
    clips[1, 40:] = AUDIO.silence
    patch = MODEL.patch_size[0]
    later = torch.full_like(clips, AUDIO.silence)
    later[:, : 64 - patch // 2] = clips[:, patch // 2 :]
    for clip, valid in enumerate(frames.tolist()):
        alone = shifted(clips[clip : clip + 1, :valid])[0]
        assert torch.allclose(shifted(clips, frames)[clip], alone, atol=1e-4)
    both = torch.cat([clips[:1], later[:1]], 1)
    assert torch.allclose(shifted(clips[:1]), one(both, torch.tensor([128 - patch // 2])), atol=1e-4)
    patches, own = shifted.patchify(clips, frames)
    trained = shifted(clips, frames, only(shifted.encoder.valid(patches, own)).kept)
    assert torch.allclose(trained, make(pool=pool)(clips, frames), atol=1e-4)  # training cuts a clip once


@POOLS
def test_with_raw_uses_clips_with_and_without_band_mean(pool: str) -> None:
    both, plain = (
        make(pool=pool, subtract_band_mean=True, with_raw=True, segment_seconds=0.5),
        make(pool=pool, segment_seconds=0.5),
    )
    both.encoder.load_state_dict(plain.encoder.state_dict())
    clips, frames = sound(3, 64), torch.tensor([64, 40, 64])
    clips[1, 40:] = AUDIO.silence
    halves = []
    for one in (clips, subtract_band_mean(clips, frames)):
        patches, own = plain.patchify(one, frames)
        halves.append(plain.embed(patches, only(plain.encoder.valid(patches, own)).kept))
    assert torch.allclose(both(clips, frames), both.head(torch.cat(halves, 1)), atol=1e-4)
    assert both(clips).shape == (3, 3)
    with pytest.raises(ValueError, match=r"it needs finetune\.subtract_band_mean"):
        FinetuneConfig(with_raw=True)


@POOLS
def test_masks_and_dropped_blocks_come_from_the_draws(pool: str) -> None:
    """Nothing else is random, in training neither."""
    log_mel = sound(4, 64)
    for changes in ({"time_mask_ratio": 0.5}, {"freq_mask_ratio": 0.5}, {"drop_path": 0.6}):
        classifier = make(pool=pool, **changes).train()

        def logits(seed: int, classifier: AudioClassifier = classifier) -> Tensor:
            return classifier(log_mel, None, *draw(classifier, 4, (8, 4), seed))

        assert torch.equal(logits(0), logits(0))
        assert not torch.equal(logits(0), logits(1))
        assert torch.equal(classifier(log_mel), classifier.eval()(log_mel))


@pytest.mark.parametrize("variants", [1, 2])
def test_every_row_of_a_clip_is_masked_for_itself(variants: int) -> None:
    """Two segments of each clip, with or without its raw version beside it."""
    more = {"subtract_band_mean": True, "with_raw": True} if variants == 2 else {}
    seconds = 40 * AUDIO.hop_length / AUDIO.sample_rate
    classifier = make(time_mask_ratio=0.4, freq_mask_ratio=0.2, drop_path=0.5, segment_seconds=seconds, **more)
    kept, drop = draw(classifier, 30, (5, 4), segments=2)
    assert kept.ids.shape == (30 * 2 * variants, 9)
    assert drop.shape == (30 * 2 * variants, 3, 2)
    for values in (kept.ids, drop.flatten(1)):
        rows = values.unflatten(0, (30, -1))
        assert all(not torch.equal(rows[:, 0], rows[:, row]) for row in range(1, rows.shape[1]))
    assert classifier(sound(30, 80), None, kept, drop).shape == (30, 3)


def test_structured_masking_removes_columns_and_rows() -> None:
    classifier = make(time_mask_ratio=0.2, freq_mask_ratio=0.2)
    ids = draw(classifier, 4, (10, 4))[0].ids
    kept = torch.zeros(4, 40, dtype=torch.bool).scatter(1, ids, True).unflatten(1, (10, 4))
    assert kept.any(2).sum(1).tolist() == [8] * 4
    assert kept.any(1).sum(1).tolist() == [3] * 4
    assert kept.sum((1, 2)).tolist() == [24] * 4


def test_row_stats_are_mean_and_deviation_of_each_row() -> None:
    classifier = make(pool="row_stats")
    log_mel = sound(2, 64)
    patches, frames = classifier.patchify(log_mel)
    kept = only(classifier.encoder.valid(patches, frames)).kept
    tokens = classifier.encoder(patches, kept)
    grid = tokens[:, 1:].unflatten(1, patches.grid)
    expected = torch.stack([grid.mean(1), (grid.var(1, unbiased=False) + 1e-6).sqrt()], dim=1)
    expected = nn.functional.layer_norm(expected, (32,), eps=1e-6).flatten(1)
    assert torch.allclose(classifier.pool(tokens, kept, patches), expected, atol=1e-4)


def test_masked_rows_are_zero() -> None:
    classifier = make(pool="row_stats", freq_mask_ratio=0.5)
    patches, _ = classifier.patchify(sound(2, 64))
    kept = draw(classifier, 2, patches.grid)[0]
    pooled = classifier.embed(patches, kept).view(2, 2, 4, 32)
    rows = torch.stack([(kept.ids % 4 == row).any(1) for row in range(4)], 1)
    assert rows.sum(1).tolist() == [2, 2]
    assert torch.equal(pooled.abs().amax(3) > 0, rows[:, None].expand(-1, 2, -1))


@POOLS
def test_every_parameter_is_trained(pool: str) -> None:
    classifier = make(pool=pool, time_mask_ratio=0.3, drop_path=0.1).train()
    log_mel, frames = sound(4, 64), torch.tensor([64, 64, 30, 3])
    log_mel[0] = AUDIO.silence
    patches, _ = classifier.patchify(log_mel)
    masks = draw(classifier, 4, patches.grid, valid=classifier.encoder.valid(patches, frames))
    classifier(log_mel, frames, *masks).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in classifier.parameters())


@POOLS
@pytest.mark.parametrize("layer", [None, 2])
def test_parameter_groups(pool: str, layer: int | None) -> None:
    classifier = make(pool=pool, layer=layer)
    depth = layer or 3
    groups = classifier.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    assert all_parameters_once(classifier, groups)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales["encoder.cls_token"] == scales["encoder.patch_embed.proj.weight"] == 0.5 ** (depth + 1)
    assert scales["encoder.blocks.0.attn.qkv.weight"] == 0.5**depth
    assert scales[f"encoder.blocks.{depth - 1}.mlp.fc2.bias"] == 0.5
    assert scales["head.weight"] == 1.0
    assert scales["encoder.norm.weight" if pool == "cls" else "norm.weight"] == 1.0
    for group in groups:
        for parameter in group["params"]:
            exempt = parameter.ndim == 1 or names[id(parameter)] == "encoder.cls_token"
            assert group["weight_decay"] == (0.0 if exempt else 0.05)
    assert {group["name"] for group in groups} == {"head", *(f"encoder.{i}" for i in range(depth + 1))}


@POOLS
@pytest.mark.parametrize("layer", [None, 1])
def test_encoder_comes_from_pretraining(pool: str, layer: int | None) -> None:
    torch.manual_seed(1)
    pretrained = MaskedAutoencoder(AUDIO, MODEL)
    classifier = make(pool=pool, layer=layer)
    load_encoder(classifier, pretrained.state_dict())
    weights = pretrained.encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in classifier.encoder.state_dict().items())
    assert len(classifier.encoder.blocks) == (layer or 3)


@pytest.mark.parametrize(
    ("changes", "wrong"), [({"depth": 4}, "encoder.blocks.3"), ({"patch_size": (16, 8)}, "patch_embed.proj.weight")]
)
def test_an_encoder_that_does_not_fit_is_refused(changes: dict, wrong: str) -> None:
    pretrained = MaskedAutoencoder(AUDIO, MODEL)
    with pytest.raises(ValueError, match=wrong):
        load_encoder(make(dataclasses.replace(MODEL, **changes)), pretrained.state_dict())


def test_drop_path_grows_to_the_last_block() -> None:
    """Factors are 0 or make their mean 1, those of attention and MLP apart; without drop path there are none."""
    drop = draw(make(drop_path=0.2), 5000, (1, 4))[1]
    assert drop.shape == (5000, 3, 2)
    for block, rate in enumerate([0.0, 0.1, 0.2]):
        own = drop[:, block]
        assert (own == 0).float().mean(0).tolist() == pytest.approx([rate] * 2, abs=0.02)
        assert torch.allclose(own[own > 0], torch.tensor(1 / (1 - rate)))
    both = (drop[:, 2] == 0).all(1).float().mean().item()
    assert both == pytest.approx(0.2**2, abs=0.01)
    assert draw(make(), 2, (1, 4))[1] is None


def test_head_starts_near_zero() -> None:
    assert AudioClassifier(AUDIO, MODEL, PLAIN, 10).head.weight.abs().max() < 1e-3


def test_band_mean_subtraction_removes_an_offset_of_each_band() -> None:
    log_mel, offset = sound(2, 50), torch.randn(2, 1, 32)
    valid_frames = torch.tensor([50, 30])
    filtered = log_mel + offset
    found = subtract_band_mean(filtered, valid_frames)
    assert torch.allclose(found[1, :30], subtract_band_mean(log_mel[1:, :30])[0], atol=1e-5)
    assert torch.allclose(found[0], subtract_band_mean(log_mel[:1])[0], atol=1e-5)
    assert torch.equal(found[1, 30:], filtered[1, 30:])


@POOLS
def test_learns_two_classes(pool: str) -> None:
    classifier = make(pool=pool, layer=1).train()
    log_mel = sound(16, 64)
    labels = torch.arange(16) % 2
    log_mel[labels == 1, :, 8:16] *= 3
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(classifier(log_mel), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_cnn() -> None:
    cnn = build_classifier(AUDIO, MODEL, dataclasses.replace(PLAIN, subtract_band_mean=True), 5, cnn="resnet10t")
    assert isinstance(cnn, Cnn)
    cnn.eval()
    log_mel = sound(2, 70)
    assert cnn(log_mel).shape == (2, 5)
    assert torch.allclose(cnn(log_mel), cnn(log_mel + torch.randn(2, 1, 32)), atol=1e-4)
    groups = cnn.parameter_groups(0.05, 0.75)
    assert all_parameters_once(cnn, groups)
    assert {group["lr_scale"] for group in groups} == {1.0}
