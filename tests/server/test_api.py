"""The API over real HTTP: a client gets what a session of its own would give, and the work outlives the server."""

from __future__ import annotations

import gzip
import json
import logging
import threading

import httpx
import nibabel as nib
import numpy as np
import pytest
from serving import box_of, error_of, labels_of, opened, paste, point, post, running, wait_until

from voxsam.interactive.session import Session
from voxsam.io import read_volume
from voxsam.report.metrics import longest_axial_diameter, volume_ml
from voxsam.server.api.downloads import COARSE_BYTES, COARSE_SLICES, slice_order
from voxsam.server.observe import JsonLines
from voxsam.server.settings import Settings


def moved(phantom, *step):
    return tuple(np.add(phantom.click, step).tolist())


def test_every_answer_moves_the_mask_as_a_session_would(server, network, phantom, scans):
    volume = read_volume(scans / "ct.nii.gz")  # its affine has been float32
    session, mine, sid = Session(network, volume), np.zeros(phantom.scan.grid.shape, np.uint8), opened(server)
    steps = [
        ("prompts", point(phantom.click), lambda: session.click(phantom.click)),
        ("prompts", point(moved(phantom, 2, 0, 1), False), lambda: session.click(moved(phantom, 2, 0, 1), False)),
        ("undo", None, session.undo),
        ("redo", None, session.redo),
        ("objects", None, session.new_object),
        ("prompts", point(moved(phantom, 5, -3, 0)), lambda: session.click(moved(phantom, 5, -3, 0))),
        ("objects/1/select", None, lambda: session.select(1)),
        ("prompts", point(moved(phantom, -2, 1, 0)), lambda: session.click(moved(phantom, -2, 1, 0))),
        ("reset", None, session.reset),
        ("undo", None, session.undo),
    ]
    for revision, (action, body, do) in enumerate(steps, 1):
        answer = post(server, sid, action, body)
        do()
        paste(mine, answer)
        np.testing.assert_array_equal(mine, session.mask.array, err_msg=f"{revision} {action}")
        assert answer["revision"] == revision and answer["current"] == session.current
        assert [found["number"] for found in answer["objects"]] == list(session.objects)
        assert (answer["can_undo"], answer["can_redo"]) == (session.can_undo, session.can_redo)
    assert mine.any() and len(session.objects) == 2
    for found in answer["objects"]:
        part = session.mask.with_array((session.mask.array == found["number"]).astype(np.uint8))
        assert found["volume_ml"] == pytest.approx(volume_ml(part), abs=1e-3)
        assert found["longest_diameter_mm"] == pytest.approx(longest_axial_diameter(part).length_mm, abs=0.01)


def test_the_state_tells_the_scan_and_the_prompts(server, phantom):
    sid = opened(server)
    scribble = {"kind": "scribble", "voxels": [list(phantom.click)], "positive": True}
    box = {"kind": "box", "low": [5, 6, 7], "high": [30, 25, 17]}
    post(server, sid, "prompts", {"prompts": [*point(phantom.click)["prompts"], box, scribble]})
    state = server.get(f"/api/sessions/{sid}").json()
    assert (state["name"], state["modality"], state["dicom"]) == ("ct.nii.gz", "CT", False)
    assert state["shape"] == [44, 36, 22] and state["spacing_mm"] == pytest.approx([3, 3.5, 6], rel=1e-4)
    np.testing.assert_allclose(state["affine"], phantom.scan.grid.affine, atol=1e-4)
    click = {"kind": "point", "index": list(map(float, phantom.click)), "positive": True}
    assert state["objects"][0]["prompts"] == [click, box, {"kind": "scribble", "count": 1, "positive": True}]
    assert 0 < state["lease_s"] <= 60


def test_only_the_box_that_changed_travels_and_all_labels_when_asked(server, phantom):
    sid = opened(server)
    assert box_of(post(server, sid, "undo")) == (slice(0, 0),) * 3  # there was nothing to take back
    box = {"kind": "box", "low": [10, 12, 9], "high": [24, 27, 18]}  # the mask stays inside
    answer = post(server, sid, "prompts", {"prompts": [box]})
    assert labels_of(answer).any() and labels_of(answer).size <= 15 * 16 * 10
    full = server.get(f"/api/sessions/{sid}/labels?box=full").json()
    extent = server.get(f"/api/sessions/{sid}/labels").json()
    assert box_of(full) == tuple(slice(0, n) for n in answer["shape"])
    for given in (answer, extent):
        mask = np.zeros(answer["shape"], np.uint8)
        paste(mask, given)
        np.testing.assert_array_equal(mask, labels_of(full))


