"""The real nnInteractive client against a real server: each of its calls gives the mask of VoxSAM itself."""

from __future__ import annotations

import re

import httpx
import numpy as np
import pytest
import torch
from known_model import FAR, KnownModel
from nninteractive_server import own_session, running

from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.prompts import Box, MaskHint, Point, Scribble, spread
from voxsam.testing import stub_network
from voxsam.volume import Volume

SPACING = (3.5, 2.5, 2.0)  # the whole image fits in one crop of the small network
SHAPE = (24, 36, 44)
BLOCK = (slice(3, 7), slice(20, 23), slice(33, 38))  # of the known image: another place on each axis


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth noise with no symmetry, HU."""
    rng = np.random.default_rng(5)
    coarse = rng.normal(40, 120, (8, 9, 11))
    return np.kron(coarse, np.ones((3, 4, 4))).astype(np.int16)


@pytest.fixture
def client(server, image):
    with server.client(image, spacing=np.array(SPACING)) as client:
        yield client


@pytest.fixture
def own(network, image):
    return own_session(network, image, SPACING)


@pytest.fixture
def known(request):
    """A client whose image shows one block, on a server whose model finds it."""
    image = np.full((22, 31, 43), -FAR, np.float32)
    image[BLOCK] = FAR
    with running(KnownModel(**getattr(request, "param", {}))) as server, server.client(image) as client:
        yield client


def only(where: tuple[slice, ...], shape) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[where] = 1
    return mask


def grid_of(own):
    return own.volume.grid


def agree(client, mask: Volume) -> None:
    """The client's buffer is VoxSAM's mask, which is neither empty nor all of the scan."""
    np.testing.assert_array_equal(client.target_buffer, mask.array)
    assert 0 < np.count_nonzero(mask.array) < mask.array.size


# Answers that are known: axes


def test_a_click_finds_the_block_where_it_is_and_only_its_box_travels(known):
    changed = known.add_point_interaction((4, 21, 35), include_interaction=True)
    np.testing.assert_array_equal(known.target_buffer, only(BLOCK, known.target_buffer.shape))
    for (low, high), part in zip(changed, BLOCK, strict=True):
        assert part.start - 3 <= low <= part.start and part.stop <= high <= part.stop + 3


def test_a_click_with_its_axes_swapped_is_elsewhere_or_refused(known):
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        known.add_point_interaction((35, 21, 4), include_interaction=True)
    known.add_point_interaction((21, 4, 35), include_interaction=True)
    assert not known.target_buffer.any()


def test_a_2d_box_limits_within_its_plane_only(known):
    known.add_bbox_interaction([[20, 21], [20, 22], [33, 40]], include_interaction=True)  # not where the block is
    assert not known.target_buffer.any()
    known.reset_interactions()
    known.add_bbox_interaction([[4, 5], [20, 22], [34, 40]], include_interaction=True)
    np.testing.assert_array_equal(known.target_buffer, only((BLOCK[0], slice(20, 22), slice(34, 38)), (22, 31, 43)))


def test_a_3d_box_limits_on_all_axes(known):
    known.add_bbox_interaction([[4, 9], [20, 22], [34, 40]], include_interaction=True)
    np.testing.assert_array_equal(known.target_buffer, only((slice(4, 7), slice(20, 22), slice(34, 38)), (22, 31, 43)))


# The same as a session's own masks


def test_points_of_both_signs_give_the_sessions_masks(client, own):
    client.add_point_interaction([10, 20, 30], include_interaction=True)
    agree(client, own.click((10, 20, 30)))
    client.add_point_interaction(np.array([12, 25, 20]), include_interaction=False)
    agree(client, own.click((12, 25, 20), positive=False))


def test_boxes_give_the_sessions_masks(client, own):
    client.add_bbox_interaction([[5, 15], [10, 30], [20, 40]], include_interaction=True)
    agree(client, own.prompt(Box.at_index(grid_of(own), (5, 10, 20), (14, 29, 39))))
    client.add_bbox_interaction([[8, 9], [12, 15], [22, 25]], include_interaction=False)
    agree(client, own.click((8, 13, 23), positive=False))


def scribbles() -> tuple[np.ndarray, np.ndarray]:
    """A stroke in one slice, and the same as labels of the whole image."""
    stroke = np.zeros((1, 12, 14), np.uint8)
    stroke[0, np.arange(12), np.arange(12) + 1] = 1
    whole = np.zeros(SHAPE, np.uint8)
    whole[10:11, 15:27, 20:34] = stroke
    return stroke, whole


@pytest.mark.parametrize("cropped", [True, False])
def test_scribbles_give_the_sessions_masks(client, own, cropped):
    stroke, whole = scribbles()
    if cropped:
        client.add_scribble_interaction(stroke, True, interaction_bbox=[[10, 11], [15, 27], [20, 34]])
    else:
        client.add_scribble_interaction(whole.astype(np.float32), True)
    agree(client, own.prompt(Scribble(Volume(whole, grid_of(own)))))
    client.add_scribble_interaction(whole[::-1].copy(), False)
    agree(client, own.prompt(Scribble(Volume(whole[::-1] * 2, grid_of(own)))))


def test_a_lasso_gives_the_sessions_mask_for_clicks_inside_it(client, own):
    ring = np.ones((1, 13, 13), np.uint8)
    ring[:, 1:-1, 1:-1] = 0
    area = [[12, 13], [10, 23], [20, 33]]
    client.add_lasso_interaction(ring, True, interaction_bbox=area)
    filled = client.target_buffer.copy()
    client.reset_interactions()
    client.add_lasso_interaction(np.ones_like(ring), True, interaction_bbox=area)
    np.testing.assert_array_equal(client.target_buffer, filled)
    agree(client, own.prompt(*lasso_points(own)))


def lasso_points(own) -> list[Point]:
    """The clicks of 13 rows of 2.5 mm and 13 columns of 2 mm: the deepest place is in the middle column, 14 mm from its
    sides, first reached at row 5; the others are spread over the inner half."""
    found = spread(np.ones((1, 13, 13), bool), np.array([1e6, *SPACING[1:]]))
    assert tuple(found[0]) == (0, 5, 6) and len(found) == 10
    return [Point.at_index(grid_of(own), at + (12, 10, 20)) for at in found]


def test_an_initial_mask_waits_for_a_prompt_and_counts_with_it(client, own):
    rough = only((slice(8, 14), slice(15, 25), slice(22, 35)), SHAPE)
    assert client.add_initial_seg_interaction(rough) is None
    np.testing.assert_array_equal(client.target_buffer, rough)
    client.add_point_interaction((12, 25, 20), include_interaction=False)
    click = Point.at_index(grid_of(own), (12, 25, 20), positive=False)
    agree(client, own.prompt(MaskHint(Volume(rough, grid_of(own))), click))
    assert client.undo()
    np.testing.assert_array_equal(client.target_buffer, rough)


def test_an_initial_mask_is_refined_at_once_if_asked(client, own):
    rough = only((slice(8, 14), slice(15, 25), slice(22, 35)), SHAPE)
    assert client.add_initial_seg_interaction(rough, run_prediction=True)
    agree(client, own.prompt(MaskHint(Volume(rough, grid_of(own)))))


def test_interactions_without_a_prediction_wait_for_it(client, own):
    assert client.add_point_interaction((10, 20, 30), True, run_prediction=False) is None
    client.add_bbox_interaction([[5, 15], [10, 30], [20, 40]], True, run_prediction=False)
    assert not client.target_buffer.any()
    assert client._predict(force_full_refine=True)
    point, box = Point.at_index(grid_of(own), (10, 20, 30)), Box.at_index(grid_of(own), (5, 10, 20), (14, 29, 39))
    agree(client, own.prompt(point, box))
    assert client._predict() is None


def test_undo_and_reset(client, own):
    client.add_point_interaction((10, 20, 30), True)
    first = own.click((10, 20, 30))
    client.add_point_interaction((20, 5, 5), True)
    agree(client, own.click((20, 5, 5)))
    assert client.undo()
    agree(client, first)
    assert client.undo() and not client.target_buffer.any()
    assert not client.undo()
    client.add_point_interaction((10, 20, 30), True)
    client.reset_interactions()
    assert not client.target_buffer.any() and not client.undo()
    client.add_point_interaction((20, 5, 5), True)
    own.reset()
    agree(client, own.click((20, 5, 5)))


def test_another_image_begins_anew(client, own, image):
    client.add_point_interaction((10, 20, 30), True)
    client.set_image(image[None, ::-1], {"spacing": SPACING})
    buffer = np.zeros(SHAPE, bool)
    client.set_target_buffer(buffer)
    assert not client.undo()
    client.add_point_interaction((13, 20, 30), True)
    assert buffer.any() and client.target_buffer is buffer
    other = own_session(own.model, image[::-1], SPACING)
    agree(client, other.click((13, 20, 30)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16])
def test_a_buffer_may_be_a_tensor(client, own, dtype):
    client.set_target_buffer(torch.zeros(SHAPE, dtype=dtype))
    client.add_point_interaction((10, 20, 30), True)
    agree(client, own.click((10, 20, 30)))


def test_autozoom_off_keeps_to_one_crop(server, network, image):
    wide = [3 * mm for mm in SPACING]
    with server.client() as client:
        client.set_do_autozoom(False)  # as napari does, before any image
        client.set_image(image[None], {"spacing": wide})
        client.set_target_buffer(np.zeros(SHAPE, np.int32))
        client.add_point_interaction((10, 20, 30), True)
        own = own_session(network, image, wide)
        own.predictor.follow = False
        agree(client, own.click((10, 20, 30)))
        in_one_crop = client.target_buffer.copy()
        client.set_do_autozoom(True)
        client.reset_interactions()
        client.add_point_interaction((10, 20, 30), True)
        assert np.count_nonzero(client.target_buffer) > np.count_nonzero(in_one_crop)


def test_two_clients_do_not_mix(server, network, image):
    with server.client(image, spacing=SPACING) as one, server.client(image[::-1].copy(), spacing=SPACING) as two:
        one.add_point_interaction((10, 20, 30), True)
        two.add_point_interaction((10, 20, 30), True)
        agree(one, own_session(network, image, SPACING).click((10, 20, 30)))
        agree(two, own_session(network, image[::-1], SPACING).click((10, 20, 30)))
        assert (one.target_buffer != two.target_buffer).any()


# What the model takes


def test_capabilities_of_a_model_with_polarity(client):
    kinds = ("bbox2d", "bbox3d", "lasso", "points", "scribble")
    assert client.supported_interactions == dict.fromkeys(kinds, True)
    assert client.supports_initial_label and client.supports_undo and client.do_autozoom
    assert client.license == "Apache-2.0" and client.preferred_scribble_thickness == [2, 2, 2]
    assert all(client.channel_mapping[kind][1] < client.num_interaction_channels for kind in kinds)


@pytest.mark.parametrize("known", [{"polarity": False}], indirect=True)
def test_negative_prompts_are_refused_where_the_model_takes_none(known):
    negative = "Client error '400 Bad Request'"
    known.add_point_interaction((4, 21, 35), include_interaction=True)
    for refused in (
        lambda: known.add_point_interaction((0, 0, 0), False),
        lambda: known.add_point_interaction((0, 0, 0), False, run_prediction=False),
        lambda: known.add_point_interaction((0, 0, 0), False, override_capability_checks=True),
        lambda: known.add_bbox_interaction([[0, 2], [0, 2], [0, 1]], False),
        lambda: known.add_scribble_interaction(
            np.ones((2, 2, 1), np.uint8), False, interaction_bbox=[[0, 2], [0, 2], [0, 1]]
        ),
        lambda: known.add_lasso_interaction(
            np.ones((2, 2, 1), np.uint8), False, interaction_bbox=[[0, 2], [0, 2], [0, 1]]
        ),
    ):
        with pytest.raises(httpx.HTTPStatusError, match=negative) as error:
            refused()
        assert "a negative prompt for the model known; expected one of positive, box" in detail(error.value)
    np.testing.assert_array_equal(known.target_buffer, only(BLOCK, known.target_buffer.shape))
    assert "negative" not in known._http.get("/capabilities").json()["prompts"]


def test_a_model_without_prompts_says_so_and_refuses_them(image):
    with running(stub_network(automatic=True)) as server, server.client(image) as client:
        assert not any(client.supported_interactions.values()) and not client.supports_initial_label
        with pytest.raises(httpx.HTTPStatusError) as error:
            client.add_point_interaction((4, 5, 6), True)
        assert "the model segments without clicks" in detail(error.value)


# What is refused


def detail(error: httpx.HTTPStatusError) -> str:
    answer = error.response.json()
    assert "\n" not in answer["detail"] and "Traceback" not in answer["detail"]
    return answer["detail"]


def test_interactions_before_an_image_are_refused(server):
    with server.client() as client:
        client.reset_interactions()
        for call in (lambda: client.add_point_interaction((1, 2, 3), True), client.undo, client._predict):
            with pytest.raises(httpx.HTTPStatusError) as error:
                call()
            assert error.value.response.status_code == 400 and "call set_image" in detail(error.value)


REFUSED = {
    "two channels": (lambda c, a: c.set_image(np.stack([a, a])), 400, "2 channels; expected one channel"),
    "a label map": (lambda c, a: c.set_image((a[None] > 0).astype(np.uint8)), 400, "looks like a label map"),
    "spacing": (lambda c, a: c.set_image(a[None], {"spacing": [1, 0, 1]}), 400, "spacing"),
    "spacing of words": (
        lambda c, a: c.set_image(a[None], {"spacing": "fine"}),
        400,
        "X-Meta: image_properties.spacing",
    ),
    "buffer shape": (lambda c, a: c.set_target_buffer(np.zeros((3, 4, 5), np.uint8)), 400, r"the image's shape \(24, "),
    "buffer type": (lambda c, a: c.set_target_buffer(np.zeros(SHAPE, np.float32)), 400, "bool or an integer type"),
    "flat buffer": (lambda c, a: c.set_target_buffer(np.zeros(SHAPE[:2], np.uint8)), 422, "body.shape"),
    "point outside": (lambda c, a: c.add_point_interaction((24, 0, 0), True), 400, "outside the scan"),
    "point of two": (lambda c, a: c.add_point_interaction((1, 2), True), 422, "body.coordinates"),
    "no box": (lambda c, a: c.add_bbox_interaction([[1, 1], [0, 2], [0, 2]], True), 400, "a box with an inside"),
    "stroke": (lambda c, a: c.add_scribble_interaction(np.ones((2, 2, 2), np.uint8), True), 400, "of shape"),
    "no stroke": (lambda c, a: c.add_scribble_interaction(np.zeros(SHAPE, np.uint8), True), 400, "without voxels"),
    "lasso beside": (
        lambda c, a: c.add_lasso_interaction(np.ones((2, 2, 1)), True, interaction_bbox=[[23, 25], [0, 2], [0, 1]]),
        400,
        "a part of the image",
    ),
}


def test_what_makes_no_sense_is_refused_in_words_and_the_work_goes_on(client, own, image):
    client.add_point_interaction((10, 20, 30), True)
    buffer = client.target_buffer
    for name, (call, status, words) in REFUSED.items():
        with pytest.raises(httpx.HTTPStatusError) as error:
            call(client, image)
        assert error.value.response.status_code == status, name
        assert re.search(words, detail(error.value)), name
    client.target_buffer = buffer
    client.add_point_interaction((20, 5, 5), True)
    own.click((10, 20, 30))
    agree(client, own.click((20, 5, 5)))


def test_an_initial_mask_of_another_shape_is_refused(client):
    client.target_buffer = None  # the client itself would stumble over it first
    with pytest.raises(httpx.HTTPStatusError) as error:
        client.add_initial_seg_interaction(np.ones((3, 4, 5), np.uint8))
    assert "an initial mask of shape (3, 4, 5)" in detail(error.value)


# Other clients, by the requests that they send


@pytest.mark.parametrize(
    "viewer, order, turned, spacing",
    [
        ("3D Slicer, napari with SimpleITK", (2, 1, 0), False, (6.0, 3.5, 3.5)),
        ("napari-nifti 0.0.20", (2, 1, 0), True, (-6.0, -3.5, -3.5)),
        ("napari-nifti 0.0.17", (0, 1, 2), False, (3.5, 3.5, 6.0)),
    ],
)
def test_however_a_viewer_lays_the_array_the_model_sees_one_patient(server, network, viewer, order, turned, spacing):
    """The mask of one scan (x to the left, y to the back, z up), whichever of its axes comes first."""
    scan = np.kron(np.random.default_rng(7).normal(40, 120, (11, 9, 8)), np.ones((4, 4, 3))).astype(np.int16)
    click = (17, 20, 11)
    own = Session(network, Volume(scan, Grid(scan.shape, np.diag([-3.5, -3.5, 6.0, 1.0])), "CT"), keep_clicked=False)
    expected = own.click(click).array
    flip = (slice(None), slice(None, None, -1), slice(None, None, -1)) if turned else (slice(None),) * 3
    index = [click[axis] for axis in order]
    index = [index[0], scan.shape[1] - 1 - index[1], scan.shape[0] - 1 - index[2]] if turned else index
    with server.client(np.ascontiguousarray(scan.transpose(order)[flip]), spacing=np.array(spacing)) as client:
        client.add_point_interaction(tuple(index), include_interaction=True)
        back = client.target_buffer[flip].transpose(np.argsort(order))
    np.testing.assert_array_equal(back, expected)
    assert 0 < expected.sum() < expected.size


def test_an_older_plug_in_is_told_what_it_needs(server):
    for path in ("/upload_image", "/upload_segment"):
        answer = httpx.post(f"{server.url}{path}", files={"file": b"npy"})
        assert answer.status_code == 410 and "SlicerNNInteractive 1.0.0 or newer" in answer.json()["detail"]
    for path in ("/segment", "/ai/model/list", "/interact"):
        assert httpx.post(f"{server.url}{path}", json={}).status_code == 404
