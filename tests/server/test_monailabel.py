"""MONAI Label's protocol: its own client, and the requests of 3D Slicer's module, MITK's tool and OHIF's panel."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from email import message_from_bytes
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import write_dicom
from serving import error_of, running

from voxsam.interactive.predictor import Predictor
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.prompts import Point
from voxsam.protocols.monailabel.datastore import Image
from voxsam.server.settings import Settings
from voxsam.volume import Volume

CLIENT = os.environ.get("VOXSAM_MONAILABEL_CLIENT", "")  # the file monailabel/client/client.py of MONAI Label
ID = "0/ct.nii.gz"


@pytest.fixture(scope="module")
def expected(network, phantom) -> np.ndarray:
    """The mask of one click, by VoxSAM itself."""
    return own(network, phantom, phantom.click)


def own(network, phantom, click, *negative) -> np.ndarray:
    grid = phantom.scan.grid
    prompts = [Point.at_index(grid, click), *(Point.at_index(grid, place, positive=False) for place in negative)]
    return Predictor(network).set_image(phantom.scan).predict(prompts).mask.array


def parts_of(answer: httpx.Response) -> tuple[dict, str, bytes]:
    """The facts, the file's name and the file of a multipart answer, read by Python's own parser."""
    assert answer.status_code == 200, answer.text
    message = message_from_bytes(b"Content-Type: " + answer.headers["content-type"].encode() + b"\n\n" + answer.content)
    facts, image = message.get_payload()
    assert image.get_content_type() == "application/octet-stream"
    return json.loads(facts.get_payload()), image.get_filename(), image.get_payload(decode=True)


def placed(file: bytes, name: str, folder: Path) -> Volume:
    path = folder / name
    path.write_bytes(file)
    return read_volume(path, labels=True)


def infer(server: httpx.Client, image: str = ID, model: str = "stub", output: str = "", **params) -> httpx.Response:
    """Post a request as MONAILabelClient.infer and OHIF's panel do."""
    query = {"image": image} | ({"output": output} if output else {})
    return server.post(f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))})


# Masks


def test_slicer_gets_a_mask_where_the_click_was(server, phantom, expected, tmp_path):
    answer = infer(server, foreground=[list(phantom.click)], background=[], label="tumour", result_extension=".nrrd")
    facts, name, file = parts_of(answer)
    mask = placed(file, name, tmp_path)
    assert facts["label_names"] == {"tumour": 1} and name.endswith(".nrrd")
    np.testing.assert_array_equal(mask.array, expected)
    assert mask.grid.close_to(phantom.scan.grid)
    again = sitk.ReadImage(str(tmp_path / name))  # as the module reads it
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again).T, expected)


def test_negative_clicks_count_and_no_click_gives_an_empty_mask(server, network, phantom, expected, tmp_path):
    away = [2, 2, 2]
    answer = infer(server, foreground=[list(phantom.click)], background=[away])
    mask = placed(parts_of(answer)[2], "mask.nii.gz", tmp_path).array
    np.testing.assert_array_equal(mask, own(network, phantom, phantom.click, away))
    assert (mask != expected).any()
    for params in ({}, {"background": [away]}):
        assert not placed(parts_of(infer(server, **params))[2], "empty.nii.gz", tmp_path).array.any()


def test_a_region_limits_the_mask(server, phantom, expected, tmp_path):
    i, j, k = phantom.click
    roi = [i - 2, i + 2, j + 3, j - 3, k - 1, k + 1]  # Slicer's corners may come in either order
    mask = placed(parts_of(infer(server, foreground=[[i, j, k]], roi=roi))[2], "mask.nii.gz", tmp_path).array
    inside = np.zeros_like(mask)
    inside[i - 2 : i + 3, j - 3 : j + 4, k - 1 : k + 2] = 1
    assert mask.any() and not mask[inside == 0].any()
    np.testing.assert_array_equal(mask, expected * inside)


