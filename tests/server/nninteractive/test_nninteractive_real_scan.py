"""The real client on a real CT with the packaged model: its buffer is VoxSAM's own mask, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nninteractive_server import own_session, running

import voxsam
from voxsam.io import read_volume
from voxsam.prompts import Box, MaskHint, Point, Scribble, spread
from voxsam.volume import Volume

CASE = "STS_003"
MAX_SENT = 20_000  # bytes of one answer; the whole mask has 500,000 voxels
LEAST_DICE = 0.5  # of one click with voxsam-tiny: far more than by chance, less than it reaches


@pytest.fixture(scope="module")
def model():
    return voxsam.load_model("voxsam-tiny")


@pytest.fixture(scope="module")
def paths(shared_data):
    """The CT and its tumour."""
    folder = shared_data / "sarcoma_ct"
    return folder / "imagesTr" / f"{CASE}_0000.nii.gz", folder / "labelsTr" / f"{CASE}.nii.gz"


@pytest.fixture(scope="module")
def server(model):
    with running(model) as server:
        yield server


@pytest.fixture
def client(server, paths):
    """A client as a user of SimpleITK would set it up: with the (k, j, i) array and its spacing."""
    image = sitk.ReadImage(str(paths[0]))
    with server.client(sitk.GetArrayFromImage(image), spacing=image.GetSpacing()[::-1]) as client:
        client._http.event_hooks["response"].append(check_size)
        yield client


def check_size(response) -> None:
    assert len(response.read()) < MAX_SENT


def reversed_axes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 1, 0))


def agree(client, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(client.target_buffer, mask)
    assert mask.any()


def test_clicks_and_boxes_equal_the_sessions_own_on_the_file(client, model, paths):
    """The server sees no file, only SimpleITK's array: a wrong guess of its axes would change the crop and the mask."""
    volume, tumour = read_volume(paths[0]), read_volume(paths[1], labels=True).array > 0
    assert volume.grid.axes == "LPS" and client.target_buffer.shape == volume.grid.shape[::-1]
    own = voxsam.Session(model, volume, keep_clicked=False)
    inside = [int(n) for n in spread(tumour, volume.grid.spacing_mm, 1)[0]]
    client.add_point_interaction(inside[::-1], include_interaction=True)
    first = own.click(inside).array
    agree(client, reversed_axes(first))
    assert 2 * (tumour & (first > 0)).sum() / (tumour.sum() + first.sum()) > LEAST_DICE
    wrong = [int(n) for n in np.argwhere((first > 0) & ~tumour)[0]]
    client.add_point_interaction(wrong[::-1], include_interaction=False)
    agree(client, reversed_axes(own.click(wrong, positive=False).array))
    assert client.undo()
    agree(client, reversed_axes(first))
    client.reset_interactions()
    own.reset()
    ends = [[int(at.min()), int(at.max()) + 1] for at in np.nonzero(tumour)]
    client.add_bbox_interaction(ends[::-1], include_interaction=True)
    box = Box.at_index(volume.grid, [low for low, _ in ends], [high - 1 for _, high in ends])
    agree(client, reversed_axes(own.prompt(box).array))


def test_scribble_lasso_and_initial_mask_equal_the_sessions_own(client, model, paths):
    tumour = reversed_axes(read_volume(paths[1], labels=True).array > 0)
    array, spacing = reversed_axes(read_volume(paths[0]).array), np.array(read_volume(paths[0]).grid.spacing_mm)[::-1]
    own = own_session(model, array, spacing)
    grid, (k, j, i) = own.volume.grid, (int(n) for n in spread(tumour, spacing, 1)[0])
    labels = np.zeros(array.shape, np.uint8)
    labels[k, j, i - 5 : i + 6] = 1
    client.add_scribble_interaction(labels[k : k + 1, :, :], True, interaction_bbox=[[k, k + 1], *whole(array)[1:]])
    agree(client, own.prompt(Scribble(Volume(labels, grid))).array)

    client.reset_interactions()
    own.reset()
    area = tumour[k : k + 1]
    client.add_lasso_interaction(area, True, interaction_bbox=[[k, k + 1], *whole(array)[1:]])
    clicks = spread(area, np.array([1e6, *spacing[1:]])) + (k, 0, 0)
    agree(client, own.prompt(*(Point.at_index(grid, at) for at in clicks)).array)

    client.reset_interactions()
    own.reset()
    rough = np.zeros(array.shape, np.uint8)
    rough[k - 1 : k + 2, j - 6 : j + 7, i - 6 : i + 7] = 1
    client.add_initial_seg_interaction(rough, run_prediction=True)
    agree(client, own.prompt(MaskHint(Volume(rough, grid))).array)


def whole(array: np.ndarray) -> list[list[int]]:
    return [[0, n] for n in array.shape]
