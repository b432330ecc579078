"""Settings: validation, command line, round trip, redaction."""

import json

import pytest

from raymae.cli.arguments import parse
from raymae.config import (
    AudioConfig,
    AugmentConfig,
    ComputeConfig,
    Config,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    PseudoLabelConfig,
    TrainConfig,
    from_dict,
    redact,
    to_dict,
)
from raymae.config.recipes import RECIPES


def test_the_papers_clip_is_640_by_256() -> None:
    audio = AudioConfig()
    assert (audio.n_frames, audio.n_mels) == (640, 256)


BLOCKS = {"mask_strategy": "inverse_block"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = RECIPES[name]()
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AudioConfig(win_length=5000), "n_fft = 4096"),
        (lambda: AudioConfig(f_max=17_000), "sample_rate / 2"),
        (
            lambda: TrainConfig(global_batch_size=30, mixing_group=4),
            "mixing_group = 4 must divide global_batch_size = 30",
        ),
        (lambda: TrainConfig(mixing_group=0), "mixing_group = 0 must divide"),
        (
            lambda: TrainConfig(global_batch_size=30, mixing_group=15, micro_batch_size=14),
            "set mixing_group to 14 or less",
        ),
        (lambda: TrainConfig(warmup_epochs=-1), "warmup_epochs = -1 must not be negative"),
        (lambda: Config(seed=-1), "seed = -1 must not be negative"),
        (lambda: ComputeConfig(cache="s3://bucket/x"), "compute.cache = s3://bucket/x must be an absolute path"),
        (lambda: ComputeConfig(cache="here"), "compute.cache = here must be an absolute path"),
        (lambda: ComputeConfig(cache="/nvme", cache_gb=0), "compute.cache_gb = 0 must be positive"),
        (lambda: ComputeConfig(cache_gb=50), "compute.cache_gb = 50 has no effect without compute.cache"),
        (lambda: FinetuneConfig(layer_decay=0.0), "layer_decay"),
        (lambda: AugmentConfig(response_p=1.5, responses=("x",)), "response_p = 1.5 is a probability"),
        (lambda: AugmentConfig(eq_nats=float("inf")), "eq_nats = inf must be finite"),
        (lambda: Config(finetune=FinetuneConfig(augment=AugmentConfig(crop_seconds=0.005))), "hold a frame"),
        (lambda: Config(finetune=FinetuneConfig(augment=AugmentConfig(crop_seconds=11))), "clip_seconds = 10"),
        (lambda: AugmentConfig(response_p=0.5), "response_p = 0.5 needs augment.responses"),
        (lambda: PretrainConfig(augment=AugmentConfig(mixup_p=0.5)), "pretrain.augment.mixup_p = 0.5 must be 0"),
        (lambda: PseudoLabelConfig(confidence_threshold=0.9, coverage=0.5), "set one of"),
        (lambda: PseudoLabelConfig(confidence_threshold=1.5), r"\(0, 1\)"),
        (lambda: Config(finetune=FinetuneConfig(layer=13)), "model.depth = 12"),
        (lambda: Config(model=ModelConfig(masks_per_clip=641)), "641 are more masks than patches: .* 40 x 16 patches"),
        (lambda: Config(model=ModelConfig(**BLOCKS, mask_ratio=0.999)), "mask_ratio = 0.999 leaves no patch"),
        (lambda: Config(model=ModelConfig(**BLOCKS, mask_block=40)), "mask_block = 40 is a block of the whole clip"),
        (lambda: ModelConfig(**BLOCKS, mask_ratio=0.0), "mask_ratio = 0 removes nothing"),
        (lambda: ModelConfig(name="latent", mask_ratio=0.0), "mask_ratio = 0 removes nothing"),
        (lambda: ModelConfig(mask_block=3), "mask_block = 3 has no effect with model.mask_strategy = unstructured"),
        (lambda: ModelConfig(decoder="conv", decoder_num_heads=7), "decoder_embed_dim = 512 must be .* its 7 groups"),
        (
            lambda: from_dict(Config, {"modl": {}}),
            r"setting modl \(did you mean model\?\); valid here: .*model",
        ),
        (lambda: from_dict(Config, {"model": {"stpes": 1}}), "unknown setting model.stpes"),
    ],
)
def test_wrong_settings_say_what_is_right(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("batch", "group", "expected"), [(512, None, 8), (30, None, 2), (15, None, 1), (30, 15, 15)])
def test_a_step_has_mixing_groups_whatever_its_size(batch: int, group: int | None, expected: int) -> None:
    assert TrainConfig(global_batch_size=batch, mixing_group=group).group_size == expected


