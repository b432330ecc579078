"""Learning rate, parameter groups and EMA weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raymae.config import TrainConfig
from raymae.training.optim import Ema, adamw, learning_rate, set_lr

CONFIG = TrainConfig(epochs=10, warmup_epochs=2, lr=1.0, min_lr=0.1, global_batch_size=16)


@pytest.mark.parametrize(("share", "lr"), [(0, 0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.55), (1, 0.1)])
def test_the_learning_rate_by_hand(share: float, lr: float) -> None:
    assert learning_rate(share, CONFIG) == pytest.approx(lr)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, TrainConfig(epochs=1, warmup_epochs=0, lr=0.3)) == 0.3


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_learning_rate_rises_then_falls(one: int, other: int) -> None:
    early, late = min(one, other) / 1000, max(one, other) / 1000
    rates = learning_rate(early, CONFIG), learning_rate(late, CONFIG)
    if late <= 0.2:
        assert rates[0] <= rates[1]
    if early >= 0.2:
        assert rates[0] >= rates[1] >= CONFIG.min_lr


def test_groups_keep_their_weight_decay_and_lr_scale() -> None:
    layers = [nn.Linear(3, 3, bias=False) for _ in range(2)]
    groups = [
        {"name": f"encoder.{i}", "params": layer.parameters(), "weight_decay": 0.1 * i, "lr_scale": 0.5**i}
        for i, layer in enumerate(layers)
    ]
    optimizer = adamw(groups, CONFIG)
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.1]
    before = [layer.weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.weight.grad = torch.ones(3, 3)
    optimizer.step()
    moved = [(layer.weight - old).detach() for layer, old in zip(layers, before, strict=True)]
    torch.testing.assert_close(moved[0], torch.full((3, 3), -0.2))  # Adam's first step is the rate itself
    torch.testing.assert_close(moved[1], -0.1 * 0.1 * before[1] - 0.1)


def constant(value: float) -> nn.Module:
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(value)
        model.running_mean.fill_(value)
    return model


def test_the_ema_by_hand() -> None:
    ema = Ema(constant(0.0), decay=0.15)
    ema.update(constant(1.0))
    assert float(ema.model.weight) == pytest.approx(0.9)  # decay 1 / 10
    ema.update(constant(2.0))
    assert float(ema.model.weight) == pytest.approx(0.15 * 0.9 + 0.85 * 2)  # 2 / 11 is above 0.15
    assert float(ema.model.running_mean) == 2
    assert not ema.model.weight.requires_grad


def test_the_ema_resumes_from_its_state() -> None:
    whole, part = Ema(constant(0.0), 0.99), Ema(constant(0.0), 0.99)
    for ema in (whole, part):
        ema.update(constant(1.0))
    resumed = Ema(constant(5.0), 0.99)
    resumed.load_state_dict({name: value.clone() for name, value in part.state_dict().items()})
    for ema in (whole, resumed):
        ema.update(constant(3.0))
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert whole.updates == resumed.updates == 2
