"""The page in a browser: open a scan, click, correct, save; the work survives a reload and a restart of the server."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.page.running import Server, Viewer
from voxsam.io import read_volume

pytestmark = pytest.mark.slow


def _prompts(server: Server, viewer: Viewer) -> list[dict]:
    """Of the current object, as the server knows them."""
    state = server.ask(f"sessions/{viewer.session}")
    return next(o["prompts"] for o in state["objects"] if o["number"] == state["current"])


def _open(viewer: Viewer, path: Path) -> None:
    """Choose a scan in a served folder."""
    viewer.page.click(f"#folders button:has-text('{path.parent.name}')")
    viewer.page.click(f"#browse-list button:has-text('{path.name}')")
    viewer.opened()


def test_a_click_gives_a_mask_that_is_undone_saved_and_survives_the_server(
    viewer: Viewer, server: Server, case: tuple[Path, tuple[int, int, int]], tmp_path: Path
) -> None:
    path, tumour = case
    page = viewer.page
    _open(viewer, path)
    assert path.name in page.inner_text("#scan")

    viewer.look_at(tumour)
    viewer.answered(lambda: page.mouse.click(*viewer.place(tumour)))
    assert _prompts(server, viewer) == [{"kind": "point", "index": list(tumour), "positive": True}]
    mask = viewer.labels()
    assert mask[tumour] == 1 and mask.sum() > 100
    np.testing.assert_array_equal(mask, server.labels(viewer.session))
    spacing_mm = read_volume(path).grid.spacing_mm
    said = page.inner_text("#objects")
    assert f"{mask.sum() * spacing_mm.prod() / 1000:.3g} mL"[:3] in said and "longest diameter" in said
    assert "Segmented in" in page.inner_text("#took")
    assert "mL, longest diameter" in page.inner_text("#live")  # read aloud

    viewer.answered(lambda: page.keyboard.press("Control+z"))
    assert not viewer.labels().any() and _prompts(server, viewer) == []
    viewer.answered(lambda: page.click("#redo"))
    np.testing.assert_array_equal(viewer.labels(), mask)

    with page.expect_download() as download:
        page.click("#save-nifti")
    download.value.save_as(tmp_path / "mask.nii.gz")
    saved = read_volume(tmp_path / "mask.nii.gz", labels=True)
    np.testing.assert_array_equal(saved.array, server.labels(viewer.session))
    assert saved.grid.close_to(read_volume(path).grid)

    server.stop()
    page.wait_for_selector("#connection.lost")
    assert "trying again" in page.inner_text("#connection")
    server.start()
    page.wait_for_selector("#connection:not(.lost)")
    assert "your work is back" in page.inner_text("#connection")
    np.testing.assert_array_equal(viewer.labels(), mask)
    corner = tuple(np.argwhere(mask)[0].tolist())
    viewer.look_at(corner)
    viewer.answered(lambda: page.mouse.click(*viewer.place(corner), button="right"))
    assert _prompts(server, viewer)[1] == {"kind": "point", "index": list(corner), "positive": False}

    page.reload()
    viewer.opened()
    page.wait_for_selector("#objects :text('2 marks')")
    np.testing.assert_array_equal(viewer.labels(), server.labels(viewer.session))


def test_the_keyboard_alone_opens_marks_corrects_and_helps(viewer: Viewer, server: Server) -> None:
    page, press = viewer.page, viewer.page.keyboard.press
    while "phantoms" not in page.evaluate("document.activeElement.textContent"):
        press("Tab")
    press("Enter")
    page.wait_for_selector("#browse-list button:focus")
    press("Enter")
    viewer.opened()
    assert page.evaluate("document.activeElement.id") == "planes"
    start = page.evaluate("voxsam.viewer.cursor")
    press("ArrowRight")
    press("PageUp")
    press("Shift+ArrowUp")
    world = np.array(server.ask(f"sessions/{viewer.session}")["affine"])[:3]
    moved_mm = world[:, :3] @ np.subtract(page.evaluate("voxsam.viewer.cursor"), start)
    assert moved_mm[0] < 0 < moved_mm[1] and moved_mm[2] > 0  # towards the patient's left, anterior, superior
    page.wait_for_selector("#live:has-text('voxel')")

    at = page.evaluate("voxsam.viewer.cursor")
    viewer.answered(lambda: press("Enter"))
    press("ArrowLeft")
    viewer.answered(lambda: press("Shift+Enter"))
    known = _prompts(server, viewer)
    assert known[0] == {"kind": "point", "index": at, "positive": True}
    assert known[1]["positive"] is False and known[1]["index"] != at
    viewer.answered(lambda: press("Control+z"))
    assert len(_prompts(server, viewer)) == 1

    press("b")
    press("Enter")
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "PageDown"):
        press(key)
    press("Enter")  # the opposite corner
    viewer.answered(lambda: press("Enter"))
    box = _prompts(server, viewer)[1]
    assert sorted(np.subtract(box["high"], box["low"]).tolist()) == [1, 1, 2]

    viewer.answered(lambda: press("n"))
    assert server.ask(f"sessions/{viewer.session}")["current"] == 2
    press("?")
    assert "undo" in page.inner_text("#help")
    press("Escape")
    page.wait_for_selector("#help", state="hidden")


def test_a_stroke_is_a_scribble_and_a_drag_only_looks(viewer: Viewer, server: Server, phantoms: Path) -> None:
    page = viewer.page
    _open(viewer, phantoms / "phantom.nii.gz")
    x, y = viewer.place(page.evaluate("voxsam.viewer.cursor"))

    def drag(dx: float, dy: float) -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx / 2, y + dy / 2)
        page.mouse.move(x + dx, y + dy)
        page.mouse.up()

    before = page.evaluate("voxsam.viewer.cursor")
    drag(30, 12)
    viewer.drawn()
    assert page.evaluate("voxsam.viewer.cursor") != before
    assert _prompts(server, viewer) == []
    page.keyboard.press("s")
    viewer.answered(lambda: drag(30, 12))
    (stroke,) = _prompts(server, viewer)
    assert stroke["kind"] == "scribble" and stroke["positive"] and stroke["count"] > 2


def test_errors_are_in_words_and_the_scan_stays(viewer: Viewer, phantoms: Path, tmp_path: Path) -> None:
    page = viewer.page
    _open(viewer, phantoms / "phantom.nii.gz")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan at all")
    page.set_input_files("#choose-files", broken)
    page.wait_for_selector("#problem:not([hidden])")
    problem = page.inner_text("#problem")
    assert "broken.nii.gz" in problem.lower() and "Expected: " in problem and "What to do: " in problem
    assert page.is_visible("#panel")
    page.click("#problem-close")
    assert page.is_hidden("#problem")


def test_a_file_is_dropped(viewer: Viewer, server: Server, phantoms: Path) -> None:
    viewer.drop(phantoms / "phantom.nii.gz")
    viewer.opened()
    state = server.ask(f"sessions/{viewer.session}")
    assert state["name"] == "phantom.nii.gz"
    assert tuple(state["shape"]) == read_volume(phantoms / "phantom.nii.gz").grid.shape


def test_a_dicom_series_comes_as_a_folder_and_leaves_as_dicom_seg(
    viewer: Viewer, server: Server, shared_data: Path, tmp_path: Path
) -> None:
    page = viewer.page
    page.set_input_files("#choose-folder", shared_data / "dicom" / "ct_3slice_and_seg" / "ct-3slice")
    viewer.opened()
    state = server.ask(f"sessions/{viewer.session}")
    assert state["dicom"] and state["modality"] == "CT" and state["shape"][2] == 3
    viewer.answered(lambda: page.keyboard.press("Enter"))
    with page.expect_download() as download:
        page.click("#save-seg")
    download.value.save_as(tmp_path / "seg.dcm")
    assert (tmp_path / "seg.dcm").read_bytes()[128:132] == b"DICM"
    with page.expect_download() as download:
        page.click("#save-sr")
    download.value.save_as(tmp_path / "both.zip")
    assert zipfile.ZipFile(tmp_path / "both.zip").namelist() == ["mask.seg.dcm", "measurements.sr.dcm"]


def test_the_demo_opens_by_its_address_and_everything_fits_on_a_small_screen(viewer: Viewer, server: Server) -> None:
    page = viewer.page
    page.goto("about:blank")
    page.goto(f"{server.address}#demo")
    viewer.opened()
    assert viewer.session
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.evaluate("document.documentElement.scrollHeight") <= 720
    for name in ("#save-json", "#undo", "#tools", "#show-help", "#opacity"):
        box = page.locator(name).bounding_box()
        assert box["x"] + box["width"] <= 1280 and box["y"] + box["height"] <= 720, name
    unnamed = "button:not([aria-label])"
    assert all(text.strip() for text in page.locator(f"#panel {unnamed}").all_text_contents())


def test_the_key_is_asked_for_and_shown(viewer: Viewer, server: Server) -> None:
    page, shown = viewer.page, []

    def guard(route) -> None:
        shown.append(route.request.headers.get("authorization"))
        if shown[-1] == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "a key is needed"}})

    page.route("**/api/info", guard)
    page.reload()
    page.wait_for_selector("#ask-key[open]")
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome:not([hidden])")
    assert shown == [None, "Bearer right"]
    page.goto("about:blank")
    page.goto(f"{server.address}#key=right")
    page.wait_for_selector("#welcome:not([hidden])")
    assert "right" not in page.url and shown[-1] == "Bearer right"
