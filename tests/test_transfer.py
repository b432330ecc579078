"""Encoders of other code: our model computes what timm's does with the same weights, and keeps its positions."""

import copy
import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load as load_tensors
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from raymae.checkpoint import load_weights, save_weights
from raymae.config import AudioConfig, FinetuneConfig, ModelConfig
from raymae.models import AudioClassifier, LatentAutoencoder, MaskedAutoencoder, load_encoder, load_pretrained
from raymae.models.masking import index
from raymae.models.transfer import AUDIO_MAE_GRID, own_names
from raymae.optim import Ema

torch.set_num_threads(1)

AUDIO = AudioConfig(n_mels=32)
MODEL = ModelConfig(
    patch_size=(8, 8), embed_dim=32, depth=3, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
)
FINETUNE = FinetuneConfig(drop_path=0.0, time_mask_ratio=0.0, freq_mask_ratio=0.0)
GRID = (6, 4)
State = dict[str, Tensor]


def make_vit(grid: tuple[int, int] = GRID, patch: int = 8, **changes: object) -> VisionTransformer:
    """timm's own, with weights that no part of it leaves at 0 or 1."""
    settings = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "in_chans": 1, **changes}
    size = (grid[0] * patch, grid[1] * patch)
    vit = VisionTransformer(img_size=size, patch_size=patch, **settings)  # type: ignore[arg-type]
    torch.manual_seed(3)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def make_classifier(**changes: object) -> AudioClassifier:
    torch.manual_seed(0)
    return AudioClassifier(AUDIO, MODEL, dataclasses.replace(FINETUNE, **changes), 5).eval()


def make_mae(**changes: object) -> MaskedAutoencoder:
    torch.manual_seed(1)
    return MaskedAutoencoder(AUDIO, dataclasses.replace(MODEL, **changes)).eval()


def sound(n_frames: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, n_frames, 32, generator=torch.Generator().manual_seed(0))


def longer(vit: VisionTransformer, columns: int, **changes: object) -> VisionTransformer:
    """The same weights for another length, with positions resampled by timm."""
    state = dict(vit.state_dict())
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [columns, GRID[1]], list(GRID))
    other = make_vit((columns, GRID[1]), **changes)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("columns", [6, 4, 11])
def test_a_classifier_computes_what_timms_does(columns: int) -> None:
    pooled = {"global_pool": "avg"}
    vit = make_vit(**pooled)
    classifier = make_classifier(pool="mean")
    load_encoder(classifier, own_names(vit.state_dict(), 4))
    classifier.head.load_state_dict(vit.head.state_dict())
    log_mel = sound(8 * columns)
    expected = longer(vit, columns, **pooled)(log_mel[:, None])
    assert expected.std() > 0.1
    torch.testing.assert_close(classifier(log_mel), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [6, 9])
def test_an_encoder_computes_what_timms_does(columns: int) -> None:
    vit = make_vit(num_classes=0)
    model = make_mae()
    load_pretrained(model, own_names(vit.state_dict(), 4))
    patches = model.patchify(sound(8 * columns))
    tokens = model.encoder(patches, index(patches.valid, torch.device("cpu")))
    expected = longer(vit, columns, num_classes=0).forward_features(sound(8 * columns)[:, None])
    torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-5)


def test_the_class_token_head_is_timms_too() -> None:
    vit = make_vit(global_pool="token")
    classifier = make_classifier(pool="cls")
    load_encoder(classifier, own_names(vit.state_dict(), 4))
    classifier.head.load_state_dict(vit.head.state_dict())
    torch.testing.assert_close(classifier(sound(48)), vit(sound(48)[:, None]), atol=2e-5, rtol=1e-5)


def test_the_norm_behind_the_pooling_stands_in_for_the_last_one() -> None:
    vit = make_vit(global_pool="avg")
    model = make_mae()
    load_pretrained(model, own_names(vit.state_dict(), 4))
    assert torch.equal(model.encoder.norm.weight, vit.fc_norm.weight)
    assert torch.equal(model.encoder.norm.bias, vit.fc_norm.bias)


def test_audio_maes_positions_are_a_grid_of_time_and_frequency_whatever_the_bands() -> None:
    vit = make_vit(AUDIO_MAE_GRID, 16)
    own = own_names(vit.state_dict(), 3)
    assert own["encoder.pos_embed"].shape == (*AUDIO_MAE_GRID, 32)
    assert torch.equal(own["encoder.pos_embed"][5, 2], vit.pos_embed[0, 1 + 5 * 8 + 2])
    assert torch.equal(own["encoder.cls_token"], vit.cls_token + vit.pos_embed[:, :1])


def test_decoder_and_head_are_left_out_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    state = dict(make_vit().state_dict())  # with a head of two tensors
    decoder = {f"decoder_{name}": torch.zeros(2) for name in ("embed.weight", "pos_embed", "blocks.0.norm1.weight")}
    with caplog.at_level("INFO", "raymae"):
        own = own_names({**state, **decoder, "mask_token": torch.zeros(1, 1, 2)}, 4)
    assert "6 tensors of decoder and heads are left out" in caplog.text
    assert all(name.startswith("encoder.") for name in own)


