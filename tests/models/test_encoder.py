"""Blocks of the encoder: stochastic depth from given factors, activations kept or computed again."""

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block

from raymae.models import Encoder
from raymae.models.encoder import EncoderBlock
from raymae.models.masking import only
from tests.support.audio_files import TINY_AUDIO
from tests.support.training import TINY

RATE = 0.4


def make() -> tuple[EncoderBlock, Block]:
    """A block and timm's with the same weights, in training mode."""
    torch.manual_seed(0)
    own, timms = EncoderBlock(32, 2, 2.0, qkv_bias=True), Block(32, 2, 2.0, qkv_bias=True, drop_path=RATE)
    timms.load_state_dict(own.state_dict())
    return own.train(), timms.train()


class Dropped(torch.nn.Module):
    """timm's stochastic depth with the draws of `drop` (B,), as it multiplies by them."""

    def __init__(self, drop: torch.Tensor) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.drop[:, None, None]


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_timms_with_the_same_factors(masked: bool) -> None:
    own, timms = make()
    x = torch.randn(64, 9, 32)
    attn_mask = (torch.rand(64, 1, 1, 9) < 0.7) | (torch.arange(9) == 0) if masked else None
    drop = torch.rand(64, 2).ge(RATE) / (1 - RATE)
    timms.drop_path1, timms.drop_path2 = Dropped(drop[:, 0]), Dropped(drop[:, 1])
    torch.testing.assert_close(own(x, attn_mask, drop), timms(x, attn_mask=attn_mask))
    assert torch.equal(own(x, attn_mask), own(x, attn_mask, torch.ones(64, 2)))


def test_timms_own_factors_are_zero_or_make_their_mean_one() -> None:
    """The values that `AudioClassifier.draw` draws are those of timm's layer."""
    torch.manual_seed(0)
    found = DropPath(RATE).train()(torch.ones(4000, 1, 1)).flatten()
    assert torch.allclose(found.unique(), torch.tensor([0, 1 / (1 - RATE)]))
    assert found.mean().item() == pytest.approx(1, abs=0.05)


def test_a_dropped_block_changes_nothing_and_gets_no_gradient() -> None:
    own, _ = make()
    x = torch.randn(3, 9, 32)
    found = own(x, None, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(found[0], x[0])
    assert not torch.equal(found[1], x[1])
    own(x, None, torch.zeros(3, 2)).square().sum().backward()
    assert not any(parameter.grad.any() for parameter in own.parameters())


def test_activations_that_are_computed_again_change_nothing() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY_AUDIO, TINY.model).train()
    patches = encoder.patchify(torch.randn(4, 48, 32))
    valid = torch.rand(4, 24) < 0.7
    drop = torch.rand(4, 2, 2).ge(RATE) / (1 - RATE)
    found = []
    for checkpointed in (False, True):
        encoder.checkpointed = checkpointed
        encoder.zero_grad()
        output = encoder(patches, only(valid).kept, drop)
        output.square().sum().backward()
        found.append([output.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
