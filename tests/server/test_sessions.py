"""Sessions: places, leases, time-outs and the memory budget, with a clock that the test sets."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from voxsam.interactive.session import Session
from voxsam.prompts import Scribble
from voxsam.server.errors import Dropped, Full, NotThere, TooMany
from voxsam.server.sessions import MAX_LISTENERS, Busy, Memory, OpenSession, Sessions
from voxsam.server.settings import Settings
from voxsam.server.worker import Worker
from voxsam.volume import Volume

LIMITS = Settings(capacity=2, memory_bytes=1 << 30, idle_s=100.0, alive_s=10.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Place(OpenSession):
    """A protocol that keeps no data of its own."""

    kind = "a place of this test"

    def make(self, model, volume, undo_bytes):
        return Session(model, volume, progress=self.report, undo_bytes=undo_bytes)


class Other(Place):
    """Another protocol."""


class Third(Place):
    """And one more."""


@pytest.fixture
def make_sessions(network, clock):
    worker = Worker(network)
    yield lambda limits=LIMITS: Sessions(worker, limits, clock=clock)
    worker.close()


def scan_in(place, scan):
    """Open a scan, as the reader of the file would."""
    old = place.part.nbytes if place.part else 0
    place.open(scan, place.sessions.memory.take(scan.array.nbytes, freed=old))


def click(place, index):
    return place.run(lambda session: session.click(index)).result(30)


def test_a_place_answers_as_a_session_of_its_own(make_sessions, network, phantom):
    place = make_sessions().claim(Place)
    scan_in(place, phantom.scan)
    mask = click(place, phantom.click).array
    np.testing.assert_array_equal(mask, Session(network, phantom.scan).click(phantom.click).array)
    assert mask.any()


def test_places_are_limited_and_a_released_one_is_free_again(make_sessions):
    sessions = make_sessions()
    first, _ = sessions.claim(Place), sessions.claim(Place)
    with pytest.raises(Full, match="2 open sessions; expected a free place"):
        sessions.claim(Place)
    assert sessions.release(first.id) and not sessions.release(first.id)
    assert sessions.claim(Place).id != first.id
    assert sessions.find(Place, first.id) is None


def test_a_place_is_found_by_its_own_protocol_alone(make_sessions):
    sessions = make_sessions()
    place = sessions.claim(Other)
    assert sessions.find(Other, place.id) is place and sessions.find(OpenSession, place.id) is place
    with pytest.raises(NotThere, match="expected a place of this test"):
        sessions.find(Third, place.id)


def test_a_client_that_gives_no_sign_of_life_loses_its_place(make_sessions, clock):
    sessions = make_sessions()
    quiet, alive = sessions.claim(Place), sessions.claim(Place)
    for _ in range(3):
        clock.now += 6
        sessions.find(Place, alive.id)  # a heartbeat
    assert sessions.expire() == [quiet.id] and sessions.expired == 1
    assert sessions.open == (alive,)


def test_heartbeats_alone_do_not_keep_a_place_for_ever(make_sessions, clock, phantom):
    sessions = make_sessions()
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    for _ in range(20):
        clock.now += 6
        if sessions.find(Place, place.id) is None:
            break
    assert clock.now == 1000 + 102  # the first look after idle_s
    assert sessions.expire() == [place.id]


def test_a_step_is_a_use_and_the_lease_tells_what_is_left(make_sessions, clock, phantom):
    sessions = make_sessions()
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    clock.now += 4
    assert place.lease_s == 6
    for _ in range(20):
        clock.now += 9
        place.run(lambda session: None).result(10)
    assert place.lease_s == pytest.approx(10)


def test_a_full_sessions_first_looks_for_places_whose_time_is_over(make_sessions, clock):
    sessions = make_sessions()
    sessions.claim(Place), sessions.claim(Place)
    clock.now += 11
    assert sessions.claim(Place) is not None


def test_a_place_whose_step_waits_does_not_end(make_sessions, clock, phantom):
    sessions = make_sessions()
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    go = threading.Event()
    step = place.run(lambda session: go.wait(10))
    clock.now += 1000
    assert sessions.expire() == []
    with place.held():
        go.set()
        step.result(10)
        clock.now += 1000
        assert sessions.expire() == []
    clock.now += 11
    assert sessions.expire() == [place.id]


def test_a_released_session_is_freed_and_what_waits_for_it_is_dropped(make_sessions, phantom):
    sessions = make_sessions()
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    session = weakref.ref(place.segmenter)
    go, begun = threading.Event(), threading.Event()
    running, waiting = place.run(lambda _: (begun.set(), go.wait(10))), place.run(lambda _: None)
    assert begun.wait(10)
    sessions.release(place.id)
    go.set()
    running.result(10)
    with pytest.raises(Dropped):
        waiting.result(10)
    for refused in (lambda: place.run(lambda _: None), lambda: scan_in(place, phantom.scan)):
        with pytest.raises(Dropped, match="a session that was closed"):
            refused()
    sessions.worker.submit("", lambda: None).result(10)  # the thread has let go of its last task
    gc.collect()
    assert session() is None and sessions.nbytes == 0


def test_a_place_without_a_scan_says_so(make_sessions):
    with pytest.raises(NotThere, match="open a scan first"):
        make_sessions().claim(Place).run(lambda session: None)


def test_features_that_were_used_least_recently_make_room(make_sessions, clock, phantom):
    sessions = make_sessions()
    old, new = sessions.claim(Place), sessions.claim(Place)
    for place in (old, new):
        scan_in(place, phantom.scan)
        clock.now += 1
        before = click(place, phantom.click).array
    features, answers = old.features_bytes, old.part.nbytes - phantom.scan.array.nbytes
    assert answers > 0 and features > 0 and new.features_bytes == features and sessions.forgotten == 0
    nbytes = 2 * (phantom.scan.array.nbytes + answers) + features + features // 2
    tight = make_sessions(Settings(capacity=2, memory_bytes=nbytes, idle_s=100, alive_s=10))
    old, new = tight.claim(Place), tight.claim(Place)
    for place in (old, new):
        scan_in(place, phantom.scan)
        clock.now += 1
        click(place, phantom.click)
    assert (old.features_bytes, new.features_bytes, tight.forgotten) == (0, features, 1)
    assert old.segmenter.features_bytes == 0
    np.testing.assert_array_equal(old.run(lambda session: session.mask).result(10).array, before)  # answers stay
    i, j, k = phantom.click
    again = click(old, (i + 1, j, k)).array
    alone = Session(sessions.worker.model, phantom.scan)
    alone.click(phantom.click)
    np.testing.assert_array_equal(again, alone.click((i + 1, j, k)).array)
    assert new.features_bytes == 0


def test_a_session_that_is_released_while_room_is_made_harms_no_other(make_sessions, network, phantom):
    class Vanishing(Place):
        """Its segmenter can be read once more, then another thread has released it."""

        segmenter = property(lambda self: vars(self).pop("segmenter", None))

    sessions = make_sessions(Settings(capacity=2, memory_bytes=phantom.scan.array.nbytes * 2))
    old, new = sessions.claim(Place), sessions.claim(Place)
    for place in (old, new):
        scan_in(place, phantom.scan)
    sessions.worker.submit("", lambda: None).result(30)  # after what opening makes room for, which may come late
    click(old, phantom.click)
    assert old.features_bytes
    old.__class__ = Vanishing
    assert click(new, phantom.click).array.any()
    assert sessions.forgotten == 1


def test_a_scan_that_does_not_fit_beside_the_others_is_refused(make_sessions, phantom):
    sessions = make_sessions(Settings(capacity=2, memory_bytes=phantom.scan.array.nbytes * 3 // 2))
    first, second = sessions.claim(Place), sessions.claim(Place)
    scan_in(first, phantom.scan)
    with pytest.raises(Full, match="close a session"):
        scan_in(second, phantom.scan)
    scan_in(first, phantom.scan)  # in the place of the one before
    sessions.release(first.id)
    scan_in(second, phantom.scan)


def test_listeners_hear_waiting_progress_and_the_end(make_sessions, phantom):
    place = make_sessions().claim(Place)
    scan_in(place, phantom.scan)
    heard: list[Busy | None] = []
    stop = place.listen(heard.append)
    click(place, phantom.click)
    assert heard[0] == Busy("waiting", 0.0) and heard[-1] is None
    fractions = [busy.fraction for busy in heard if busy and busy.stage == "encoding"]
    assert fractions[0] == 0 and fractions[-1] == 1
    stop()
    count = len(heard)
    click(place, phantom.click)
    assert len(heard) == count


def test_no_more_than_a_few_listen_to_one_session(make_sessions):
    place = make_sessions().claim(Place)
    stops = [place.listen(lambda busy: None) for _ in range(MAX_LISTENERS)]
    with pytest.raises(TooMany, match="at most 8"):
        place.listen(print)
    stops[0]()
    place.listen(lambda busy: None)


def test_memory_is_taken_whole_or_not_at_all_and_comes_back():
    memory = Memory(100 << 20)
    with memory.take(60 << 20) as part:
        with pytest.raises(Full, match="50 MiB beside 60 MiB that are taken; expected at most 100 MiB together"):
            memory.take(50 << 20)
        with pytest.raises(Full):
            part.resize(101 << 20)
        assert (memory.taken, memory.free) == (60 << 20, 40 << 20)
        with memory.take(50 << 20, freed=20 << 20):
            part.resize(10 << 20)
            assert memory.taken == 60 << 20
        part.note(500 << 20)  # it is there already
        assert memory.free == 0
        part.resize(1)
    assert memory.taken == 0
    part.close()
    assert memory.taken == 0


def test_a_step_takes_memory_until_it_is_done(make_sessions, phantom):
    sessions = make_sessions(Settings(capacity=2, memory_bytes=phantom.scan.array.nbytes + 1000))
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    with pytest.raises(Full):
        place.run(lambda session: None, memory_bytes=2000)
    before = sessions.memory.taken
    assert place.run(lambda session: sessions.memory.taken, memory_bytes=900).result(10) == before + 900
    place.run(lambda session: None).result(10)
    assert sessions.memory.taken == before and place.pending == 0


def test_a_session_that_grows_beyond_its_part_of_a_full_memory_is_refused(make_sessions, phantom):
    sessions = make_sessions(Settings(capacity=1, memory_bytes=phantom.scan.array.nbytes + 400_000))
    place = sessions.claim(Place)
    scan_in(place, phantom.scan)
    click(place, phantom.click)
    place.check_growth()  # not full, or not more than half of it
    for step in range(1, 12):
        click(place, np.add(phantom.click, (step % 3, step % 2, 0)))
        place.run(lambda session: session.new_object()).result(10)
        click(place, phantom.click)
    with pytest.raises(Full, match="of masks and steps; expected room in the server's memory; reset it"):
        place.check_growth()


def test_scribbles_count_as_long_as_undo_can_bring_them_back(make_sessions, phantom):
    place = make_sessions().claim(Place)
    scan_in(place, phantom.scan)
    labels = np.zeros(phantom.scan.grid.shape, np.uint8)
    labels[phantom.click] = 1
    place.run(lambda session: session.prompt(Scribble(Volume(labels, phantom.scan.grid)))).result(30)
    with_scribble = place.part.nbytes
    assert with_scribble >= phantom.scan.array.nbytes + labels.nbytes
    place.run(lambda session: session.reset()).result(10)
    assert place.part.nbytes == with_scribble
