"""Reading ahead: in order, no more than asked for, by more threads where reading is slow, and errors arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.training.batches.prefetch import Prefetch


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 40), depth=st.integers(1, 8), slow=st.sets(st.integers(0, 39), max_size=3))
def test_items_come_in_order_whichever_is_late(count: int, depth: int, slow: set[int]) -> None:
    def read(number: int) -> int:
        time.sleep(0.02 if number in slow else 0)
        return number

    assert list(Prefetch(read, iter(range(count)), depth)) == list(range(count))


def test_no_more_is_read_than_there_is_room_for() -> None:
    read: list[int] = []
    items = iter(Prefetch(lambda number: read.append(number) or number, iter(range(100)), depth=4))
    next(items)
    time.sleep(0.3)
    assert len(read) <= 1 + 4 + 1
    items.close()  # type: ignore[attr-defined]


def test_slow_reading_gets_more_threads_and_fast_reading_one() -> None:
    def slow(number: int) -> int:
        time.sleep(0.05)
        return number

    fast = Prefetch(lambda number: number, iter(range(200)), depth=8)
    assert len(list(fast)) == 200
    prefetch, started = Prefetch(slow, iter(range(60)), depth=16), time.monotonic()
    assert len(list(prefetch)) == 60
    assert prefetch.threads > 4
    assert time.monotonic() - started < 60 * 0.05 / 2
    assert fast.threads <= 2


def test_one_late_item_delays_nothing_behind_it() -> None:
    done = threading.Event()

    def read(number: int) -> int:
        if number == 0:
            done.wait(5)
        return number

    prefetch = Prefetch(read, iter(range(8)), depth=8)
    prefetch.threads = 1
    prefetch._start()  # the first thread that is started reads the late one
    items: Iterator[int] = iter(prefetch)
    threading.Timer(0.3, done.set).start()
    assert list(items) == list(range(8))


def test_an_item_that_is_late_is_read_a_second_time() -> None:
    asked: list[int] = []

    def read(number: int) -> int:
        asked.append(number)
        time.sleep(3 if number == 40 and asked.count(40) == 1 else 0.01)
        return number

    prefetch, started = Prefetch(read, iter(range(60)), depth=4), time.monotonic()
    assert list(prefetch) == list(range(60))
    assert time.monotonic() - started < 2.5
    assert [number for number in set(asked) if asked.count(number) > 1] == [40]
    assert prefetch.repeated == 1


def test_an_error_arrives_where_its_item_would() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise ValueError("shard 2 is damaged")
        return number

    items = iter(Prefetch(read, iter(range(5)), depth=3))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="shard 2"):
        next(items)
