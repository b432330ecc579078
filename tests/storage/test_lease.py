"""Leases: one of many gets each, and who has lost it stops before it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raymae.storage import lease as module
from raymae.storage.folder import Folder
from raymae.storage.lease import Lease, LeaseLostError, file_name, leased, newest, this_process

OWNERS = 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)


def race(folder: Folder, rounds: int) -> list[int]:
    """How many of the owners got the lease in each round, all of them trying at once."""
    start = threading.Barrier(OWNERS)
    won = [0] * rounds

    def own(_: int) -> None:
        for number in range(rounds):
            mine = Lease(folder / f"{number}")
            start.wait()
            taken = mine.take()
            won[number] += taken
            start.wait()
            if taken:
                mine.release()

    with ThreadPoolExecutor(OWNERS) as pool:
        list(pool.map(own, range(OWNERS)))
    return won


def test_one_of_twenty_gets_a_lease(tmp_path: Path) -> None:
    assert race(Folder(str(tmp_path)), 100) == [1] * 100


@pytest.mark.slow
def test_one_of_twenty_gets_a_lease_a_thousand_times(tmp_path: Path) -> None:
    assert race(Folder(str(tmp_path)), 1000) == [1] * 1000


def test_one_of_many_does_the_work(tmp_path: Path) -> None:
    folder, inside, most, made = Folder(str(tmp_path / "lease")), [0], [0], []

    def work(number: int) -> None:
        with leased(folder, lambda: bool(made)) as mine:
            if mine:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.2)
                inside[0] -= 1
                made.append(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert (len(made), most[0]) == (1, 1)


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_notices(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    paused, other = Lease(folder, renew=1000), Lease(folder, expire=0.3)
    assert paused.take()
    paused.check()
    paused.fence.check()
    assert not other.take()
    time.sleep(0.4)
    assert other.take()
    with pytest.raises(LeaseLostError, match=f"was taken over by process {os.getpid()} on "):
        paused.fence.check()
    other.fence.check()
    paused._renew()
    with pytest.raises(LeaseLostError, match="was taken over"):
        paused.check()
    paused.release()
    other.check()


@pytest.mark.parametrize("renewals", [0, 1, 70])
def test_a_holder_that_was_paused_notices_whatever_has_happened_since(tmp_path: Path, renewals: int) -> None:
    folder = Folder(str(tmp_path))
    paused, second, third = (Lease(folder, renew=1000, expire=0.05) for _ in range(3))
    assert paused.take()
    for one in (second, third):
        assert not one.take()
        time.sleep(0.1)
        assert one.take()
        for _ in range(renewals):
            one._renew()
        assert not one.lost
    third.release()
    for one in (paused, second):
        one._renew()
        assert one.lost
    assert len(folder.names()) <= 2 * module.SWEEP


def test_a_holder_that_cannot_renew_in_time_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Lease(Folder(str(tmp_path)), renew=0.05, expire=0.2)
    assert mine.take()
    monkeypatch.setattr(Folder, "create", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    time.sleep(0.3)
    with pytest.raises(LeaseLostError, match="couldn't be renewed"):
        mine.check()


def test_a_released_lease_is_taken_at_once_and_leaves_little(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for _ in range(5):
        mine = Lease(folder)
        assert mine.take()
        mine._renew()
        mine.release()
    assert len(folder.names()) == 1


def test_the_lease_of_a_process_that_has_ended_is_free(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    code = f"from raymae.storage.lease import *; assert Lease(Folder({folder.url!r})).take()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Lease(folder).take()
    assert not Lease(folder).take()


@pytest.mark.parametrize("field", ["machine", "namespace"])
def test_a_process_of_another_machine_or_container_may_be_alive(tmp_path: Path, field: str) -> None:
    holder = {"token": "x", **this_process(), "pid": 2**22 + 1, field: "another"}
    folder = Folder(str(tmp_path))
    folder.write_bytes(file_name(1), json.dumps(holder).encode())
    assert not Lease(folder).take()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"pid": "x", "released": 0}'])
def test_a_file_that_is_being_written_belongs_to_somebody(tmp_path: Path, content: bytes) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes(file_name(7), content)
    other = Lease(folder, expire=0.2)
    assert not other.take()
    time.sleep(0.3)
    assert other.take()
    assert newest(folder) == 8


def test_a_holder_keeps_its_lease_while_it_renews(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    owner, other = Lease(folder, renew=0.05), Lease(folder, expire=0.5)
    assert owner.take()
    for _ in range(5):
        assert not other.take()
        time.sleep(0.2)
    owner.release()
    assert other.take()


def test_a_late_answer_makes_the_file_ours_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create: Callable[..., bool] = Folder.create
    monkeypatch.setattr(Folder, "create", lambda *given: create(*given) and False)
    mine = Lease(Folder(str(tmp_path)))
    assert mine.take()
    mine._renew()
    assert not mine.lost
