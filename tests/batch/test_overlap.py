"""Reading, work and writing at the same time: order, bounds, failures, and what is left undone if the caller stops."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from voxsam.batch.worker import overlapped

WAIT_S = 10  # for another thread, before a test fails


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_every_item_passes_the_steps_in_order(ahead: int) -> None:
    found = list(overlapped(range(7), lambda n: n * 10, lambda n, r: (n, r + 1), lambda n, w: (n, *w), ahead))
    assert found == [(n, (n, n, n * 10 + 1)) for n in range(7)]


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("step", ["read", "work", "write"])
def test_a_failure_in_any_step_costs_its_own_item(step: str, ahead: int) -> None:
    def fails(name: str) -> Callable[..., int]:
        def does(item: int, *_: object) -> int:
            if name == step and item == 2:
                raise ValueError(f"{name} of {item}")
            return item

        return does

    found = dict(overlapped(range(5), fails("read"), fails("work"), fails("write"), ahead))
    assert [found[n] for n in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert isinstance(found[2], ValueError) and str(found[2]) == f"{step} of 2"


def test_reading_and_writing_go_on_while_one_item_is_worked_on() -> None:
    """The work on item 1 waits for the reading of item 2 and the writing of item 0: one by one it would never end."""
    read_2, wrote_0 = threading.Event(), threading.Event()

    def work(item: int, read: int) -> int:
        if item == 1:
            assert read_2.wait(WAIT_S) and wrote_0.wait(WAIT_S)
        return read

    def read(item: int) -> int:
        if item == 2:
            read_2.set()
        return item

    def write(item: int, worked: int) -> int:
        if item == 0:
            wrote_0.set()
        return worked

    assert list(overlapped(range(3), read, work, write, 1)) == [(n, n) for n in range(3)]


@pytest.mark.parametrize("ahead", [1, 2])
def test_no_more_items_are_in_memory_than_promised(ahead: int) -> None:
    lock, held, most = threading.Lock(), 0, 0

    def read(item: int) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return item

    def write(item: int, worked: int) -> None:
        nonlocal held
        with lock:
            held -= 1

    list(overlapped(range(40), read, lambda n, r: r, write, ahead))
    assert 1 < most <= 2 * ahead + 2  # the next is read while one goes on to be written


def test_when_the_caller_is_interrupted_nothing_more_is_begun_and_writing_ends() -> None:
    wrote, begun = [], []

    def work(item: int, read: int) -> int:
        if item == 2:
            raise KeyboardInterrupt
        return read

    with pytest.raises(KeyboardInterrupt):
        for _ in overlapped(range(50), lambda n: begun.append(n) or n, work, lambda n, w: wrote.append(n), 1):
            pass
    assert set(wrote) <= {0, 1} and max(begun) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read_", "write_"))]
