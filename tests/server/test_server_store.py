"""The state folder: works and uploads come back, are removed in time, and are only for their owner."""

from __future__ import annotations

import json
import os
import stat
import time

import numpy as np
import pytest

from voxsam.errors import FileError
from voxsam.interactive.session import Session
from voxsam.server import store as stores
from voxsam.server.errors import NotThere, TooLarge
from voxsam.server.messages import DemoSource, FolderSource, Prompts, UploadSource
from voxsam.server.saved import play, replay
from voxsam.server.store import Event, Store, Work, compact

NAME = "a" * 24


def work(name=NAME, source=None, **facts):
    return Work(id=name, name="ct", model="stub", source=source or DemoSource(demo=True), **facts)


def point(index, positive=True):
    return Prompts.model_validate(
        {"prompts": [{"kind": "point", "index": [float(i) for i in index], "positive": positive}]}
    ).prompts


def clicked(number):
    return Event(do="prompt", prompts=tuple(point((number, 0, 0))), revision=number)


def saved(store, name=NAME, source=None, events=(), **facts):
    journal = store.create(work(name, source, **facts))
    journal.begin(events)
    return journal


def age(path, days):
    then = time.time() - days * 86400
    os.utime(path, (then, then))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state")
    yield store
    store.close()


def again(store):
    """The folder as the next server finds it."""
    store.close()
    return Store(store.folder)


# Works


def test_a_work_comes_back_with_every_event(store):
    journal = saved(store, digest="12", place="/scans/ct.nii.gz", revision=0)
    for number in (1, 2, 3):
        journal.add(clicked(number))
    journal, events = again(store).load(NAME)
    assert journal.work == work(digest="12", place="/scans/ct.nii.gz")
    assert events[:3] == [clicked(1), clicked(2), clicked(3)] and events[3].do == "select" and events[3].revision == 3


def test_a_step_of_many_prompts_is_packed_and_comes_back(store):
    many = Event(
        do="prompt", prompts=tuple(prompt for n in range(60) for prompt in point((n, 2 * n, 0.25))), revision=1
    )
    journal = saved(store, events=[many])
    journal.add(many.model_copy(update={"revision": 2}))
    assert journal.path.read_bytes().splitlines()[1].startswith(b"z")
    events = again(store).load(NAME)[1]
    assert [len(event.prompts) for event in events if event.do == "prompt"] == [60, 60]


def test_only_a_line_is_written_for_a_step(store):
    journal = saved(store)
    for number in range(50):
        before = journal.path.read_bytes()
        journal.add(clicked(number))
        after = journal.path.read_bytes()
        assert after.startswith(before) and after.count(b"\n") == before.count(b"\n") + 1


