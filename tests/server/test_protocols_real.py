"""The MONAI Label, nnInteractive and ITK-SNAP protocols on real scans: each mask equals Python's, voxel by voxel."""

from __future__ import annotations

import json
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as RemoteSession
from serving import running
from test_itksnap import mask_of, sent

import voxsam
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Predictor
from voxsam.io import read_volume, write_volume
from voxsam.prompts import Point
from voxsam.server.settings import Settings
from voxsam.volume import Volume

# An oblique MR of 3.6 mm slices, and a CT of 3.27 mm slices; a voxel inside the lesion of each.
SCANS = {"oblique MR": "dicom/prostate_adc_and_seg", "CT": "sarcoma_ct/imagesTr/STS_003_0000.nii.gz"}


@pytest.fixture(scope="module")
def model():
    return voxsam.load_model("voxsam-tiny")


@pytest.fixture(scope="module", params=SCANS)
def case(request, shared_data, tmp_path_factory):
    """A scan, a click in its lesion, and the folder where it lies as ct.nii.gz."""
    scan = read_volume(shared_data / SCANS[request.param])
    if request.param == "CT":
        label = read_volume(shared_data / "sarcoma_ct" / "labelsTr" / "STS_003.nii.gz", labels=True)
    else:
        label = read_volume(shared_data / SCANS[request.param] / "seg" / "1-1.dcm", labels=True, scan=scan, segment=3)
    inside = np.argwhere(label.array)
    click = tuple(inside[np.linalg.norm(inside - inside.mean(0), axis=1).argmin()].tolist())
    folder = tmp_path_factory.mktemp("scans")
    write_volume(scan, folder / "ct.nii.gz")
    return read_volume(folder / "ct.nii.gz"), click, folder


@pytest.mark.slow
def test_each_protocol_gives_pythons_mask(model, case, tmp_path):
    scan, click, folder = case
    spacing = tuple(float(mm) for mm in scan.grid.spacing_mm)
    settings = Settings(state=tmp_path / "state", folders=(folder,), spacing_mm=spacing, alive_s=600)
    with running(settings, model) as server:
        asked = {"params": (None, json.dumps({"foreground": [click], "background": []}))}
        answer = server.post("/infer/voxsam-tiny", params={"image": "0/ct.nii.gz"}, files=asked, timeout=600)
        monai = _file_of(answer, tmp_path)

        with RemoteSession(str(server.base_url).rstrip("/"), read_timeout=600.0) as client:
            client.set_image(scan.array[None], {"affine": scan.grid.affine.tolist()})
            client.set_target_buffer(np.zeros(scan.grid.shape, np.uint8))
            client.add_point_interaction(click, include_interaction=True)
            buffer = client.target_buffer.copy()

        name = server.get("/start_session").json()["session_id"]
        assert server.post(f"/upload_raw/{name}", files=sent(scan.array), timeout=600).status_code == 200
        query = dict(zip("xyz", click, strict=True)) | {"foreground": True}
        snap = mask_of(server.get(f"/process_point_interaction/{name}", params=query, timeout=600), scan.grid.shape)

    predicted = Predictor(model).set_image(scan).predict([Point.at_index(scan.grid, click)]).mask.array
    np.testing.assert_array_equal(monai.array, predicted)
    assert monai.grid.close_to(scan.grid) and monai.array[click] == 1
    own = voxsam.Session(model, scan, keep_clicked=False).click(click).array
    np.testing.assert_array_equal(buffer, own)
    # ITK-SNAP sends no axes: x is taken to grow to the left, y to the back, z up.
    laid = Volume(scan.array, Grid.from_spacing(scan.grid.shape, spacing, axes="LPS"), scan.modality)
    np.testing.assert_array_equal(snap, voxsam.Session(model, laid, keep_clicked=False).click(click).array)
    assert buffer[click] == snap[click] == 1


def _file_of(answer, folder: Path) -> Volume:
    """The mask of MONAI Label's answer."""
    assert answer.status_code == 200, answer.text
    message = message_from_bytes(b"Content-Type: " + answer.headers["content-type"].encode() + b"\n\n" + answer.content)
    (folder / "mask.nii.gz").write_bytes(message.get_payload()[1].get_payload(decode=True))
    return read_volume(folder / "mask.nii.gz", labels=True)
