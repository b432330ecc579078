"""Latent targets: the teacher's input and targets, its moving average, no collapse and no leaks."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from raymae.config import LatentConfig, ModelConfig
from raymae.models import LatentAutoencoder
from raymae.models.mae import repeat_clips
from raymae.models.masking import every
from raymae.models.patches import all_frames
from tests.support.audio_files import TINY_AUDIO
from tests.support.masks import make_draws, run
from tests.support.training import TINY

MODEL = replace(TINY.model, name="latent", masks_per_clip=3)

EAT = replace(MODEL, latent=LatentConfig(teacher_layers=2, targets="mlp", clip_target="patches"))


def make(**changes) -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(TINY_AUDIO, replace(MODEL, **changes))


def sound(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, TINY_AUDIO.n_mels, generator=torch.Generator().manual_seed(1))


def targets(model: LatentAutoencoder, log_mel: torch.Tensor, frames: torch.Tensor | None = None):
    patches = model.patchify(log_mel)
    return model.targets(patches, model.encoder.valid(patches, all_frames(log_mel) if frames is None else frames))


def test_shapes_and_masks_of_a_clip() -> None:
    output = run(make(), sound(2, 64))
    assert output.prediction.shape == (6, 32, MODEL.embed_dim)
    assert output.mask.shape == (6, 32)
    assert output.error.shape == output.patches.shape == output.clip_error.shape == (2,)
    assert output.patches.tolist() == [3 * 20, 3 * 20], "of all masks of a clip, each with 12 of 32 patches kept"
    assert not torch.equal(output.mask[0], output.mask[1]), "each mask of a clip is drawn by itself"
    assert output.loss.ndim == 0


def test_targets_are_normalised_and_come_from_the_teacher_alone() -> None:
    model = make()
    log_mel = sound(2, 64)
    target, clip, _ = targets(model, log_mel)
    assert torch.allclose(target.mean(2), torch.zeros(2, 32), atol=1e-5)
    assert torch.allclose(target.var(2, correction=0), torch.ones(2, 32), atol=1e-2)
    assert torch.allclose(clip.mean(1), torch.zeros(2), atol=1e-5)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(targets(model, log_mel)[0], target)
    assert not target.requires_grad


def test_targets_are_the_mean_of_the_upper_blocks() -> None:
    log_mel = sound(1, 64)
    both, last = make(latent=LatentConfig(teacher_layers=2)), make(latent=LatentConfig(teacher_layers=1))
    assert not torch.allclose(targets(both, log_mel)[0], targets(last, log_mel)[0], atol=1e-3)
    default = targets(make(), log_mel)[0]  # the upper half of two blocks
    assert torch.equal(default, targets(last, log_mel)[0])


@pytest.mark.parametrize("padded", [False, True])
def test_targets_are_eats(padded: bool) -> None:
    """Against a few lines of torch: what the MLPs of all blocks put out, before the residual, by its own norms."""
    torch.manual_seed(0)
    model = LatentAutoencoder(TINY_AUDIO, EAT)
    log_mel, frames = sound(2, 64), torch.tensor([40 if padded else 64] * 2)
    seen: list[torch.Tensor] = []
    for block in model.encoder.blocks:  # its weights are still the teacher's
        block.mlp.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    patches = model.patchify(log_mel)
    used = model.encoder.valid(patches, frames)[0].sum()
    alone = model.patchify(log_mel[:, : frames[0]])
    model.encoder(alone, every(None, 2, alone.values.shape[1], log_mel.device))
    layers = [functional.instance_norm(one[:, 1:].mT).mT for one in seen]
    expected = functional.layer_norm(sum(layers) / len(layers), (MODEL.embed_dim,))
    found = targets(model, log_mel, frames)
    assert len(layers) == 2
    torch.testing.assert_close(found.patches[:, :used], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.clip, expected.mean(1), atol=1e-4, rtol=1e-4)


def test_the_class_token_itself_is_the_prediction_of_eat() -> None:
    torch.manual_seed(0)
    model = LatentAutoencoder(TINY_AUDIO, EAT)
    log_mel = sound(2, 64)
    masking = model.random_masking(log_mel, None, make_draws(2))
    token = model.forward_encoder(repeat_clips(model.patchify(log_mel), 3), masking)[:, 0]
    error = (token - targets(model, log_mel).clip.repeat_interleave(3, 0)).square().mean(1).view(2, 3).sum(1)
    torch.testing.assert_close(model(log_mel, masking).clip_error, error)


def test_the_variance_tells_of_a_collapse() -> None:
    model, log_mel = LatentAutoencoder(TINY_AUDIO, EAT), sound(2, 64)
    assert (targets(model, log_mel).variance > 0.1).all()
    for bad in (0.0, float("nan")):
        with torch.no_grad():
            for block in model.teacher.blocks:
                block.mlp.fc2.weight.fill_(bad)
        assert targets(model, log_mel).variance.tolist() == [0, 0]


def test_padding_changes_nothing() -> None:
    model = make().eval()
    short, frames = sound(1, 40), torch.tensor([40])
    padded = torch.cat([short, torch.full((1, 24, TINY_AUDIO.n_mels), TINY_AUDIO.silence)], dim=1)
    target, clip, _ = targets(model, short)
    padded_target, padded_clip, _ = targets(model, padded, frames)
    assert torch.allclose(clip, padded_clip, atol=1e-5)
    assert torch.allclose(target, padded_target[:, : target.shape[1]], atol=1e-4)


def test_the_teacher_is_updated_by_its_decay() -> None:
    model = make(latent=LatentConfig(decay=0.5, final_decay=0.9, ramp=0.5))
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    for share, decay in ((0.0, 0.5), (0.25, 0.7), (0.5, 0.9), (1.0, 0.9)):
        for mine, start in zip(model.teacher.parameters(), before, strict=True):
            mine.data.copy_(start)
        model.after_update(share)
        for mine, start in zip(model.teacher.parameters(), before, strict=True):
            assert torch.allclose(mine - start, torch.full_like(mine, 1 - decay), atol=1e-5)


def test_the_teacher_has_no_gradient_and_is_not_optimised() -> None:
    model = make()
    output = run(model, sound(2, 64))
    (output.loss + output.clip_error.mean()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    trained = {id(p) for group in model.parameter_groups(0.1) for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_teacher_view_reaches_the_teacher_only() -> None:
    model = make()
    log_mel = sound(2, 64)
    same = run(model, log_mel)
    other = run(model, log_mel, teacher_view=log_mel + sound(2, 64).roll(1, 0))
    assert torch.equal(same.prediction, other.prediction)
    assert not torch.equal(same.loss, other.loss)


def test_a_silent_clip_has_no_error() -> None:
    log_mel = sound(2, 64)
    log_mel[0] = TINY_AUDIO.silence
    output = run(make(), log_mel)
    for values in (output.error, output.patches, output.clip_error):
        assert values[0] == 0
        assert values[1] > 0


def test_overfits_a_few_clips_without_collapse() -> None:
    model = make(masks_per_clip=2, latent=LatentConfig(decay=0.9, final_decay=0.99)).train()
    log_mel = sound(8, 64)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        output = run(model, log_mel, seed=step)
        loss = output.loss + MODEL.latent.clip_weight * output.clip_error.mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update(step / 60)
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    tokens = targets(model, log_mel)[0].flatten(0, 1)
    assert torch.linalg.matrix_rank(tokens, rtol=1e-2) > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mae"}, "model.latent has no effect"),
        ({"norm_target": True}, "norm_target has no effect"),
        ({"latent": LatentConfig(teacher_layers=9)}, "must not exceed model.depth"),
        ({"masks_per_clip": 0}, "masks_per_clip = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    base = replace(MODEL, latent=LatentConfig(teacher_layers=1))
    with pytest.raises(ValueError, match=message):
        replace(base, **changes)


def test_decays_of_the_teacher_are_checked() -> None:
    with pytest.raises(ValueError, match=r"decay = 1\.0"):
        LatentConfig(decay=1.0)
    assert ModelConfig().masks_per_clip == 1
