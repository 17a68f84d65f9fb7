"""Saved sessions when something goes wrong: another scan, leaving during a step, a full disk, unfinished files."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from serving import error_of, opened, point, post, running, wait_until

from voxsam.io import read_volume, write_volume
from voxsam.server import scans as scans_module
from voxsam.server import store as stores
from voxsam.server.saved import NOT_SAVED, UNKNOWN_SCAN, SavedSession
from voxsam.server.settings import Settings
from voxsam.server.store import Store
from voxsam.testing import stub_scan


@pytest.mark.parametrize("moment", ["on the worker", "while it is saved"])
def test_a_session_that_is_left_in_the_middle_of_a_step_does_not_come_back(server, phantom, monkeypatch, moment):
    sid, service = opened(server), server.service
    session = service.sessions.find(SavedSession, sid)
    begun, go_on = threading.Event(), threading.Event()

    def wait_then(act):
        def work(*arguments):
            begun.set()
            assert go_on.wait(20)
            return act(*arguments)

        return work

    if moment == "on the worker":
        monkeypatch.setattr(session.segmenter, "prompt", wait_then(session.segmenter.prompt))
    else:
        monkeypatch.setattr(session.journal, "add", wait_then(session.journal.add))
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=server.base_url, timeout=60) as other:
        step = pool.submit(server.post, f"/api/sessions/{sid}/prompts", json=point(phantom.click))
        assert begun.wait(20)
        leaving = pool.submit(other.delete, f"/api/sessions/{sid}")
        if moment == "on the worker":
            assert leaving.result(20).status_code == 204
        else:
            wait_until(lambda: session.left)
        go_on.set()
        assert step.result(20).status_code in ([410] if moment == "on the worker" else [200, 410])
        assert leaving.result(20).status_code == 204
    assert not list(service.store.works.iterdir())
    assert server.get(f"/api/sessions/{sid}").status_code == 404


def test_a_lease_of_the_other_protocol_is_not_ended_by_the_page(server):
    lease = server.post("/claim").json()["lease_token"]
    assert server.delete(f"/api/sessions/{lease}").status_code == 404
    assert server.post("/heartbeat", headers={"x-lease-token": lease}).status_code == 200


def test_a_disk_that_is_full_loses_no_step_and_is_reported(server, phantom, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/secret/place")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "_append", full)
        sid = opened(server)
        answer = post(server, sid, "prompts", point(phantom.click))
        assert answer["notes"] == [NOT_SAVED]
        assert answer["objects"][0]["volume_ml"] > 0
        assert "secret" not in str(answer)
    assert post(server, sid, "undo")["notes"] == []
    assert [event.do for event in server.service.store.load(sid)[1]] == ["prompt", "undo", "select"]


def test_an_upload_stops_before_the_disk_is_full(server, monkeypatch):
    room = iter([scans_module.SPARE_BYTES + (2 << 20), scans_module.SPARE_BYTES + (1 << 10)])
    monkeypatch.setattr(scans_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(room)))
    answer = server.post("/api/uploads?name=a.nii", content=bytes(3 << 20))
    assert answer.status_code == 503
    assert "beyond the free disk space" in error_of(answer)["given"]
    assert not list(server.service.store.uploads.iterdir())


def test_a_file_that_is_still_coming_is_no_part_of_an_upload(server, scans):
    sent = server.post("/api/uploads?name=ct.nii.gz", content=(scans / "ct.nii.gz").read_bytes()).json()["upload"]
    shutil.copy(scans / "ct.nii.gz", server.service.store.upload_folder(sent) / ".0123-more.nii.gz")
    assert opened(server, {"upload": sent})


def test_a_failure_of_the_sweeper_does_not_stop_it(tmp_path, network, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Store, "tidy", fail)
    with running(Settings(state=tmp_path / "state", alive_s=0.4), network) as client:
        assert client.post("/claim").status_code == 200
        wait_until(lambda: client.service.sessions.expired == 1)
    assert not client.service.worker._open  # closed at the end, too


# The scan that a work is of


@pytest.fixture
def two(tmp_path):
    """Two folders, each with another patient's scan under the same name."""
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_volume(stub_scan(number).scan, tmp_path / name / "ct.nii.gz")
    return tmp_path


