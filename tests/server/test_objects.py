"""Objects and edits over HTTP: each is a step that outlives the server, and downloads hold them all."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_dicom
from serving import error_of, labels_of, opened, paste, point, post, running

from voxsam.io import write_mask
from voxsam.server.edits import Description, KeptMask
from voxsam.server.messages import DemoSource
from voxsam.server.saved import OTHER_MASKS
from voxsam.server.settings import Settings
from voxsam.server.store import Event, Work, compact


def ball(index, radius_mm=14.0, **more):
    return {"edits": [{"kind": "brush", "stroke": [list(map(int, index))], "radius_mm": radius_mm, **more}]}


def patch(client, session, path, body):
    answer = client.patch(f"/api/sessions/{session}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def whole(client, session):
    return labels_of(client.get(f"/api/sessions/{session}/labels?box=full").json())


def test_an_object_is_the_same_before_and_after_the_next_one_and_all_comes_back(tmp_path, network, scans, phantom):
    settings = Settings(state=tmp_path / "state", folders=(scans,))
    with running(settings, network) as client:
        sid, mine = opened(client), np.zeros(phantom.scan.grid.shape, np.uint8)
        steps = [
            ("edits", ball(phantom.click)),
            ("objects", None),
            ("prompts", point(phantom.click)),
            ("edits", ball(np.add(phantom.click, (6, 0, 0)), 9.0)),
            ("undo", None),
            ("redo", None),
        ]
        paste(mine, post(client, sid, *steps[0]))
        first = mine == 1
        for action, body in steps[1:]:
            answer = post(client, sid, action, body)
            paste(mine, answer)
            np.testing.assert_array_equal(mine == 1, first)
        assert first.any() and (mine == 2).any() and answer["revision"] == 6
        one, _ = answer["objects"]
        assert one["edited"] and one["locked"] and one["visible"] and not answer["overlap"] and answer["keep_clicked"]
        assert one["longest"]["mm"] == pytest.approx(28, abs=6) and len(one["longest"]["ends"]) == 2
        assert 0 < one["perpendicular"]["mm"] <= one["longest"]["mm"] == one["longest_diameter_mm"]
        kind = {"value": "59441001", "scheme": "SCT", "meaning": "Lymph Node"}
        patch(client, sid, "/objects/2", {"name": "node", "colour": "#0102Ff", "visible": False, "type": kind})
        answer = patch(client, sid, "/objects/2", {"locked": False})
        assert (answer["objects"][1]["name"], answer["objects"][1]["colour"]) == ("node", "#0102ff")
        assert answer["objects"][1]["type"] == kind and not answer["objects"][1]["locked"]
        assert not post(client, sid, "undo")["objects"][1]["visible"], "to name and to hide are no steps"
        before = client.get(f"/api/sessions/{sid}").json()
    with running(settings, network) as client:
        after = client.get(f"/api/sessions/{sid}").json()
        assert after["objects"] == before["objects"] and after["revision"] == before["revision"]
        assert after["can_redo"] and after["notes"] == []
        np.testing.assert_array_equal(whole(client, sid), mine)
        deleted = client.delete(f"/api/sessions/{sid}/objects/2").json()
        assert [found["number"] for found in deleted["objects"]] == [1] and deleted["current"] == 1
        assert post(client, sid, "undo")["objects"] == before["objects"]
        answer = client.delete(f"/api/sessions/{sid}/objects/2/prompts/0").json()
        assert answer["objects"][1]["prompts"] == []
        paste(mine, answer)
        np.testing.assert_array_equal(mine == 1, first)
        assert client.delete(f"/api/sessions/{sid}/objects/2/prompts/0").status_code == 400
        assert client.patch(f"/api/sessions/{sid}/objects/9", json={"name": "x"}).status_code == 400


def test_objects_that_overlap_are_downloaded_in_what_can_hold_them(server, phantom):
    sid = opened(server)
    answer = patch(server, sid, "", {"overlap": True, "keep_clicked": False})
    assert answer["overlap"] and not answer["keep_clicked"] and answer["revision"] == 2
    post(server, sid, "edits", ball(phantom.click))
    post(server, sid, "objects")
    post(server, sid, "edits", ball(phantom.click, 8.0))
    patch(server, sid, "/objects/1", {"name": "Tumour: a/b"})
    error = error_of(server.get(f"/api/sessions/{sid}/download/mask.nii.gz"))
    assert error["given"] == "a label map of objects that share voxels"
    archive = zipfile.ZipFile(io.BytesIO(server.get(f"/api/sessions/{sid}/download/masks").content))
    assert archive.namelist() == ["1_Tumour__a_b.nii.gz", "2_Tumour_2.nii.gz"]
    counts = []
    for name in archive.namelist():
        image = nib.Nifti1Image.from_bytes(gzip.decompress(archive.read(name)))
        np.testing.assert_allclose(image.affine, phantom.scan.grid.affine, atol=1e-3)
        counts.append(int((np.asanyarray(image.dataobj) == 1).sum()))
    report = server.get(f"/api/sessions/{sid}/download/report.json").json()
    assert counts == [found["voxels"] for found in report["objects"]] and counts[0] > counts[1] > 0
    assert report["objects"][0]["edited"] and report["objects"][0]["name"] == "Tumour: a/b" and report["date"]
    assert report["seconds"]["all steps"] > 0
    stl = server.get(f"/api/sessions/{sid}/download/stl")
    assert stl.text.count("\nendsolid ") == 2 and stl.text.startswith("solid Tumour:_a/b SPACE=LPS\n")
    assert 'filename="ct_surface.stl"' in stl.headers["content-disposition"]
    assert (
        error_of(server.get(f"/api/sessions/{sid}/download/rtstruct"))["given"]
        == "RTSTRUCT of a scan that is not DICOM"
    )


def test_a_mask_with_its_measures_is_a_segmentation_and_a_report_that_refers_to_it(tmp_path, network, phantom):
    hd = pytest.importorskip("highdicom")
    write_dicom(phantom.scan, tmp_path / "scans" / "ct")
    with running(Settings(state=tmp_path / "state", folders=(tmp_path / "scans",)), network) as client:
        sid = opened(client, {"folder": "0", "path": "ct"})
        post(client, sid, "edits", ball(phantom.click))
        answer = client.get(f"/api/sessions/{sid}/download/sr")
        (found,) = client.get(f"/api/sessions/{sid}/download/report.json").json()["objects"]
    assert 'filename="ct_seg_and_sr.zip"' in answer.headers["content-disposition"]
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["mask.seg.dcm", "measurements.sr.dcm"]
    archive.extractall(tmp_path)
    groups = hd.sr.srread(tmp_path / "measurements.sr.dcm").content.get_volumetric_roi_measurement_groups()
    segmentation = hd.seg.segread(tmp_path / "mask.seg.dcm")
    assert groups[0].referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
    assert groups[0].get_measurements()[0].value == pytest.approx(found["volume_ml"], abs=1e-5)


def test_a_mask_is_loaded_refined_and_there_again_when_its_file_is_gone(tmp_path, network, scans, phantom):
    settings = Settings(state=tmp_path / "state", folders=(scans,))
    labels = phantom.truth.with_array((phantom.truth.array * 4).astype(np.uint8))
    labels.array[1:3, 2:5, 3:6] = 9
    write_mask(labels, tmp_path / "mask.nii.gz")
    with running(settings, network) as client:
        sid = opened(client)
        sent = client.post("/api/uploads?name=m.nii.gz", content=(tmp_path / "mask.nii.gz").read_bytes()).json()[
            "upload"
        ]
        answer = post(client, sid, "mask", {"source": {"upload": sent}})
        assert [found["number"] for found in answer["objects"]] == [1, 2] and answer["current"] == 1
        wanted = (phantom.truth.array > 0) + 2 * (labels.array == 9)
        np.testing.assert_array_equal(whole(client, sid), wanted)
        answer = post(client, sid, "prompts", point(phantom.click))
        assert [prompt["kind"] for prompt in answer["objects"][0]["prompts"]] == ["hint", "point"]
        last = whole(client, sid)
        assert ((last == 1) >= (wanted == 1)).all(), "what was loaded stays"
        assert client.post(f"/api/sessions/{sid}/mask", json={"source": {"demo": True}}).status_code == 404
        answer = client.post(f"/api/sessions/{sid}/mask", json={"source": {"folder": "0", "path": "ct.nii.gz"}})
        assert answer.status_code == 400
    with running(settings, network) as client:
        np.testing.assert_array_equal(whole(client, sid), last)


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "brush", "stroke": [], "radius_mm": 3},
        {"kind": "brush", "stroke": [[1, 2, 3]], "radius_mm": 0},
        {"kind": "brush", "stroke": [[1, 2, 3]], "radius_mm": 3, "axis": 3},
        {"kind": "lasso", "polygon": [[1, 2, 3], [4, 5, 3]], "axis": 2},
        {"kind": "smooth", "sd_mm": -1},
        {"kind": "component", "index": [1, 2, 3]},
        {"kind": "paint"},
    ],
)
def test_edits_of_another_form_are_refused(server, edit):
    sid = opened(server)
    answer = server.post(f"/api/sessions/{sid}/edits", json={"edits": [edit]})
    assert answer.status_code == 422 and error_of(answer)["given"].startswith("body.edits.0")


def test_a_brush_beyond_reason_is_refused_before_it_is_drawn(server, phantom, monkeypatch):
    from voxsam.server import edits

    monkeypatch.setattr(edits, "MAX_BRUSH_VOXELS", 1000)
    sid = opened(server)
    assert error_of(server.post(f"/api/sessions/{sid}/edits", json=ball(phantom.click, 150)))["given"].startswith(
        "strokes"
    )
    answer = post(server, sid, "edits", ball(phantom.click, 5))
    assert answer["objects"][0]["volume_ml"] > 0


def test_an_edit_that_changes_nothing_is_no_step(server):
    sid = opened(server)
    answer = post(server, sid, "edits", {"edits": [{"kind": "fill"}]})
    assert answer["revision"] == 0 and not answer["can_undo"]


def test_the_client_may_name_a_session_and_stop_it_while_it_is_read(server, scans, monkeypatch):
    taken = {"source": {"folder": "0", "path": "ct.nii.gz"}, "id": "x" * 20}
    assert server.post("/api/sessions", json=taken).json()["id"] == "x" * 20
    assert server.post("/api/sessions", json=taken).status_code == 409
    read = server.service.saved.reader.read

    def stopped(source, reading):
        assert server.service.saved.cancel("y" * 20) is None and reading.stop.is_set()
        return read(source, reading)

    monkeypatch.setattr(server.service.saved.reader, "read", stopped)
    answer = server.post("/api/sessions", json={**taken, "id": "y" * 20})
    assert answer.status_code == 410 and error_of(answer)["given"] == "a session that was closed"
    assert [session.id for session in server.service.sessions.open] == ["x" * 20]
    assert server.post(f"/api/sessions/{'z' * 20}/cancel").status_code == 404


# The journal


def test_only_the_last_description_of_an_object_is_kept_and_a_new_object_of_its_number_has_none():
    def said(number, **what):
        return Event(do="describe", number=number, description=Description(**what))

    events = [
        Event(do="edit"), said(1, name="a"), said(1, colour="#000000"), said(1, name="b"),
        Event(do="new_object", current=2), said(2, name="c"), Event(do="delete", number=2),
        Event(do="new_object", current=2), Event(do="undo"), Event(do="edit", current=1, revision=9),
    ]  # fmt: skip
    kept = compact(events)
    assert [event.do for event in kept] == ["edit", "new_object", "delete", "edit", "describe", "select"]
    assert kept[-2].description == Description(name="b", colour="#000000")


def test_a_work_of_format_2_says_that_its_masks_are_made_otherwise_now(tmp_path, network, scans, phantom):
    settings = Settings(state=tmp_path / "state", folders=(scans,))
    with running(settings, network) as client:
        sid = opened(client)
        post(client, sid, "prompts", point(phantom.click))
        file = client.service.store.works / f"{sid}.jsonl"
    work = json.loads(file.read_text().splitlines()[0])
    step = {"do": "prompt", "object": 1, "current": 1, "revision": 1, **point(phantom.click)}
    file.write_text(json.dumps({**work, "format": 2}) + "\n" + json.dumps(step) + "\n")
    for notes in ([OTHER_MASKS], []):
        with running(settings, network) as client:
            state = client.get(f"/api/sessions/{sid}").json()
            assert state["notes"] == notes and state["revision"] == 1 and state["objects"][0]["volume_ml"] > 0
    assert Work(id="a", name="b", model="c", source=DemoSource(demo=True)).format == 3


def test_a_loaded_mask_goes_through_the_journal():
    from voxsam.region import Region

    array = np.zeros((9, 8, 7), np.uint8)
    array[2:5, 3, 1:6:2] = 1
    kept = KeptMask.of("a\\b", Region.of(array), ("odd",))
    again = KeptMask.model_validate_json(kept.model_dump_json())
    assert (again.name, again.notes, again.region.box) == ("", ("odd",), Region.of(array).box)
    np.testing.assert_array_equal(again.region.within((slice(0, 9), slice(0, 8), slice(0, 7))), array > 0)