def test_downloads_lie_on_the_scan_and_hold_what_the_server_has(server, phantom, tmp_path):
    sid = opened(server)
    mask = labels_of(
        post(server, sid, "prompts", point(phantom.click)) and server.get(f"/api/sessions/{sid}/labels?box=full").json()
    )
    file = tmp_path / "mask.nii.gz"
    answer = server.get(f"/api/sessions/{sid}/download/mask.nii.gz")
    file.write_bytes(answer.content)
    got = read_volume(file, labels=True)
    np.testing.assert_array_equal(got.array, mask)
    assert got.grid.close_to(phantom.scan.grid) and 'filename="ct_mask.nii.gz"' in answer.headers["content-disposition"]
    report = server.get(f"/api/sessions/{sid}/download/report.json").json()
    assert report["scan"]["shape"] == [44, 36, 22] and report["clicks"][0]["index"] == list(phantom.click)
    assert report["objects"][0]["voxels"] == (mask == 1).sum()
    error = error_of(server.get(f"/api/sessions/{sid}/download/mask.seg.dcm"))
    assert error["given"] == "DICOM-SEG of a scan that is not DICOM"
    wait_until(lambda: not list(server.service.store.scratch.iterdir()))


@pytest.mark.slow
def test_the_report_is_a_page_with_a_picture(server, phantom):
    sid = opened(server)
    post(server, sid, "prompts", point(phantom.click))
    page = server.get(f"/api/sessions/{sid}/download/report.html")
    assert page.headers["content-type"].startswith("text/html") and "data:image/png;base64" in page.text
    wait_until(lambda: not list(server.service.store.scratch.iterdir()))


def test_the_scan_comes_with_one_affine_and_nothing_of_its_header(server, phantom, tmp_path):
    content = server.get(f"/api/sessions/{opened(server)}/scan").content
    (tmp_path / "scan.nii.gz").write_bytes(content)
    image = nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), phantom.scan.array)
    assert image.get_data_dtype() == np.int16 and gzip.decompress(content)[:4] == (348).to_bytes(4, "little")
    for affine in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose(affine, phantom.scan.grid.affine, atol=1e-3)


def test_voxels_come_slice_by_slice_and_are_gone_on_with(server, phantom):
    sid, array = opened(server), phantom.scan.array
    answer = server.get(f"/api/sessions/{sid}/voxels")
    assert answer.headers["x-voxel-type"] == "int16"
    assert answer.headers["x-coarse-slices"] == "22"  # a small scan comes at once
    nbytes = int(answer.headers["x-slice-bytes"])
    assert nbytes == 44 * 36 * 2 and len(answer.content) == int(answer.headers["content-length"]) == 22 * (4 + nbytes)

    def taken(content):
        for at in range(0, len(content), 4 + nbytes):
            voxels = np.frombuffer(content, "<i2", offset=at + 4, count=44 * 36)
            yield int.from_bytes(content[at : at + 4], "little"), voxels.reshape(44, 36, order="F")

    seen = dict(taken(answer.content))
    np.testing.assert_array_equal(np.stack([seen[k] for k in range(22)], axis=2), array)
    rest = server.get(f"/api/sessions/{sid}/voxels?from=20").content
    assert [k for k, _ in taken(rest)] == list(seen)[20:]
    assert server.get(f"/api/sessions/{sid}/voxels?from=99").content == b""
    assert server.get(f"/api/sessions/{sid}/voxels?from=-1").status_code == 422


@pytest.mark.parametrize("count, nbytes", [(1, 1 << 30), (22, 3168), (600, 1 << 19), (1201, 1 << 20), (95, 1 << 22)])
def test_slices_come_coarse_first_each_once(count, nbytes):
    first, order = slice_order(count, nbytes)
    assert sorted(order) == list(range(count))
    assert first == count or first >= COARSE_SLICES
    steps = np.diff(order[:first])
    assert (steps == steps[:1]).all() and (first == count or order[first - 1] + steps[0] >= count)  # spread over all
    assert count * nbytes <= COARSE_BYTES or first < count or count < 2 * COARSE_SLICES
    # A slice that is missing is never further than one step from one that is there.
    for here in range(first, count, 50):
        assert np.diff(np.sort(order[:here])).max() <= steps[0]


