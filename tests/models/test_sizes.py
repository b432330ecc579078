"""Models by name: the sizes of timm's ViTs, from Python and from the command line."""

import re
from itertools import cycle

import pytest
import timm
import torch

from raymae.cli.arguments import named_model, parse
from raymae.config import DECODERS, FRONT_ENDS, MODEL_SIZES, ModelConfig, to_dict, with_decoder, with_size
from raymae.config.recipes import RECIPES
from raymae.models import MaskedAutoencoder

NAMES = {"vit_huge_patch14_224", *(f"vit_{size}_patch16_224" for size in MODEL_SIZES)}
ENCODER = ("embed_dim", "depth", "num_heads")
DECODER = ("decoder", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def values(model: ModelConfig, *names: str) -> list[object]:
    return [getattr(model, name) for name in names]


def build(model: ModelConfig) -> MaskedAutoencoder:
    with torch.device("meta"):
        return MaskedAutoencoder(FRONT_ENDS["audiomae"], model)


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_an_encoder_is_timms_vit_of_that_size(size: str) -> None:
    """Parameter by parameter, except for the positions, which timm trains."""
    (name,) = {name.split(".")[0] for name in timm.list_models(f"vit_{size}_patch1*_224")} & NAMES
    with torch.device("meta"):
        vit = timm.create_model(name, in_chans=1, num_classes=0, patch_size=16)
    shapes = {name: value.shape for name, value in vit.named_parameters() if name != "pos_embed"}
    encoder = build(MODEL_SIZES[size]).encoder
    assert {name: value.shape for name, value in encoder.named_parameters()} == shapes
    assert [block.attn.num_heads for block in encoder.blocks] == [block.attn.num_heads for block in vit.blocks]


def test_decoders_grow_from_light_to_global_to_local() -> None:
    base = MODEL_SIZES["base"]
    decoders = [build(with_decoder(base, name)).decoder for name in ("light", "global", "local")]
    counts = [sum(value.numel() for value in decoder.parameters()) / 1e6 for decoder in decoders]
    assert counts == pytest.approx([1.6, 25.2, 50.4], rel=0.02)


def test_base_is_the_default() -> None:
    assert MODEL_SIZES["base"] == DECODERS["local"] == ModelConfig()
    assert all(DECODERS[name].decoder == name for name in DECODERS)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", MODEL_SIZES)
def test_any_recipe_takes_a_size(recipe: str, size: str) -> None:
    before = RECIPES[recipe]().model
    after = named_model(before, ["--model.size", size])
    assert values(after, *ENCODER) == values(MODEL_SIZES[size], *ENCODER)
    assert with_size(after, "tiny") == with_size(before, "tiny")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", DECODERS)
def test_any_recipe_takes_a_decoder(recipe: str, name: str) -> None:
    """The decoder's sizes are set with it, unless it is the recipe's own."""
    before = RECIPES[recipe]().model
    after = named_model(before, ["--model.decoder", name])
    assert values(after, *DECODER) == values(before if name == before.decoder else DECODERS[name], *DECODER)
    assert with_decoder(after, "global") == with_decoder(before, "global")


@pytest.mark.parametrize(("recipe", "size", "decoder"), list(zip(RECIPES, cycle(MODEL_SIZES), cycle(DECODERS))))
def test_the_command_line_takes_both_names(recipe: str, size: str, decoder: str) -> None:
    words = ["--model.size", size, "--model.decoder", decoder]
    assert parse([recipe, *words]).model == named_model(RECIPES[recipe]().model, words)


@pytest.mark.parametrize(
    "words",
    [
        "--model.size large --model.decoder light --model.depth 6 --model.decoder-depth 1",
        "--model.decoder-depth=1 --model.depth=6 --model.decoder=light --model.size=large",
        "--model.size tiny --model.decoder_depth 1 --model.size large --model.depth 6 --model.decoder light",
    ],
)
def test_a_single_setting_overrides_a_name_in_any_order(words: str) -> None:
    model = parse(["audiomae", *words.split()]).model
    assert values(model, *ENCODER, *DECODER) == [1024, 6, 16, "light", 256, 1, 8]


def test_a_name_and_its_numbers_are_the_same_run() -> None:
    """Keys are computed from these values."""
    numbers = ["--model.embed-dim", "192", "--model.depth", "12", "--model.num-heads", "3"]
    named, spelt = parse(["small", "--model.size", "tiny"]), parse(["small", *numbers])
    assert type(named.model) is ModelConfig
    assert named == spelt
    assert to_dict(named) == to_dict(spelt)
    assert parse(["audiomae", "--model.size", "base", "--model.decoder", "local"]) == parse(["audiomae"])


def test_recipes_keep_their_own_sizes() -> None:
    sizes = {name: values(recipe().model, *ENCODER, *DECODER) for name, recipe in RECIPES.items()}
    assert sizes["synthetic"] == [96, 4, 3, "light", 64, 1, 2]
    assert sizes["small"] == [192, 6, 6, "light", 64, 1, 4]
    assert sizes["audiomae"] == [768, 12, 12, "local", 512, 16, 16]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.size giant", "--model.size giant: no such choice.*large"),
        ("--model.size", "--model.size"),
        ("--model.siz base", "unknown setting --model.siz .did you mean --model.size.*--help model"),
        ("--model.size tiny --model.num-heads 5", "--model.embed-dim 192 must be a multiple of its 5 heads"),
        ("--model.decoder light --model.decoder-depth 16", "light has at most 4 blocks, not .*decoder-depth 16"),
    ],
)
def test_a_wrong_name_lists_the_valid_ones(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["audiomae", *words.split()])
    assert end.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.replace("│", " ").split()))


def test_sixteen_wide_blocks_are_not_light() -> None:
    with pytest.raises(ValueError, match=r"light has at most 4 blocks.*DECODERS"):
        ModelConfig(decoder="light")