def test_audioset_is_fine_tuned_as_audio_mae_does() -> None:
    """Huang et al. 2022, appendix, AS-20K, and the public main_finetune_as.py."""
    config = RECIPES["audioset"]()
    finetune, augment = config.finetune, config.finetune.augment
    assert (finetune.labels, finetune.epochs, finetune.warmup_epochs, finetune.layer_decay) == ("multi", 60, 4, 0.75)
    assert finetune.peak_lr == pytest.approx(1e-3 * 32 / 256)
    assert (finetune.pool, finetune.drop_path, finetune.weight_decay) == ("mean", 0.1, 5e-4)
    assert (finetune.time_mask_ratio, finetune.freq_mask_ratio) == (0.2, 0.2)
    assert (augment.mixup_p, augment.mixup_alpha) == (0.5, 10)
    assert (augment.freq_mask_param, augment.time_mask_param) == (48, 192)
    assert (config.audio.n_frames, config.audio.n_mels, config.model.norm_target) == (1024, 128, True)


@pytest.mark.parametrize("name", ["audiomae", "audioset"])
def test_audio_mae_is_pre_trained_as_its_public_code_does(name: str) -> None:
    """Huang et al. 2022, section 4.2, and the public submit_pretrain.py, where norm_pix_loss is on."""
    config = RECIPES[name]()
    model, train = config.model, config.pretrain
    assert (model.norm_target, model.mask_strategy, model.mask_ratio) == (True, "unstructured", 0.8)
    assert (train.global_batch_size, train.base_lr, train.epochs, train.warmup_epochs) == (512, 2e-4, 33, 3)
    assert (train.weight_decay, train.betas) == (1e-4, (0.9, 0.95))


def test_eat_is_pre_trained_as_its_public_settings_say() -> None:
    """Chen et al. 2024, the public pretraining_AS2M.yaml: 400,000 updates of four GPUs with 12 clips under 16 masks."""
    config = RECIPES["eat"]()
    model, train, latent = config.model, config.pretrain, config.model.latent
    assert (model.mask_strategy, model.mask_ratio, model.mask_block, model.mask_block_surplus) == (
        "inverse_block",
        0.8,
        5,
        0.07,
    )
    assert (model.masks_per_clip, latent.teacher_layers, latent.targets, latent.clip_target) == (
        16,
        12,
        "mlp",
        "patches",
    )
    assert (latent.decay, latent.final_decay, latent.ramp) == (0.9998, 0.99999, 0.25)
    assert (model.decoder, model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == (
        "conv",
        768,
        6,
        16,
    )
    assert (train.global_batch_size, train.peak_lr, train.min_lr, train.weight_decay) == (48, 5e-4, 0, 0.05)
    assert train.betas == (0.9, 0.95)
    assert train.warmup_share == pytest.approx(53_333 / 400_000)
    assert (config.audio.n_frames, config.audio.n_mels) == (1024, 128)


def test_the_objective_of_eat_at_a_small_size() -> None:
    words = "--model.name latent --model.mask-strategy inverse_block --model.mask-block 3 --model.masks-per-clip 16 "
    words += "--model.decoder conv --model.decoder-embed-dim 192 --model.decoder-depth 3 --model.latent.targets mlp "
    words += "--model.latent.teacher-layers 6 --model.latent.clip-target patches --pretrain.global-batch-size 16"
    model = parse(["small", *words.split()]).model
    assert (model.name, model.decoder, model.decoder_num_heads, model.latent.targets) == ("latent", "conv", 16, "mlp")


def test_any_field_by_its_path() -> None:
    config = parse(["small", "--model.mask-ratio", "0.6", "--pretrain.augment.roll-p", "0.5", "--seed", "3"])
    assert (config.recipe, config.model.mask_ratio, config.pretrain.augment.roll_p, config.seed) == (
        "small",
        0.6,
        0.5,
        3,
    )


def test_synthetic_is_the_default_recipe() -> None:
    assert parse(["--seed", "1"]).recipe == "synthetic"


@pytest.mark.parametrize("arguments", [["small", "--model.mask-ration", "0.5"], ["smal"], ["small", "--seed", "x"]])
def test_wrong_arguments_end_with_a_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(arguments)
    assert error.value.code
    printed = capsys.readouterr()
    assert any(word in printed.err + printed.out for word in ("mask-ratio", "small", "seed"))


def test_contradictions_on_the_command_line_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["small", "--pretrain.mixing-group", "7"])
    assert "--pretrain.mixing-group 7 must divide --pretrain.global-batch-size" in capsys.readouterr().err


def test_credentials_are_redacted() -> None:
    assert redact("postgresql://user:pass@host/db") == "postgresql://***@host/db"
    assert redact("s3://KEY:1/SEC+RET@bucket/x and http://host:5000/y") == "s3://***@bucket/x and http://host:5000/y"
    assert redact("postgresql://me:p@ss@host/db") == "postgresql://***@host/db"
    assert redact("s3://b/x?secret_key=abc&region=eu") == "s3://b/x?secret_key=***&region=eu"
    stored = json.dumps(to_dict(Config(storage="https://me:word@host/x")))
    assert "word" not in stored