def test_an_upload_is_opened_under_its_own_name_and_goes_with_the_session(server, scans, phantom):
    content = (scans / "ct.nii.gz").read_bytes()
    sent = server.post("/api/uploads?name=a/b Meier.nii.gz", content=content).json()
    assert sent["files"] == 1 and sent["bytes"] == len(content)
    state = server.post("/api/sessions", json={"source": {"upload": sent["upload"]}}).json()
    assert state["name"] == "a_b_Meier.nii.gz" and state["shape"] == [44, 36, 22]
    assert labels_of(post(server, state["id"], "prompts", point(phantom.click))).any()
    assert server.delete(f"/api/sessions/{state['id']}").status_code == 204
    assert not list(server.service.store.uploads.iterdir()) and not list(server.service.store.works.iterdir())
    for path in ("", "/labels", "/events"):
        assert error_of(server.get(f"/api/sessions/{state['id']}{path}"))["given"] == "a session that is not here"
    assert server.delete(f"/api/sessions/{state['id']}").status_code == 404


def test_a_file_that_is_no_scan_is_refused_by_its_own_name_and_takes_no_place(server):
    sent = server.post("/api/uploads?name=report.nii.gz", content=b"no scan").json()
    answer = server.post("/api/sessions", json={"source": {"upload": sent["upload"]}})
    assert answer.status_code == 400 and error_of(answer)["given"].startswith("report.nii.gz")
    assert not server.service.sessions.open


def test_files_are_listed_and_opened_from_served_folders_only(server):
    names = [(e["name"], e["kind"]) for e in server.get("/api/files?folder=0").json()["entries"]]
    assert names == [("other", "folder"), ("ct.nii.gz", "scan")]
    assert server.get("/api/files?folder=0&path=other").json()["entries"][0]["path"] == "other/Meier Hans.nrrd"
    for path in ("../x.nii.gz", "/etc/passwd"):
        answer = server.post("/api/sessions", json={"source": {"folder": "0", "path": path}})
        assert answer.status_code == 403 and "outside the served folders" in error_of(answer)["given"]


def test_a_server_that_is_started_again_brings_the_work_back(tmp_path, network, scans, phantom):
    settings = Settings(state=tmp_path, folders=(scans,))
    with running(settings, network) as client:
        sid = opened(client)
        post(client, sid, "prompts", point(phantom.click))
        post(client, sid, "objects")
        post(client, sid, "prompts", point(moved(phantom, 4, 0, 0)))
        post(client, sid, "undo")
        before = client.get(f"/api/sessions/{sid}/labels").json()
    with running(settings, network) as client:
        with client.stream("GET", f"/api/sessions/{sid}/events") as events:  # answers before the steps are played again
            assert events.status_code == 200
            assert next(events.iter_lines()).startswith("event: ")
        after = client.get(f"/api/sessions/{sid}/labels").json()
        assert {key for key in before if before[key] != after[key]} <= {"lease_s"}
        redone = post(client, sid, "redo")
        assert [len(found["prompts"]) for found in redone["objects"]] == [1, 1]


def test_a_work_whose_scan_is_gone_says_so_and_stays_saved(tmp_path, network, scans, phantom):
    copy = tmp_path / "in"
    copy.mkdir()
    (copy / "ct.nii.gz").write_bytes((scans / "ct.nii.gz").read_bytes())
    settings = Settings(state=tmp_path / "state", folders=(copy,))
    with running(settings, network) as client:
        sid = opened(client)
    content = (copy / "ct.nii.gz").read_bytes()
    (copy / "ct.nii.gz").unlink()
    with running(settings, network) as client:
        for _ in range(2):
            assert error_of(client.get(f"/api/sessions/{sid}"))["given"] == "a path that is not here"
        assert not client.service.sessions.open
        (copy / "ct.nii.gz").write_bytes(content)
        assert client.get(f"/api/sessions/{sid}").status_code == 200


def test_another_model_than_before_is_reported(tmp_path, network, scans, phantom):
    from voxsam.testing import stub_network

    settings = Settings(state=tmp_path, folders=(scans,))
    with running(settings, network) as client:
        sid = opened(client)
        post(client, sid, "prompts", point(phantom.click))
    with running(settings, stub_network(name="other")) as client:
        notes = client.get(f"/api/sessions/{sid}").json()["notes"]
        assert notes == ["made with the model stub, computed again with other"]


