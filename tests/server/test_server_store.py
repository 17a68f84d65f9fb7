"""Store: places, leases, time-outs and the budget of memory, on a clock that the test moves."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from voxsam.interactive.session import Session
from voxsam.server.device import Device
from voxsam.server.errors import Dropped, Full, NotThere
from voxsam.server.store import Busy, Limits, Slot, Store

LIMITS = Limits(capacity=2, memory_bytes=1 << 30, idle_s=100.0, alive_s=10.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_store(network, clock):
    device = Device(network)
    yield lambda limits=LIMITS: Store(device, limits, clock)
    device.close()


def click(slot, index):
    return slot.run(lambda session: session.click(index)).result(30)


def test_a_slot_answers_as_a_session_of_its_own(make_store, network, phantom):
    slot = make_store().claim()
    slot.open(phantom.scan)
    mask = click(slot, phantom.click).array
    np.testing.assert_array_equal(mask, Session(network, phantom.scan).click(phantom.click).array)
    assert mask.any()


def test_places_are_limited_and_a_released_one_is_free_again(make_store):
    store = make_store()
    first, _ = store.claim(), store.claim()
    with pytest.raises(Full, match="2 open sessions; expected a free place"):
        store.claim()
    assert store.release(first.id) and not store.release(first.id)
    assert store.claim().id != first.id
    with pytest.raises(NotThere):
        store.get(first.id)


def test_a_client_that_gives_no_sign_of_life_loses_its_place(make_store, clock):
    store = make_store()
    quiet, alive = store.claim(), store.claim()
    for _ in range(3):
        clock.now += 6
        store.get(alive.id)  # a heartbeat
    assert store.expire() == [quiet.id] and store.expired == 1
    assert store.slots == (alive,)


def test_heartbeats_alone_do_not_keep_a_place_for_ever(make_store, clock, phantom):
    store = make_store()
    slot = store.claim()
    slot.open(phantom.scan)
    for _ in range(20):
        clock.now += 6
        if store.find(slot.id) is None:
            break
    assert clock.now == 1000 + 102  # the first look after idle_s
    assert store.expire() == [slot.id]


def test_a_step_is_a_use_and_the_lease_tells_what_is_left(make_store, clock, phantom):
    store = make_store()
    slot = store.claim()
    slot.open(phantom.scan)
    clock.now += 4
    assert slot.lease_s == 6
    for _ in range(20):
        clock.now += 9
        slot.run(lambda session: None).result(10)
    assert slot.lease_s == pytest.approx(10)


def test_a_full_store_first_looks_for_places_whose_time_is_over(make_store, clock):
    store = make_store()
    store.claim(), store.claim()
    clock.now += 11
    assert store.claim() is not None


def test_a_slot_whose_step_waits_does_not_end(make_store, clock, phantom):
    store = make_store()
    slot = store.claim()
    slot.open(phantom.scan)
    go = threading.Event()
    step = slot.run(lambda session: go.wait(10))
    clock.now += 1000
    assert store.expire() == []
    with slot.held():
        go.set()
        step.result(10)
        clock.now += 1000
        assert store.expire() == []
    clock.now += 11
    assert store.expire() == [slot.id]


def test_a_released_session_is_freed_and_what_waits_for_it_is_dropped(make_store, phantom):
    store = make_store()
    slot = store.claim()
    slot.open(phantom.scan)
    session = weakref.ref(slot.session)
    go, begun = threading.Event(), threading.Event()
    running, waiting = slot.run(lambda _: (begun.set(), go.wait(10))), slot.run(lambda _: None)
    assert begun.wait(10)
    store.release(slot.id)
    go.set()
    running.result(10)
    with pytest.raises(Dropped):
        waiting.result(10)
    for refused in (lambda: slot.run(lambda _: None), lambda: slot.open(phantom.scan)):
        with pytest.raises(Dropped, match="a session that was closed"):
            refused()
    store.device.submit("", lambda: None).result(10)  # the thread has let go of its last job
    gc.collect()
    assert session() is None and store.nbytes == 0


def test_a_slot_without_a_scan_says_so(make_store):
    with pytest.raises(NotThere, match="open a scan first"):
        make_store().claim().run(lambda session: None)


def test_features_that_were_used_least_recently_make_room(make_store, clock, phantom):
    store = make_store()
    old, new = store.claim(), store.claim()
    for slot in (old, new):
        slot.open(phantom.scan)
        clock.now += 1
        before = click(slot, phantom.click).array
    features, answers = old.features_bytes, old.answers_bytes
    assert answers > 0 and features > 0 and new.features_bytes == features and store.forgotten == 0
    tight = make_store(Limits(2, 2 * (phantom.scan.array.nbytes + answers) + features + features // 2, 100, 10))
    old, new = tight.claim(), tight.claim()
    for slot in (old, new):
        slot.open(phantom.scan)
        clock.now += 1
        click(slot, phantom.click)
    assert (old.features_bytes, new.features_bytes, tight.forgotten) == (0, features, 1)
    assert old.session is not None and old.session.features_bytes == 0
    np.testing.assert_array_equal(old.run(lambda session: session.mask).result(10).array, before)  # answers stay
    i, j, k = phantom.click
    again = click(old, (i + 1, j, k)).array
    alone = Session(store.device.model, phantom.scan)
    alone.click(phantom.click)
    np.testing.assert_array_equal(again, alone.click((i + 1, j, k)).array)
    assert new.features_bytes == 0


def test_a_session_that_is_released_while_room_is_made_harms_no_other(make_store, network, phantom):
    class Vanishing(Slot):
        """Its session can be looked at once more, then another thread has released it."""

        session = property(lambda self: vars(self).pop("session", None))

    store = make_store(Limits(capacity=2, memory_bytes=phantom.scan.array.nbytes * 2))
    old, new = store.claim(), store.claim()
    for slot in (old, new):
        slot.open(phantom.scan)
    click(old, phantom.click)
    assert old.features_bytes
    old.__class__ = Vanishing
    assert click(new, phantom.click).array.any()
    assert store.forgotten == 1


def test_a_scan_that_does_not_fit_beside_the_others_is_refused(make_store, phantom):
    store = make_store(Limits(2, phantom.scan.array.nbytes * 3 // 2))
    first, second = store.claim(), store.claim()
    first.open(phantom.scan)
    with pytest.raises(Full, match="close a session"):
        second.open(phantom.scan)
    first.open(phantom.scan)  # in the place of the one before
    store.release(first.id)
    second.open(phantom.scan)


def test_listeners_hear_waiting_progress_and_the_end(make_store, phantom):
    slot = make_store().claim()
    slot.open(phantom.scan)
    heard: list[Busy | None] = []
    stop = slot.listen(heard.append)
    click(slot, phantom.click)
    assert heard[0] == Busy("waiting", 0.0) and heard[-1] is None
    fractions = [busy.fraction for busy in heard if busy and busy.stage == "encoding"]
    assert fractions[0] == 0 and fractions[-1] == 1
    stop()
    count = len(heard)
    click(slot, phantom.click)
    assert len(heard) == count
