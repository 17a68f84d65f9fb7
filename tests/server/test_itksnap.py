"""ITK-SNAP's protocol: the requests of its deep learning extension, and where a known voxel ends up."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
from known_model import FAR, KnownModel
from serving import error_of, running

from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.server.settings import Settings
from voxsam.volume import Volume

SHAPE = (43, 31, 22)  # x, y, z
BLOCK = (slice(33, 38), slice(20, 23), slice(3, 7))
SPACING_MM = (1.5, 1.5, 3.0)


def sent(array: np.ndarray) -> dict:
    """Voxels as ITK-SNAP posts them."""
    metadata = json.dumps({"dimensions": list(array.shape), "components_per_pixel": 1})
    voxels = gzip.compress(array.astype("<f4").T.tobytes())
    return {"file": ("image.gz", voxels, "application/octet-stream"), "metadata": (None, metadata)}


def mask_of(answer, shape=SHAPE) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    voxels = gzip.decompress(base64.b64decode(answer.json()["result"]))
    return np.frombuffer(voxels, np.int8).reshape(shape, order="F")


@pytest.fixture(scope="module")
def known():
    """A server whose model finds the block of the image."""
    with running(Settings(capacity=2), KnownModel()) as client:
        yield client


@pytest.fixture
def session(known):
    image = np.full(SHAPE, -FAR, np.float32)
    image[BLOCK] = FAR
    assert known.get("/status").json()["status"] == "ok"
    (model,) = known.get("/v2/models").json()["models"]
    assert model["dimensions"] == 3 and model["interactions"] == ["point", "scribble", "lasso"]
    name = known.get(f"/v2/start_session/{model['id']}").json()["session_id"]
    assert known.post(f"/v2/upload_raw/{name}", files=sent(image)).status_code == 200
    yield name
    known.get(f"/v2/end_session/{name}")


def block() -> np.ndarray:
    mask = np.zeros(SHAPE, np.int8)
    mask[BLOCK] = 1
    return mask


def test_a_click_finds_the_block_where_it_is(known, session):
    query = {"point": [35, 21, 4], "foreground": True}
    np.testing.assert_array_equal(mask_of(known.get(f"/v2/process_point_interaction/{session}", params=query)), block())
    assert known.get(f"/v2/reset_interactions/{session}").json() == {"status": "success"}
    first = {"x": 35, "y": 21, "z": 4, "foreground": "true"}
    np.testing.assert_array_equal(mask_of(known.get(f"/process_point_interaction/{session}", params=first)), block())
    swapped = {"point": [4, 21, 35], "foreground": True}
    assert known.get(f"/v2/process_point_interaction/{session}", params=swapped).status_code == 400


def test_scribbles_and_lassos_are_voxels_of_the_image(known, session):
    stroke = np.zeros(SHAPE)
    stroke[34:37, 21, 4] = 1
    path = f"/process_scribble_interaction/{session}"
    np.testing.assert_array_equal(mask_of(known.post(path, params={"foreground": True}, files=sent(stroke))), block())
    known.get(f"/reset_interactions/{session}")
    contour = np.zeros(SHAPE)
    contour[32:39, 19:24, 5] = 1
    contour[33:38, 20:23, 5] = 0
    path = f"/process_lasso_interaction/{session}"
    np.testing.assert_array_equal(mask_of(known.post(path, params={"foreground": True}, files=sent(contour))), block())


def test_the_spacing_given_to_the_server_counts(network, phantom):
    array = phantom.scan.array
    with running(Settings(spacing_mm=(3.0, 3.5, 6.0)), network) as client:
        name = client.get("/start_session").json()["session_id"]
        assert client.post(f"/upload_raw/{name}", files=sent(array)).status_code == 200
        x, y, z = phantom.click
        query = {"x": x, "y": y, "z": z, "foreground": True}
        mask = mask_of(client.get(f"/process_point_interaction/{name}", params=query), array.shape)
    # Written out here: x to the left, y to the back, z up.
    own = Session(network, Volume(array, Grid(array.shape, np.diag([-3.0, -3.5, 6.0, 1.0])), "CT"), keep_clicked=False)
    np.testing.assert_array_equal(mask, own.click(phantom.click).array)
    assert mask.any()


def test_what_cannot_be_used_is_refused(known, session):
    assert known.get("/v2/process_point_interaction/none", params={"point": [1, 2, 3]}).status_code == 410
    good = sent(np.zeros(SHAPE))
    for change in (
        {"metadata": (None, "{")},
        {"metadata": (None, '{"dimensions": [1, 2]}')},
        {"metadata": (None, '{"dimensions": [1, 2, 3], "components_per_pixel": 3}')},
        {"metadata": (None, json.dumps({"dimensions": [SHAPE[0], SHAPE[1], SHAPE[2] + 1]}))},
        {"metadata": (None, json.dumps({"dimensions": [SHAPE[0], SHAPE[1], SHAPE[2] - 1]}))},
        {"file": ("image.gz", b"no gzip")},
        {"file": ("image.gz", good["file"][1][:-40])},
        {},  # all voxels alike
    ):
        answer = known.post(f"/v2/upload_raw/{session}", files={**good, **change})
        assert answer.status_code == 400, change
        error_of(answer)
    large = {**good, "metadata": (None, json.dumps({"dimensions": [4096, 4096, 4096]}))}
    assert known.post(f"/v2/upload_raw/{session}", files=large).status_code == 413
    query = {"point": [35, 21, 4], "foreground": True}
    np.testing.assert_array_equal(mask_of(known.get(f"/v2/process_point_interaction/{session}", params=query)), block())