def test_all_is_for_the_owner_alone(store):
    journal = saved(store)
    journal.add(clicked(1))
    for folder in (store.folder, store.works, store.uploads, store.scratch, store.uploads / store.new_upload()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    with store.scratch_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_crash_cut_off_is_left_out_and_written_over(store, cut):
    journal = saved(store)
    journal.add(clicked(1))
    journal.add(clicked(2))
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    journal, events = again(store).load(NAME)
    assert [event.revision for event in events] == [1, 1]
    journal.begin(events)
    journal.add(clicked(3))
    assert [event.revision for event in store.load(NAME)[1]] == [1, 3, 3]


def test_what_a_full_disk_did_not_take_goes_with_the_next_step(store, monkeypatch):
    journal = saved(store)

    def half(file, size, data):
        file.truncate(size)
        file.seek(size)
        file.write(data[: len(data) // 2])
        file.flush()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "_append", half)
        with pytest.raises(FileError, match="a step that could not be saved") as error:
            journal.add(clicked(1))
        assert str(store.folder) not in str(error.value) and journal.waiting_bytes > 0
    journal.add(clicked(2))
    assert journal.waiting_bytes == 0
    assert [event.revision for event in again(store).load(NAME)[1]] == [1, 2, 2]


@pytest.mark.parametrize("name", ["../../../etc/passwd", "..", "", "a/b/c/d/e/f", "b" * 24, "x" * 300, "nul\0nul\0nul"])
def test_no_other_name_finds_a_file(store, name):
    saved(store)
    for find in (store.load, store.delete, store.upload_folder):
        with pytest.raises(NotThere):
            find(name)


@pytest.mark.parametrize("content", [b'{"id": \n', b"", b"z%%%\n", b"zAAAA\n", b"\xff\n", b"[]\n", b"null\n{}\n"])
def test_a_damaged_work_is_reported_in_words(store, content):
    saved(store).path.write_bytes(content)
    with pytest.raises(FileError, match="whose file is damaged"):
        again(store).load(NAME)


def test_a_work_of_an_earlier_version_is_read_and_replaced(store, phantom, network):
    """As written by the first servers: all steps in one object, the first `done` of which are in effect."""
    step = {"do": "prompt", "object": 1, "prompts": [{"kind": "point", "index": [20.0, 18.0, 11.0], "positive": True}]}
    script = {"steps": [step, {"do": "new_object", "object": 1, "prompts": []}, step], "done": 2, "current": 1}
    kept = {"format": 1, "id": NAME, "name": "ct.nii.gz", "model": "stub", "revision": 4}
    kept |= {"source": {"folder": "0", "path": "ct.nii.gz"}, "script": script}
    (store.works / f"{NAME}.json").write_text(json.dumps(kept))
    journal, events = again(store).load(NAME)
    assert (journal.work.name, journal.work.source) == ("ct.nii.gz", FolderSource(folder="0", path="ct.nii.gz"))
    session = Session(network, phantom.scan)
    for event in events:
        replay(event, session)
    assert (session.objects, session.current, session.can_redo) == ((1, 2), 1, True) and events[-1].revision == 4
    journal.begin(events)
    assert [file.name for file in store.works.iterdir()] == [f"{NAME}.jsonl"]
    assert store.load(NAME)[1] == events


def test_works_are_found_by_what_their_scan_holds_the_latest_first(store):
    for number, name in enumerate(("b" * 24, "c" * 24, "d" * 24)):
        age(saved(store, name, digest="one" if number < 2 else "two").path, number)
    saved(store, NAME)  # of an earlier version: no digest
    later = again(store)
    assert [found.id for found in later.with_digest("one")] == ["b" * 24, "c" * 24]
    assert later.with_digest("") == []
    later.delete("b" * 24)
    assert [found.id for found in later.with_digest("one")] == ["c" * 24]


def test_a_work_has_a_limit_and_what_nothing_needs_goes_first(store, monkeypatch):
    monkeypatch.setattr(stores, "MAX_WORK_BYTES", 4000)
    journal = saved(store)
    for number in range(1, 200):  # each is taken back: nothing needs it once another is done
        journal.check_room(clicked(number))
        journal.add(clicked(number))
        journal.add(Event(do="undo", revision=number))
    for number in range(1000, 1100):
        try:
            journal.check_room(clicked(number))
        except TooLarge as error:
            assert "a session of too many steps" in str(error)
            break
        journal.add(clicked(number))
    assert 10 < number - 1000 < 40 and len(store.load(NAME)[1]) == number - 1000 + 1


# Events


def random_events(session: Session, rng: np.random.Generator, count: int) -> list[Event]:
    """What a client does, as it is noted."""
    events = []
    for _ in range(count):
        chance = rng.integers(8)
        event = Event(do="undo" if chance < 3 else "redo" if chance == 3 else "prompt")
        if chance == 0 and len(session.objects) < 3:
            event = Event(do="new_object")
        elif chance == 4:
            event = Event(do="select", object=int(rng.choice(session.objects)))
        elif chance == 5 and rng.random() < 0.3:
            event = Event(do="reset")
        elif event.do == "prompt":
            index = rng.integers(0, session.volume.grid.shape)
            event.prompts = tuple(point(index, bool(not session.prompts or rng.random() < 0.7)))
        before = session.current
        if play(event, session):
            event.object = session.current if event.do == "select" else before
            event.current = session.current
            events.append(event)
    return events


def same(a: Session, b: Session) -> None:
    assert (a.objects, a.current, a.can_undo, a.can_redo) == (b.objects, b.current, b.can_undo, b.can_redo)
    np.testing.assert_array_equal(a.mask.array, b.mask.array)
    np.testing.assert_array_equal(a.probabilities.array, b.probabilities.array)


@pytest.mark.parametrize("seed", range(4))
def test_events_bring_back_the_session_and_every_step_of_undo_and_redo(store, network, phantom, seed):
    session = Session(network, phantom.scan)
    journal = saved(store)
    for event in random_events(session, np.random.default_rng(seed), 14):
        journal.add(event)
    kept = again(store).load(NAME)[1]
    assert compact(kept) == kept
    back = Session(network, phantom.scan)
    for event in kept:
        replay(event, back)
    same(session, back)
    for move in ("undo", "undo", "undo", "redo", "redo", "undo", "redo"):
        getattr(session, move)()
        getattr(back, move)()
        same(session, back)


def test_what_lies_before_a_reset_that_undo_cannot_reach_is_left_out():
    early, late = [clicked(n) for n in range(1, 30)], [clicked(n) for n in range(31, 140)]
    reset = Event(do="reset", revision=30)
    assert compact([*early, reset, *late])[0] == reset
    assert compact([*early, reset, *late[:99]])[:29] == early  # undo still reaches it


def test_undo_of_nothing_is_nothing_to_keep(network, phantom):
    session = Session(network, phantom.scan)
    assert not play(Event(do="undo"), session) and not play(Event(do="redo"), session)
    assert compact([]) == []


# Uploads, and what is left over


def test_an_upload_goes_with_the_last_work_that_needs_it(store):
    upload = store.new_upload()
    (store.upload_folder(upload) / "ct.nii").write_bytes(b"1")
    for name in (NAME, "b" * 24):
        saved(store, name, UploadSource(upload=upload))
    store.delete(NAME)
    assert store.upload_folder(upload).is_dir()
    store.delete("b" * 24)
    with pytest.raises(NotThere):
        store.upload_folder(upload)
    with pytest.raises(NotThere):
        store.delete(NAME)


def test_tidying_removes_what_nobody_needs_and_nothing_else(store):
    needed, orphan, fresh, coming = (store.new_upload() for _ in range(4))
    saved(store, NAME, UploadSource(upload=needed))
    old = saved(store, "b" * 24).path
    (store.works / ".1234-b.jsonl").touch()  # of a server that was killed while it wrote
    age(old, 31)
    for path in (*map(store.upload_folder, (needed, orphan, coming)), store.works / ".1234-b.jsonl"):
        age(path, 2)
    with store.using(coming):
        store.tidy()
    assert {f.name for f in store.works.iterdir()} == {f"{NAME}.jsonl"}
    assert {f.name for f in store.uploads.iterdir()} == {needed, fresh, coming}
    store.tidy()
    assert {f.name for f in store.uploads.iterdir()} == {needed, fresh}


def test_what_a_killed_server_was_sending_or_reading_is_gone_with_the_next_one(store):
    (store.scratch / "tmp123").mkdir()
    (store.scratch / "tmp123" / "slice.dcm").write_bytes(b"a patient's")
    assert not list(again(store).scratch.iterdir())


def test_tidying_goes_on_when_a_file_vanishes_meanwhile(store, tmp_path):
    path = saved(store).path
    age(path, 31)
    for folder in (store.works, store.uploads, store.scratch):
        (folder / "gone.json").symlink_to(tmp_path / "nowhere")  # is listed, and cannot be looked at
    store.tidy()
    assert not path.exists()


def test_a_work_that_was_opened_stays(store):
    age(saved(store).path, 31)
    store.load(NAME)
    store.tidy()
    assert store.load(NAME)[0].work == work()


def test_without_a_folder_nothing_outlives_the_server():
    store = Store(None)
    saved(store)
    assert store.load(NAME)[0].work == work()
    store.close()
    assert not store.folder.exists()


def test_a_state_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError):
        Store(tmp_path / "file" / "state")


def test_two_servers_do_not_work_in_one_state_folder(store, tmp_path):
    (tmp_path / "link").symlink_to(store.folder)
    for name in ("state", "link"):
        with pytest.raises(FileError, match="in which another server works; expected a folder for each server"):
            Store(tmp_path / name)
    store.close()
    Store(tmp_path / "link").close()
