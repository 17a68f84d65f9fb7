"""The desk when things go wrong around it: leaving in the middle of a step, a full disk, files still coming."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from serving import error_of, opened, point, post, running, wait_until

from voxsam.errors import FileError
from voxsam.server import uploads
from voxsam.server.archive import Archive
from voxsam.server.desk import NOT_SAVED, sitting_of
from voxsam.server.settings import Settings


@pytest.mark.parametrize("moment", ["on the device", "while it is saved"])
def test_a_session_that_is_left_in_the_middle_of_a_step_does_not_come_back(server, phantom, monkeypatch, moment):
    sid, service = opened(server), server.service
    slot = service.store.get(sid)
    begun, go_on = threading.Event(), threading.Event()

    def wait_then(act):
        def work(*arguments):
            begun.set()
            assert go_on.wait(20)
            return act(*arguments)

        return work

    if moment == "on the device":
        session = slot.session
        monkeypatch.setattr(session, "prompt", wait_then(session.prompt))
    else:
        monkeypatch.setattr(service.archive, "save", wait_then(service.archive.save))
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=server.base_url, timeout=60) as other:
        step = pool.submit(server.post, f"/api/sessions/{sid}/prompts", json=point(phantom.click))
        assert begun.wait(20)
        leaving = pool.submit(other.delete, f"/api/sessions/{sid}")
        if moment == "on the device":
            assert leaving.result(20).status_code == 204
        else:
            wait_until(lambda: sitting_of(slot).left)
        go_on.set()
        assert step.result(20).status_code in ([410] if moment == "on the device" else [200, 410])
        assert leaving.result(20).status_code == 204
    assert not list(service.archive.works.iterdir())
    assert server.get(f"/api/sessions/{sid}").status_code == 404


def test_a_lease_of_the_other_protocol_is_not_ended_by_the_page(server):
    lease = server.post("/claim").json()["lease_token"]
    assert server.delete(f"/api/sessions/{lease}").status_code == 404
    assert server.post("/heartbeat", headers={"x-lease-token": lease}).status_code == 200


def test_a_disk_that_is_full_loses_no_step_and_is_told(server, phantom, monkeypatch):
    def full(self, work):
        raise FileError("/secret/place could not be written (No space left on device)", "room", "make some")

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "save", full)
        sid = opened(server)
        answer = post(server, sid, "prompts", point(phantom.click))
        assert answer["notes"] == [NOT_SAVED]
        assert answer["objects"][0]["volume_ml"] > 0
        assert "secret" not in str(answer)
    assert post(server, sid, "undo")["notes"] == []


def test_an_upload_stops_before_the_disk_is_full(server, monkeypatch):
    room = iter([uploads.SPARE_BYTES + (2 << 20), uploads.SPARE_BYTES + (1 << 10)])
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(room)))
    answer = server.post("/api/uploads?name=a.nii", content=bytes(3 << 20))
    assert answer.status_code == 503
    assert "beyond the free disk space" in error_of(answer)["given"]
    assert not list(server.service.archive.uploads.iterdir())


def test_a_file_that_is_still_coming_is_no_part_of_an_upload(server, scans):
    sent = server.post("/api/uploads?name=ct.nii.gz", content=(scans / "ct.nii.gz").read_bytes()).json()["upload"]
    shutil.copy(scans / "ct.nii.gz", server.service.archive.upload_folder(sent) / ".0123-more.nii.gz")
    assert opened(server, {"upload": sent})


def test_a_failure_of_the_sweeper_does_not_stop_it(tmp_path, network, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Archive, "tidy", fail)
    with running(Settings(state=tmp_path / "state", alive_s=0.4), network) as client:
        assert client.post("/claim").status_code == 200
        wait_until(lambda: client.service.store.expired == 1)
    assert not client.service.device._open  # closed at the end, too
