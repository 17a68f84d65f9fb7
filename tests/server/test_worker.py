"""Worker: owners take turns, each one's tasks in order; a failed or dropped task is reported to its owner only."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from voxsam.server.errors import Dropped, TooMany
from voxsam.server.worker import MAX_WAITING, Worker


@pytest.fixture
def worker(network):
    worker = Worker(network)
    yield worker
    worker.close()


def blocked(worker: Worker) -> threading.Event:
    """Let the worker do nothing until the event is set."""
    go, begun = threading.Event(), threading.Event()
    worker.submit("blocker", lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    return go


def test_owners_take_turns_and_each_ones_own_are_in_order(worker):
    go, done = blocked(worker), []
    jobs = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2)]
    futures = [worker.submit(owner, lambda job=(owner, n): done.append(job)) for owner, n in jobs]
    assert worker.waiting == 6
    go.set()
    for future in futures:
        future.result(10)
    assert done == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)]


def test_all_work_runs_on_one_thread_which_is_not_the_callers(worker):
    threads = {worker.submit(str(n), threading.get_ident).result(10) for n in range(5)}
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_error_goes_to_who_asked_and_the_thread_goes_on(worker):
    with pytest.raises(ZeroDivisionError):
        worker.submit("a", lambda: 1 / 0).result(10)
    with pytest.raises(SystemExit):
        worker.submit("a", lambda: (_ for _ in ()).throw(SystemExit)).result(10)
    assert worker.submit("a", lambda: 7).result(10) == 7


def test_what_a_dropped_owner_waits_for_is_not_done(worker):
    go, done = blocked(worker), []
    lost = [worker.submit("a", lambda: done.append("a")) for _ in range(2)]
    kept = worker.submit("b", lambda: done.append("b"))
    worker.drop("a")
    go.set()
    kept.result(10)
    for future in lost:
        with pytest.raises(Dropped, match="was closed; expected an open session"):
            future.result(10)
    assert done == ["b"]


def test_a_cancelled_request_is_passed_over(worker):
    go, done = blocked(worker), []
    future = worker.submit("a", lambda: done.append("a"))
    assert future.cancel()
    go.set()
    assert worker.submit("b", lambda: 1).result(10) == 1 and done == []
    with pytest.raises(CancelledError):
        future.result()


def test_one_owner_cannot_fill_the_queue(worker):
    go = blocked(worker)
    for _ in range(MAX_WAITING):
        worker.submit("a", lambda: None)
    with pytest.raises(TooMany, match=f"at most {MAX_WAITING}"):
        worker.submit("a", lambda: None)
    assert not worker.submit("b", lambda: None).done()  # others still may
    go.set()


def test_after_closing_nothing_is_taken(network):
    worker = Worker(network)
    worker.close()
    with pytest.raises(Dropped):
        worker.submit("a", lambda: None)