def test_what_mitk_sends_and_how_it_takes_the_answer_apart(server, phantom, expected, tmp_path):
    """Its tool sends the image with each click, and searches the answer for words (mitkMonaiLabelTool.cpp)."""
    write_volume(phantom.scan, tmp_path / "post_from_mitk.nii.gz")
    image = (tmp_path / "post_from_mitk.nii.gz").read_bytes()
    known = server.get("/info/").json()
    (model,) = (name for name, facts in known["models"].items() if facts["type"] == "deepgrow")
    assert isinstance(known["labels"], list) and isinstance(known["models"][model]["labels"], list)
    for _ in range(2):
        files = {
            "params": (None, json.dumps({"foreground": [list(phantom.click)], "background": []})),
            "file": ("post_from_mitk.nii.gz", image, "application/octet-stream"),
        }
        answer = server.post(f"/infer/{model}", files=files)
        boundary = b"--" + answer.headers["content-type"].partition("boundary=")[2].encode()
        _, facts, file, end = answer.content.split(boundary)
        assert json.loads(facts.partition(b"Content-Type: application/json")[2])["label_names"] == {"tumour": 1}
        packed = file.partition(b"Content-Type: application/octet-stream")[2].lstrip(b" \r\n")
        packed = packed.removesuffix(b"\r\n")
        mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
        assert end == b"--\r\n"
    opened = [session for session in server.service.sessions.open if isinstance(session, Image)]
    assert len(opened) == 1 and len(list(server.service.store.uploads.iterdir())) == 1  # the same image, read once


def test_ohif_asks_by_series_for_voxels_alone(network, phantom, tmp_path):
    uid = write_dicom(phantom.scan, tmp_path / "scans" / "patient" / "ct").SeriesInstanceUID
    scan = read_volume(tmp_path / "scans" / "patient" / "ct")
    lowest_first = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "scans/patient/ct")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(lowest_first).T, scan.array)  # the order that the panel has
    with running(Settings(state=tmp_path / "state", folders=(tmp_path / "scans",)), network) as server:
        options = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
        click = list(phantom.click)
        answer = infer(server, uid, output="image", foreground=[click], background=[], **options)
        assert answer.status_code == 200, answer.text
        head, _, voxels = answer.content.partition(b"\n\n")
        assert b"encoding: raw" in head and b"type: unsigned char" in head
        mask = np.frombuffer(voxels, np.uint8).reshape(scan.grid.shape, order="F")
        prediction = Predictor(network).set_image(scan).predict([Point.at_index(scan.grid, click)])
        np.testing.assert_array_equal(mask, prediction.mask.array)
        assert mask.any()

        segmentation = infer(server, uid, output="dicom_seg", foreground=[click], background=[])
        assert segmentation.status_code == 200 and segmentation.content[128:132] == b"DICM"
        (tmp_path / "mask.seg.dcm").write_bytes(segmentation.content)
        read = read_volume(tmp_path / "mask.seg.dcm", labels=True, scan=scan)
        np.testing.assert_array_equal(read.array, mask)
        assert infer(server, "1.2.3.4", foreground=[click]).status_code == 404
        assert error_of(infer(server, "0/nothing.nii.gz", foreground=[click]))["given"] == "a path that is not here"

        raw = mask.astype(np.uint16).tobytes(order="F")  # the panel's label.bin
        saved = server.put(
            "/datastore/label",
            params={"image": uid},
            files={"params": (None, "{}"), "label": ("label.bin", raw, "application/octet-stream")},
        )
        assert saved.status_code == 200, saved.text
        kept = server.get("/datastore/label", params={"label": uid, "tag": "final"})
        label = placed(kept.content, "kept.nii.gz", tmp_path)
        np.testing.assert_array_equal(label.array, mask)
        assert label.grid.close_to(scan.grid)


@pytest.mark.parametrize(
    "params, given",
    [
        ("{", "params: "),
        ('{"foreground": [[1, 2]]}', "foreground.0"),
        ('{"foreground": [[1, 2, 900]]}', "900"),
        ('{"result_extension": "/../../x.nii"}', "result_extension"),
        ('{"roi": [1, 2, 3, 4, 5, 6]}', "a region without a click"),
    ],
)
def test_params_that_mean_nothing_are_refused(server, params, given):
    answer = server.post("/infer/stub", params={"image": ID}, files={"params": (None, params)})
    assert answer.status_code == 400 and given in error_of(answer)["given"]