def test_a_session_that_timed_out_comes_back_when_asked_for(tmp_path, network, scans, phantom):
    with running(Settings(state=tmp_path, folders=(scans,), alive_s=0.4, capacity=1), network) as client:
        sid = opened(client)
        before = post(client, sid, "prompts", point(phantom.click))
        with client.stream("GET", f"/api/sessions/{sid}/events") as events:
            lines = events.iter_lines()
            beats = 0
            while beats < 5:  # who listens is alive, for longer than alive_s
                beats += next(lines).startswith(":")
            assert client.service.sessions.open
            full = client.post("/api/sessions", json={"source": {"folder": "0", "path": "ct.nii.gz"}})
            assert full.status_code == 503 and error_of(full)["expected"] == "a free place"
        wait_until(lambda: not client.service.sessions.open, 5)
        assert client.get(f"/api/sessions/{sid}").json()["objects"] == before["objects"]


def test_events_tell_how_far_the_encoder_is(server, phantom):
    sid = opened(server)
    with server.stream("GET", f"/api/sessions/{sid}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        click = threading.Thread(target=post, args=(server, sid, "prompts", point(phantom.click)))
        lines, seen = stream.iter_lines(), []
        assert next(lines) == "event: idle"
        click.start()
        for line in lines:
            if line.startswith("data: ") and line != "data: {}":
                seen.append(json.loads(line[6:]))
            if any("stage" in event for event in seen) and line == "event: idle":
                break
        click.join()
    fractions = [event["fraction"] for event in seen if event.get("stage") == "encoding"]
    assert fractions == sorted(fractions[: len(fractions)]) or len(fractions) > 3  # several crops each begin at 0
    assert 0.0 in fractions and 1.0 in fractions


def test_the_log_and_the_metrics_hold_no_names(server, scans, phantom):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))
    log = logging.getLogger("voxsam.server")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        sid = opened(server, {"folder": "0", "path": "other/Meier Hans.nrrd"})
        post(server, sid, "prompts", point(phantom.click))
        server.get("/api/files?folder=0&path=other/Meier Hans.nrrd")
        server.get("/api/Meier")
        wait_until(lambda: len(lines) >= 4)
    finally:
        log.removeHandler(handler)
    facts = [json.loads(line) for line in lines]
    assert facts[1]["route"] == "/api/sessions/{id}/prompts" and facts[1]["status"] == 200 and facts[1]["out"] > 100
    metrics = server.get("/metrics").text
    assert 'voxsam_step_seconds_count{step="prompt"} 1.0' in metrics and "voxsam_sessions 1.0" in metrics
    for name in ("Meier", "ct.nii", sid, str(scans)):
        assert name not in "".join(lines) + metrics


@pytest.mark.parametrize(
    ("logger", "event"), [("voxsam.weights", "decoder: seconds 0.5"), ("uvicorn.error", "%s: seconds %s")]
)
def test_the_log_tells_what_the_warm_up_chose_and_nothing_a_client_sent(logger, event):
    record = logging.LogRecord(logger, logging.INFO, "", 0, "%s: seconds %s", ("decoder", 0.5), None)
    assert json.loads(JsonLines().format(record))["event"] == event
    error = RuntimeError("a secret of a client's")
    record.exc_info = (RuntimeError, error, None)
    assert ("RuntimeError: a secret" in JsonLines().format(record)) == (logger == "voxsam.weights")


def test_every_route_is_described(server):
    described = server.get("/openapi.json").json()
    assert len(described["paths"]) > 15
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route.get("summary"), f"{method} {path}"
    prompt = described["components"]["schemas"]["PointPrompt"]["properties"]["index"]
    assert prompt["description"] and prompt["examples"]


def test_an_error_inside_is_reported_without_its_inside(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("/home/Meier/scan.nii.gz")

    monkeypatch.setattr(server.service.folders, "entries", broken)
    answer = server.get("/api/files?folder=0")
    assert answer.status_code == 500 and "Meier" not in answer.text
    assert error_of(answer)["given"] == "an internal error"


def test_two_requests_of_one_session_are_serial(server, phantom):
    sid = opened(server)
    answers = []

    def click(n: int) -> None:
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            answers.append(post(client, sid, "prompts", point(moved(phantom, n, 0, 0))))

    threads = [threading.Thread(target=click, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["revision"] for answer in answers) == [1, 2, 3, 4, 5]
    assert sorted(len(answer["objects"][0]["prompts"]) for answer in answers) == [1, 2, 3, 4, 5]