def test_positions_stay_with_the_model_and_are_not_trained() -> None:
    own = own_names(make_vit(global_pool="avg").state_dict(), 4)
    classifier = make_classifier(pool="mean")
    load_encoder(classifier, own)
    average = Ema(classifier, 0.9)
    groups = classifier.parameter_groups(0.05, 0.75)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in classifier.parameters())
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    classifier(sound(48)).square().sum().backward()
    optimizer.step()
    average.update(classifier)
    for model in (classifier, average.model):
        assert torch.equal(model.state_dict()["encoder.pos_embed"], own["encoder.pos_embed"])
    assert not torch.equal(classifier.encoder.cls_token, own["encoder.cls_token"])


def test_what_is_saved_brings_its_positions_from_stage_to_stage() -> None:
    mae = make_mae()
    load_pretrained(mae, own_names(make_vit(num_classes=0).state_dict(), 4))
    classifier = make_classifier(pool="cls")
    load_encoder(classifier, load_tensors(save_weights(mae)))
    again = make_classifier(pool="cls")
    load_weights(again, save_weights(classifier))
    assert torch.equal(again(sound(40)), classifier(sound(40)))
    assert not torch.equal(make_classifier(pool="cls")(sound(40)), again(sound(40)))
    load_weights(again, save_weights(make_classifier(pool="cls")))  # a table doesn't outlive other weights
    assert torch.equal(again(sound(40)), make_classifier(pool="cls")(sound(40)))


def test_pretraining_goes_on_with_its_decoder_where_it_fits() -> None:
    first = make_mae()
    with torch.no_grad():
        first.mask_token += 1
    for changes, taken in (({}, True), ({"decoder_embed_dim": 32}, False)):
        torch.manual_seed(7)
        model = MaskedAutoencoder(AUDIO, dataclasses.replace(MODEL, **changes))
        before = copy.deepcopy(model.state_dict())
        load_pretrained(model, first.state_dict())
        for name, value in model.state_dict().items():
            source = first.state_dict() if taken or name.startswith("encoder.") else before
            assert torch.equal(value, source[name]), name


def test_a_teacher_begins_as_the_given_encoder() -> None:
    torch.manual_seed(0)
    model = LatentAutoencoder(AUDIO, MODEL)
    load_pretrained(model, own_names(make_vit(num_classes=0).state_dict(), 4))
    encoder, teacher = model.encoder.state_dict(), model.teacher.state_dict()
    assert "pos_embed" in encoder
    assert encoder.keys() == teacher.keys()
    assert all(torch.equal(value, teacher[name]) for name, value in encoder.items())
    with torch.no_grad():
        model.teacher.cls_token += 1
    again = LatentAutoencoder(AUDIO, MODEL)
    load_pretrained(again, model.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# Refusals ------------------------------------------------------------------------------------------------------------


def without(state: State, beginning: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(beginning)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "blocks.1.attn.qkv"), "missing: blocks.1.attn.qkv.weight and 1 more"),
        (lambda state: without(state, "pos_embed"), "missing: pos_embed$"),
        (lambda state: {f"net.{name}": value for name, value in state.items()}, "no known naming: .*net.blocks"),
        (lambda state: {}, "no known naming: .*no tensor"),
        (lambda state: state | {"blocks.0.ls1.gamma": torch.ones(32)}, "blocks.0.ls1.gamma has no place"),
        (lambda state: state | {"reg_token": torch.ones(1, 4, 32)}, "reg_token has no place"),
        (lambda state: state | {"pos_embed": torch.ones(1, 24, 32)}, r"found \(1, 24, 32\), 23 patches.* 4 rows"),
        (lambda state: state | {"pos_embed": torch.ones(25, 32)}, r"found \(25, 32\), expected \(1, 1 \+ patches"),
    ],
)
def test_a_state_dict_that_is_no_such_encoder_is_refused(change: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_names(change(dict(make_vit(num_classes=0).state_dict())), 4)


@pytest.mark.parametrize("load", [load_encoder, load_pretrained])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 4}, "patch_embed.proj.weight: found (32, 1, 4, 4), expected (32, 1, 8, 8)"),
        ({"in_chans": 3}, "patch_embed.proj.weight: found (32, 3, 8, 8), expected (32, 1, 8, 8)"),
        ({"embed_dim": 64}, "encoder.cls_token: found (1, 1, 64), expected (1, 1, 32)"),
        ({"depth": 2}, "found 2 blocks, expected 3 (model.depth, or finetune.layer)"),
        ({"mlp_ratio": 2.0}, "encoder.blocks.0.mlp.fc1.weight: found (64, 32), expected (128, 32)"),
    ],
)
def test_an_encoder_of_other_sizes_is_refused(load: Callable, settings: dict, message: str) -> None:
    model = make_classifier() if load is load_encoder else make_mae()
    vit = make_vit(num_classes=0, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(model, own_names(vit.state_dict(), 4))