def test_unknown_models_and_missing_images_are_refused(server):
    assert infer(server, model="segmentation_spleen").status_code == 404
    assert "without an image" in error_of(infer(server, image=""))["given"]
    with_scribbles = {"params": (None, "{}"), "label": ("label.nii.gz", b"x")}
    answer = server.post("/infer/stub", params={"image": ID}, files=with_scribbles)
    assert answer.status_code == 400 and "scribbles" in answer.text


def test_a_full_server_closes_an_image_that_nobody_waits_for(network, scans, tmp_path, phantom):
    settings = Settings(state=tmp_path / "state", folders=(scans,), capacity=1)
    with running(settings, network) as server:
        for image in (ID, "0/other/Meier Hans.nrrd", ID):
            assert infer(server, image, foreground=[list(phantom.click)]).status_code == 200
        assert len(server.service.sessions.open) == 1
        server.service.sessions.release(server.service.sessions.open[0].id)
        assert server.post("/api/sessions", json={"source": {"demo": True}}).status_code == 201
        assert infer(server, foreground=[list(phantom.click)]).status_code == 503  # not at the cost of others


# The datastore


def test_the_datastore_lists_served_scans_and_gives_the_next_one_without_a_label(server, scans, phantom, tmp_path):
    listed = server.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert set(listed) == {ID, "0/other/Meier Hans.nrrd"}
    sample = server.post("/activelearning/first", json={}).json()
    assert sample["id"] == "0/other/Meier Hans.nrrd" and sample["name"] == "0_other_Meier_Hans.nrrd"
    image = server.get("/datastore/image", params={"image": sample["id"]}).content
    assert image == (scans / "other" / "Meier Hans.nrrd").read_bytes()

    write_mask(phantom.truth, tmp_path / "truth.nii.gz")
    label = (tmp_path / "truth.nii.gz").read_bytes()
    files = {"params": (None, '{"label_info": []}'), "label": ("x.nii.gz", label)}
    assert server.put("/datastore/label", params={"image": sample["id"]}, files=files).status_code == 200
    assert server.post("/activelearning/random", json={}).json()["id"] == ID
    assert server.get("/info/").json()["datastore"] == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    known = server.get("/datastore/", params={"output": "all"}).json()["objects"][sample["id"]]["labels"]
    assert known == {"final": {"info": {"params": {"label_info": []}}, "ext": ".nii.gz"}}
    assert server.get("/datastore/label", params={"label": sample["id"], "tag": "final"}).content == label
    assert server.head("/datastore/label", params={"label": ID, "tag": "final"}).status_code == 404
    assert server.post("/activelearning/tta", json={}).status_code == 404
    assert list(scans.rglob("*.json")) == []  # served folders are only read


def test_labels_that_are_none_are_refused_and_the_earlier_one_stays(server, phantom, tmp_path):
    write_mask(phantom.truth, tmp_path / "truth.nii.gz")
    good = (tmp_path / "truth.nii.gz").read_bytes()
    smaller = Volume(phantom.truth.array[1:], phantom.truth.grid.crop((1, 0, 0), (43, 36, 22)), "SEG")
    write_mask(smaller, tmp_path / "smaller.nii.gz")

    def save(name: str, content: bytes, tag: str = "final") -> httpx.Response:
        query = {"image": ID, "tag": tag}
        return server.put("/datastore/label", params=query, files={"label": (name, content)})

    assert save("truth.nii.gz", good).status_code == 200
    assert "43 x 36 x 22" in error_of(save("l.nii.gz", (tmp_path / "smaller.nii.gz").read_bytes()))["given"]
    for name, content in [("l.nii.gz", good[:200]), ("l.exe", good), ("l.bin", b"123"), ("l.nii.gz", b"")]:
        assert save(name, content).status_code == 400, name
    assert save("l.nii.gz", good, "../x").status_code == 400
    memory = server.service.sessions.memory
    with memory.take(0) as part:
        part.note(memory.limit - phantom.truth.array.size)  # whatever others still hold or give back
        assert save("l.nii.gz", good).status_code == save("l.bin", bytes(phantom.truth.array.size)).status_code == 503
    assert server.get("/datastore/label", params={"label": ID, "tag": "final"}).content == good
    assert not list(server.service.store.scratch.iterdir())