def settings_of(place, order="ab"):
    return Settings(state=place / "state", folders=tuple(place / name for name in order))


def clicked(place, network, phantom):
    """Click once in a session on the scan of folder a; returns the answer."""
    with running(settings_of(place), network) as client:
        state = client.post("/api/sessions", json={"source": {"folder": "0", "path": "ct.nii.gz"}, "name": "A"}).json()
        return post(client, state["id"], "prompts", point(phantom.click))


def test_folders_in_another_order_bring_back_the_same_scan(two, network, phantom):
    before = clicked(two, network, phantom)
    with running(settings_of(two, "ba"), network) as client:
        after = client.get(f"/api/sessions/{before['id']}").json()
        assert after["objects"] == before["objects"] and after["notes"] == []
        (two / "scan.nii.gz").write_bytes(client.get(f"/api/sessions/{before['id']}/scan").content)
    np.testing.assert_array_equal(read_volume(two / "scan.nii.gz").array, stub_scan(0).scan.array)


def test_work_is_refused_on_another_patients_scan_and_stays_for_its_own(two, network, phantom):
    before = clicked(two, network, phantom)
    own = (two / "a" / "ct.nii.gz").read_bytes()
    (two / "a" / "ct.nii.gz").write_bytes((two / "b" / "ct.nii.gz").read_bytes())
    with running(settings_of(two), network) as client:
        for _ in range(2):
            answer = client.get(f"/api/sessions/{before['id']}")
            assert answer.status_code == 409
            assert error_of(answer)["given"] == "a session on A, where another scan is now"
        assert not client.service.sessions.open and client.service.sessions.memory.taken == 0
        (two / "a" / "ct.nii.gz").write_bytes(own)
        assert client.get(f"/api/sessions/{before['id']}").json()["objects"] == before["objects"]


def test_a_folder_that_is_not_served_any_more_is_no_way_to_another_scan(two, network, phantom):
    before = clicked(two, network, phantom)
    with running(settings_of(two, "b"), network) as client:  # folder 0 is another one now
        assert client.get(f"/api/sessions/{before['id']}").status_code == 409
    (two / "a").rename(two / "moved")
    with running(Settings(state=two / "state", folders=(two / "moved",)), network) as client:
        assert client.get(f"/api/sessions/{before['id']}").json()["objects"] == before["objects"]


def test_a_scan_that_is_opened_again_finds_its_work_wherever_it_lies_now(two, network, phantom):
    before = clicked(two, network, phantom)
    (two / "b" / "copy").mkdir()
    write_volume(read_volume(two / "a" / "ct.nii.gz"), two / "b" / "copy" / "other.nrrd")
    with running(settings_of(two, "b"), network) as client:
        (entry,) = opening(client, "copy/other.nrrd")["earlier"]
        assert (entry["id"], entry["name"]) == (before["id"], "A") and entry["saved"].endswith("+00:00")
        assert opening(client, "ct.nii.gz")["earlier"] == []


def opening(client, path):
    return client.post("/api/sessions", json={"source": {"folder": "0", "path": path}}).json()


def test_work_of_an_earlier_version_says_that_its_scan_is_not_known(two, network, phantom):
    (two / "state" / "works").mkdir(parents=True)
    step = {"do": "prompt", "object": 1, "prompts": point(phantom.click)["prompts"]}
    kept = {"format": 1, "id": "x" * 24, "name": "A", "model": "stub", "source": {"folder": "0", "path": "ct.nii.gz"}}
    kept |= {"script": {"steps": [step], "done": 1, "current": 1}, "revision": 1}
    (two / "state" / "works" / f"{'x' * 24}.json").write_text(json.dumps(kept))
    with running(settings_of(two), network) as client:
        state = client.get(f"/api/sessions/{'x' * 24}").json()
        assert UNKNOWN_SCAN in state["notes"] and state["revision"] == 1 and state["objects"][0]["volume_ml"] > 0
    with running(settings_of(two), network) as client:  # from now on it is
        assert client.get(f"/api/sessions/{'x' * 24}").json()["notes"] == []
        assert list(client.service.store.works.iterdir()) == [client.service.store.works / f"{'x' * 24}.jsonl"]
