"""Draws: uniform, independent of one another, and a matter of the clip's place alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raymae.features.draws import Draws, hashed, mix

COUNT = 4000
PLACES = {
    "neighbours": np.arange(COUNT),
    "far on": 10**12 + np.arange(COUNT),
    "every 1024th": 1024 * np.arange(COUNT),
}
CRITICAL = 1e-4
"""Seeds are fixed: what passes once passes always, so that a few dozen tests may be this strict."""


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_draws_are_uniform_and_independent(places: np.ndarray) -> None:
    """A clip's own draws, those of neighbours, of other purposes, seeds and names, and of repeated clips."""
    draws = Draws(3, places)
    found = draws.uniform("a", 8)
    assert found.shape == (COUNT, 8)
    assert found.min() >= 0
    assert found.max() < 1
    columns = [
        *found.T,
        draws.one("b"),
        draws.one("ab"),
        draws.named("a").one("a"),
        Draws(4, places).one("a"),
        *draws.repeated(2).one("a").reshape(COUNT, 2).T,
    ]
    for one in columns:
        assert stats.kstest(one, "uniform").pvalue > CRITICAL
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 4 / np.sqrt(COUNT)
    correlations = np.corrcoef(columns)
    assert np.abs(correlations - np.eye(len(columns))).max() < 5 / np.sqrt(COUNT)
    cells = np.histogram2d(found[:, 0], found[:, 1], bins=8)[0]
    assert stats.chisquare(cells.ravel()).pvalue > CRITICAL


def test_every_bit_is_a_coin() -> None:
    bits = Draws(0, np.arange(COUNT)).bits("a", 4).ravel()
    shares = np.unpackbits(bits.view(np.uint8)).reshape(-1, 64).mean(0)
    np.testing.assert_allclose(shares, 0.5, atol=0.02)
    assert len(set(bits.tolist())) == bits.size


@given(
    seed=st.integers(0, 2**64 - 1),
    places=st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True),
    count=st.integers(1, 9),
)
def test_a_place_has_its_draws_in_any_batch(seed: int, places: list[int], count: int) -> None:
    """Also the first of them, however many are drawn, and those of repeated clips."""
    together = Draws(seed, np.array(places))
    for clip, place in enumerate(places):
        alone = Draws(seed, np.array([place]))
        assert np.array_equal(together.bits("a", count)[clip], alone.bits("a", count)[0])
        assert alone.one("a")[0] == alone.uniform("a", count)[0, 0]
        assert np.array_equal(together.repeated(3).one("a")[3 * clip : 3 * clip + 3], alone.repeated(3).one("a"))
        assert together.beta("a", 0.4)[clip] == alone.beta("a", 0.4)[0]
    assert np.array_equal(together.select(slice(1, None), 1).one("a"), together.one("a")[1:])


@given(seed=st.integers(0, 2**32), groups=st.integers(1, 5), size=st.integers(1, 6))
def test_partners_are_a_permutation_within_each_group(seed: int, groups: int, size: int) -> None:
    draws = Draws(seed, np.arange(groups * size), size)
    partners = draws.partners("a")
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        assert sorted(partners[own]) == list(range(own.start, own.stop))
        assert np.array_equal(draws.select(own, size).partners("a"), partners[own] - own.start)
    coins = draws.group_coins("a", 0.5).reshape(groups, size)
    assert np.array_equal(coins, np.repeat(coins[:, :1], size, 1))


def test_permutations_and_groups_are_equally_likely() -> None:
    draws = Draws(1, np.arange(6 * COUNT), 3)
    orders = draws.partners("a").reshape(-1, 3) % 3
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > CRITICAL
    assert draws.group_coins("a", 0.3).mean() == pytest.approx(0.3, abs=0.03)
    assert draws.coins("a", 0.3).mean() == pytest.approx(0.3, abs=0.02)
    assert not draws.coins("a", 0.0).any()
    assert draws.coins("a", 1.0).all()


@pytest.mark.parametrize("alpha", [0.01, 0.4, 1.0, 10.0])
def test_beta(alpha: float) -> None:
    found = Draws(0, np.arange(COUNT)).beta("a", alpha)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_normal_and_integers() -> None:
    draws = Draws(0, np.arange(COUNT))
    values = draws.normal("a", 3)
    assert np.isfinite(values).all()
    assert stats.kstest(values.ravel(), "norm").pvalue > CRITICAL
    counts = np.tile([1, 2, 5, 64], COUNT // 4)
    numbers = draws.integers("a", counts).reshape(-1, 4)
    for column, count in zip(numbers.T, (1, 2, 5, 64), strict=True):
        assert (
            stats.chisquare(np.bincount(column, minlength=count)).pvalue > CRITICAL if count > 1 else not column.any()
        )
        assert column.max() < count


def test_extreme_bits_have_finite_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 2**64 - 1):
        monkeypatch.setattr(Draws, "bits", lambda self, purpose, count, bits=bits: np.full((1, count), bits, np.uint64))
        draws = Draws(0, np.zeros(1, np.int64))
        assert 0 <= draws.one("a")[0] < 1
        assert np.isfinite(draws.normal("a", 2)).all()
        assert np.isfinite(draws.beta("a", 0.1)).all()
        assert draws.integers("a", np.array([7]))[0] in (0, 6)


def test_hashes_depend_on_every_value_and_its_place() -> None:
    values = [mix(), mix(0), mix(0, 0), mix(1, 2), mix(2, 1), mix(2**63), mix(-1)]
    assert len(set(values)) == len(values)
    numbers = np.arange(2**16, dtype=np.uint64)
    assert len(set(hashed(numbers, 5).tolist())) == len(numbers)