def test_sessions_end_with_their_image(server, scans, phantom):
    files = [("files", ("ct.nii.gz", (scans / "ct.nii.gz").read_bytes()))]
    session = server.put("/session/", files=files).json()["session_id"]
    assert server.get(f"/session/{session}").status_code == 200
    params = {"params": (None, json.dumps({"foreground": [list(phantom.click)]}))}
    query = {"image": "whatever", "session_id": session}
    assert server.post("/infer/stub", params=query, files=params).status_code == 200
    assert server.delete(f"/session/{session}").status_code == 200
    assert server.get(f"/session/{session}").status_code == 404
    assert server.post("/infer/stub", params=query, files=params).status_code == 404
    assert error_of(server.put("/session/", files={"other": b"1"}))["given"] == "a session without files"


def test_an_uploaded_image_is_known_by_its_id(server, scans, phantom, expected, tmp_path):
    files = {"params": (None, "{}"), "file": ("whatever.nii.gz", (scans / "ct.nii.gz").read_bytes())}
    assert server.put("/datastore/", params={"image": "MRHead"}, files=files).json() == {"image": "MRHead"}
    assert "MRHead" in server.get("/datastore/", params={"output": "all"}).json()["objects"]
    mask = placed(parts_of(infer(server, "MRHead", foreground=[list(phantom.click)]))[2], "m.nii.gz", tmp_path)
    np.testing.assert_array_equal(mask.array, expected)


def test_with_a_key_clients_log_in_by_it(network, scans, tmp_path):
    settings = Settings(state=tmp_path / "state", folders=(scans,), key="s3cret")  # type: ignore[arg-type]
    with running(settings, network) as server:
        assert server.get("/auth/").json() == {"enabled": True}
        assert server.get("/info/").status_code == server.get("/auth/token/valid").status_code == 401
        form = {"username": "doctor", "password": "wrong", "grant_type": "password"}
        assert server.post("/auth/token", data=form).status_code == 401
        token = server.post("/auth/token", data={**form, "password": "s3cret"}).json()
        headers = {"Authorization": f"{token['token_type']} {token['access_token']}"}
        assert server.get("/auth/token/valid", headers=headers).status_code == 200
        assert server.get("/info/", headers=headers).json()["models"]["stub"]["type"] == "deepgrow"


# The real client


@pytest.mark.skipif(not CLIENT, reason="VOXSAM_MONAILABEL_CLIENT names no file: monailabel/client/client.py")
def test_the_real_client_does_its_whole_round(server, scans, phantom, expected, tmp_path):
    spec = importlib.util.spec_from_file_location("monailabel_client", CLIENT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = module.MONAILabelClient(str(server.base_url), tmpdir=str(tmp_path), client_id="test")
    assert not client.auth_enabled()
    assert client.info()["models"]["stub"]["dimension"] == 3
    sample = client.next_sample("first", {})
    click = {"foreground": [list(phantom.click)], "background": [], "result_extension": ".nrrd"}
    session = client.create_session(str(scans / "ct.nii.gz"))["session_id"]
    assert client.get_session(session)
    for image, options in (
        (sample["id"], {}),
        ("", {"session_id": session}),
        ("", {"file": str(scans / "ct.nii.gz")}),
    ):
        file, facts = client.infer("stub", image, dict(click), **options)
        mask = read_volume(file, labels=True)
        np.testing.assert_array_equal(mask.array, expected)
        assert mask.grid.close_to(phantom.scan.grid) and facts["label_names"] == {"tumour": 1}
    assert client.save_label(sample["id"], file, params={"label_info": []})["image"] == sample["id"]
    assert client.datastore()["objects"][sample["id"]]["labels"]["final"]["ext"] == ".nrrd"
    assert Path(client.download_label(sample["id"], "final")).read_bytes() == Path(file).read_bytes()
    assert client.upload_image(str(scans / "ct.nii.gz"), "mine") == {"image": "mine"}
    client.remove_session(session)
    with pytest.raises(module.MONAILabelClientException):
        client.get_session(session)
    assert not client.train_status(check_if_running=True)
    with pytest.raises(module.MONAILabelClientException, match="a click|900"):
        client.infer("stub", sample["id"], {"foreground": [[1, 2, 900]]})
