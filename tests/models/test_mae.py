"""The masked autoencoder: patches, positions, padding, windows of the local decoder, the loss."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig
from raymae.models import MODELS, MaskedAutoencoder, build_classifier
from raymae.models.decoder import (
    SHIFT,
    WINDOW,
    WindowBlock,
    attend_fused,
    attend_plainly,
    from_windows,
    log_offsets,
    to_windows,
    window_mask,
)
from raymae.models.mae import MaeOutput
from raymae.models.masking import only
from raymae.models.patches import Positions, all_frames, grid_size, patchify, unpatchify, valid_patches
from tests.support.masks import keeping, make_draws, run

torch.set_num_threads(1)

CPU = torch.device("cpu")
AUDIO = AudioConfig(n_mels=32)
TINY = ModelConfig(
    patch_size=(8, 8),
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
    mask_ratio=0.5,
)
DECODERS = pytest.mark.parametrize("decoder", ["local", "global", "light", "conv"])


def make(seed: int = 0, audio: AudioConfig = AUDIO, **changes: object) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    model = MODELS["mae"](audio, dataclasses.replace(TINY, **changes))
    for name, parameter in model.named_parameters():  # the local decoder is initialised as the identity
        if name.startswith("decoder.") and name.endswith(("norm1.weight", "norm2.weight")):
            torch.nn.init.ones_(parameter)
    return model.eval()


def sound(batch: int, n_frames: int, n_mels: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, n_frames, n_mels, generator=torch.Generator().manual_seed(seed))


@given(frames=st.integers(1, 40), bands=st.integers(1, 40), t=st.integers(2, 9), f=st.integers(1, 9))
def test_unpatchify_inverts_patchify(frames: int, bands: int, t: int, f: int) -> None:
    log_mel = sound(2, frames, bands)
    patches = patchify(log_mel, (t, f), AUDIO.silence)
    grid = grid_size(frames, bands, (t, f))
    assert patches.shape == (2, grid[0] * grid[1], t * f)
    whole = unpatchify(patches, grid, (t, f))
    assert torch.equal(whole[:, :frames, :bands], log_mel)
    assert torch.all(whole[:, frames:] == torch.tensor(AUDIO.silence))
    assert torch.all(whole[:, :, bands:] == torch.tensor(AUDIO.silence))


def test_patches_run_through_frequency_first() -> None:
    log_mel = torch.arange(4 * 6).view(1, 4, 6)
    patches = patchify(log_mel, (2, 3), 0.0)
    assert patches[0].tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]


def test_positions_are_those_of_time_and_frequency() -> None:
    table = Positions(16)((5, 3), CPU).unflatten(0, (5, 3))
    time, frequency = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(table[:, :, time], table[:, :1, time].expand(-1, 3, -1))
    assert torch.equal(table[:, :, frequency], table[:1, :, frequency].expand(5, -1, -1))
    assert torch.allclose(table[:, 0, 0], torch.arange(5.0).sin())
    assert torch.allclose(table[0, :, 4], torch.arange(3.0).sin())
    assert torch.equal(Positions(16)((9, 3), CPU)[:15], table.flatten(0, 1))


def test_valid_patches() -> None:
    log_mel = sound(4, 32)
    log_mel[1, :8, 8:16] = AUDIO.silence
    log_mel[2, :, :8] = torch.linspace(-1, 1, 8)  # silence with an offset in each band
    patches = patchify(log_mel, (8, 8), AUDIO.silence)
    valid = valid_patches(patches, (8, 8), 4, torch.tensor([32, 32, 32, 23])).unflatten(1, (4, 4))
    assert valid[0].all()
    assert (~valid[1]).nonzero().tolist() == [[0, 1]]
    assert (~valid[2]).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert valid[3, :2].all()
    assert not valid[3, 2:].any()


def test_encoder_is_timms_vision_transformer() -> None:
    encoder = make().encoder
    vit = VisionTransformer(
        img_size=(48, 32), patch_size=8, in_chans=1, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ).eval()
    missing, unexpected = vit.load_state_dict(encoder.state_dict(), strict=False)
    assert missing == ["pos_embed"]
    assert not unexpected
    with torch.no_grad():
        vit.pos_embed[:, :1] = 0
        vit.pos_embed[:, 1:] = encoder.positions((6, 4), CPU)
    log_mel = sound(2, 48)
    patches = encoder.patchify(log_mel)
    tokens = encoder(patches, only(encoder.valid(patches, all_frames(log_mel))).kept)
    assert torch.allclose(tokens, vit.forward_features(log_mel[:, None]), atol=1e-5)


@DECODERS
@pytest.mark.parametrize("n_frames", [5, 40, 47, 200])
@pytest.mark.parametrize("n_mels", [32, 20])
def test_any_length_works(decoder: str, n_frames: int, n_mels: int) -> None:
    model = make(audio=AudioConfig(n_mels=n_mels), decoder=decoder).train()
    output = run(model, sound(2, n_frames, n_mels))
    columns, rows = grid_size(n_frames, n_mels, (8, 8))
    assert output.prediction.shape == (2, columns * rows, 64)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((1, 48, 20), ""),  # would be padded with silent bands: a loss of 0
        ((1, 48, 64), ""),
        ((1, 32, 48), ": transpose its last two axes, time comes before frequency"),
        ((48, 32), r": add an axis for the batch, log_mel\[None\]"),
        ((1, 1, 48, 32), ""),
        ((1, 0, 32), ""),
    ],
)
def test_a_log_mel_of_another_shape_is_refused(shape: tuple[int, ...], hint: str) -> None:
    message = rf"^a log-mel of shape {re.escape(str(shape))}; this model takes \(B, T, 32\){hint}$"
    classifiers = [build_classifier(AUDIO, TINY, FinetuneConfig(), 2, cnn) for cnn in (None, "resnet10t")]
    for call in (make().patchify, *classifiers):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


@DECODERS
def test_padding_changes_nothing(decoder: str) -> None:
    model = make(decoder=decoder)
    short = sound(1, 44)
    padded = torch.full((2, 96, 32), AUDIO.silence)
    padded[0, :44] = short[0]
    padded[1] = sound(1, 96, seed=1)[0]
    valid_frames = torch.tensor([44, 96])

    alone, in_batch = model.patchify(short), model.patchify(padded)
    valid = model.encoder.valid(alone, all_frames(short))
    kept = torch.zeros(1, 24, dtype=torch.bool)
    kept[:, 3:13] = True
    other = torch.zeros(1, 48, dtype=torch.bool)
    other[:, 5:25] = True
    masking = keeping(kept, valid)
    both = torch.cat([torch.nn.functional.pad(kept, (0, 24)), other])
    batch_masking = keeping(both, model.encoder.valid(in_batch, valid_frames))

    latent = model.forward_encoder(alone, masking)
    batch_latent = model.forward_encoder(in_batch, batch_masking)
    assert torch.allclose(latent[0], batch_latent[0, :11], atol=1e-5)
    prediction = model.forward_decoder(latent, alone, masking)
    batch_prediction = model.forward_decoder(batch_latent, in_batch, batch_masking)
    assert torch.allclose(prediction[0, :20], batch_prediction[0, :20], atol=1e-5)
    error, count = model.forward_loss(alone, prediction, masking)
    batch_error, batch_count = model.forward_loss(in_batch, batch_prediction, batch_masking)
    assert count[0] == batch_count[0] == 10
    assert torch.allclose(error[0], batch_error[0], atol=1e-4)


@DECODERS
def test_the_content_of_padding_changes_nothing(decoder: str) -> None:
    model = make(decoder=decoder)
    valid_frames = torch.tensor([64, 40])
    silent, noisy = sound(2, 64), sound(2, 64)
    silent[1, 40:] = AUDIO.silence
    noisy[1, 40:] = 100 * sound(1, 24, seed=5)[0]
    first, second = (run(model, log_mel, valid_frames) for log_mel in (silent, noisy))
    assert torch.equal(first.mask, second.mask)
    assert torch.allclose(first.loss, second.loss)
    assert torch.allclose(first.prediction[1, :20], second.prediction[1, :20], atol=1e-5)


def test_loss_is_that_of_the_removed_valid_patches() -> None:
    model = make()
    log_mel, valid_frames = sound(2, 64), torch.tensor([64, 40])
    patches = model.patchify(log_mel)
    valid = model.encoder.valid(patches, valid_frames)
    masking = model.random_masking(log_mel, valid_frames, make_draws(2))
    assert (valid & (masking.mask == 1)).sum(1).tolist() == [16, 10]

    prediction = patches.values.clone()
    prediction[masking.mask == 0] = 1e3
    prediction[~valid] = 1e3
    error, count = model.forward_loss(patches, prediction, masking)
    assert count.tolist() == [16, 10]
    assert not error.any()

    prediction[1] += 2.0
    error, count = model.forward_loss(patches, prediction, masking)
    assert torch.allclose(error, torch.tensor([0.0, 4.0 * 10]))
    assert torch.allclose(MaeOutput(error, count, prediction, masking.mask).loss, torch.tensor(4 * 10 / 26))


def test_normalised_target() -> None:
    model = make(norm_target=True)
    patches = model.patchify(3 + 5 * sound(1, 16))
    values = patches.values
    prediction = (values - values.mean(2, keepdim=True)) / (values.var(2, keepdim=True, unbiased=True) + 1e-6).sqrt()
    masking = keeping(torch.arange(8)[None] == 0)
    error, count = model.forward_loss(patches, prediction, masking)
    assert count == 7
    assert error < 1e-9


def test_silent_clips_have_no_loss_and_finite_gradients() -> None:
    model = make().train()
    log_mel = sound(2, 64)
    log_mel[0] = AUDIO.silence
    output = run(model, log_mel)
    assert output.error[0] == output.patches[0] == 0
    assert torch.allclose(output.loss, output.error[1] / output.patches[1])
    output = run(model, torch.full((2, 64, 32), AUDIO.silence))
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_draws_decide_the_mask() -> None:
    model, log_mel = make().train(), sound(3, 64)
    first, again, other = (run(model, log_mel, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.mask, other.mask)


@pytest.mark.parametrize("name", ["mae", "latent"])
def test_a_clip_has_the_same_sums_in_any_batch(name: str) -> None:
    """Beside clips of other lengths and with other numbers of kept patches, and alone."""
    torch.manual_seed(0)
    model = MODELS[name](AUDIO, dataclasses.replace(TINY, name=name, masks_per_clip=2)).eval()
    log_mel, valid_frames, draws = sound(4, 64), torch.tensor([64, 40, 64, 9]), make_draws(4)
    log_mel[2, 16:] = AUDIO.silence
    together = run(model, log_mel, valid_frames)
    assert together.patches.tolist() == [2 * 16, 2 * 10, 2 * 4, 2 * 2]
    for clip in range(4):
        own = slice(clip, clip + 1)
        alone = model(log_mel[own], model.random_masking(log_mel[own], valid_frames[own], draws.select(own, 1)))
        assert torch.equal(alone.mask, together.mask[2 * clip : 2 * clip + 2])
        assert alone.patches[0] == together.patches[clip]
        assert torch.allclose(alone.error[0], together.error[clip], rtol=1e-4)
        if together.clip_error is not None:
            assert torch.allclose(alone.clip_error[0], together.clip_error[clip], rtol=1e-4)


def test_prediction_mode_does_not_spoil_training() -> None:
    model, log_mel = make().train(), sound(1, 64)
    with torch.inference_mode():
        run(model, log_mel)
    run(model, log_mel).loss.backward()


@pytest.mark.parametrize(("decoder", "norm_target"), [("local", True), ("global", False)])
def test_overfits_eight_clips(decoder: str, norm_target: bool) -> None:
    place = torch.linspace(0, 1.5, 64)[:, None] + torch.linspace(0, 1, 32)
    log_mel = torch.stack([(k * place + k).sin() for k in range(1, 9)])
    model = make(decoder=decoder, norm_target=norm_target, decoder_embed_dim=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(200):
        loss = run(model, log_mel).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.1 * losses[0]:
            break
    assert losses[-1] < 0.1 * losses[0]


def test_the_convolutional_decoder_on_a_grid_that_is_not_square() -> None:
    """Against torch's modules over a picture of the patches, channels first."""
    model = make(decoder="conv")
    picture = torch.randn(2, 16, 7, 3)
    expected, norm = picture, torch.nn.LayerNorm(16, elementwise_affine=False)
    for block in model.decoder.blocks:
        assert block.conv.groups == 2
        wide = torch.nn.functional.pad(expected, (1, 1, 1, 1))
        changed = torch.nn.functional.conv2d(wide, block.conv.weight, block.conv.bias, groups=2)
        expected = expected + torch.nn.GELU()(norm(changed.movedim(1, 3))).movedim(3, 1)
    tokens = torch.cat([torch.randn(2, 1, 16), picture.flatten(2).mT], dim=1)
    torch.testing.assert_close(model.decoder(tokens, (7, 3), None), expected.flatten(2).mT)


@DECODERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(decoder: str, dtype: torch.dtype) -> None:
    model, log_mel, valid_frames = make(decoder=decoder), sound(2, 64), torch.tensor([64, 40])
    loss = run(model, log_mel, valid_frames).loss
    with torch.autocast("cpu", dtype):
        assert torch.allclose(run(model, log_mel, valid_frames).loss, loss, rtol=0.02)


@given(grid=st.tuples(st.integers(1, 13), st.integers(1, 10)), shift=st.sampled_from([0, SHIFT]))
def test_from_windows_inverts_to_windows(grid: tuple[int, int], shift: int) -> None:
    x = torch.randn(2, *grid, 3)
    assert torch.equal(from_windows(to_windows(x, shift), grid, shift), x)


def dense_attention(block: WindowBlock, x: Tensor, valid: Tensor, shift: int) -> Tensor:
    """The attention of `block` as dense attention over all patches (B, T, F, D) with a mask for the windows."""
    batch, columns, rows, dim = x.shape
    attention = block.attn
    time = torch.arange(columns).repeat_interleave(rows)
    frequency = torch.arange(rows).repeat(columns)
    window = ((time + WINDOW - shift) // WINDOW) * 100 + frequency // WINDOW
    allowed = (window[:, None] == window[None]) & (valid[:, None] | torch.eye(columns * rows, dtype=torch.bool))

    offset = torch.stack([time[:, None] - time[None], frequency[:, None] - frequency[None]], dim=2).float()
    bias = attention.bias_mlp(offset.sign() * (1 + offset.abs()).log()).permute(2, 0, 1)
    heads = attention.num_heads
    q, k, v = attention.qkv(x.flatten(1, 2)).view(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    cosine = torch.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    scores = cosine * attention.logit_scale.exp()[:, None, None] + bias
    weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(batch, -1, dim)).view_as(x)


@pytest.mark.parametrize("grid", [(8, 4), (9, 7), (3, 2), (16, 8)])
@pytest.mark.parametrize("shift", [0, SHIFT])
@pytest.mark.parametrize("padded", [False, True])
def test_windows_are_dense_attention_with_a_mask(grid: tuple[int, int], shift: int, padded: bool) -> None:
    torch.manual_seed(0)
    block = WindowBlock(16, 4, 2.0)
    torch.nn.init.uniform_(block.attn.logit_scale, 0, 3)
    x = torch.randn(2, *grid, 16)
    valid = torch.ones(2, grid[0] * grid[1], dtype=torch.bool)
    if padded:
        valid[1, valid.shape[1] // 2 :] = False
    allowed = window_mask(valid if padded else None, 2, grid, shift, x.device)
    windows = from_windows(block.attn(to_windows(x, shift), allowed), grid, shift)
    assert torch.allclose(windows, dense_attention(block, x, valid, shift), atol=1e-5)


def test_fused_and_plain_attention_are_equal() -> None:
    """Outputs and gradients, also in bfloat16 and for padding of zero length."""
    scale, bias = torch.tensor([1.0, 10.0])[:, None, None], sound(1, 2 * 16, 16, seed=1).view(1, 2, 16, 16)
    bias = bias.expand(3, -1, -1, -1).masked_fill(sound(3, 16, 16, seed=2)[:, None] > 1, -torch.inf)
    bias.diagonal(dim1=2, dim2=3).zero_()
    found = []
    for attend in (attend_plainly, attend_fused):
        qkv = sound(3 * 3 * 2, 16, 8).view(3, 3, 2, 16, 8)
        qkv[:, 0, :, :4] = 0
        qkv.requires_grad_()
        output = attend(qkv, scale, bias)
        output[:, :, 4:].square().sum().backward()
        found.append((output.detach(), qkv.grad[:, 1:]))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(attend(qkv.bfloat16(), scale, bias).float(), output, atol=0.1)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_whole_windows_need_no_mask() -> None:
    assert window_mask(None, 2, (8, 4), 0, CPU) is None


def test_offsets_are_antisymmetric() -> None:
    offsets = log_offsets()
    assert torch.equal(offsets, -offsets.transpose(0, 1))
    assert torch.allclose(offsets[-1, 0], torch.tensor(4.0).log())
