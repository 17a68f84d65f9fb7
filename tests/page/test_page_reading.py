"""Reading a scan on the page: window, slices, zoom, ruler, styles, touch, recent scans, cancelling, accessibility."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.page.running import Server, Viewer
from voxsam.geometry import Grid
from voxsam.io import write_volume
from voxsam.volume import Volume

pytestmark = pytest.mark.slow

AXE = Path(__file__).resolve().parents[2] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
WHITE = 0.97
BLOCK = (14, 12, 9), (20, 17, 13)  # its first voxel, and the first beyond it: 6 x 5 x 4 voxels of 2 x 2.5 x 3.5 mm
PLANES = ("axial", "coronal", "sagittal")


def _block() -> Volume:
    """A white block in grey, on an anisotropic grid that is turned by 3-4-5 about the last axis."""
    grid = Grid.from_spacing((36, 30, 24), (2.0, 2.5, 3.5))
    affine = grid.affine.copy()
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ affine[:3, :3]
    array = np.full(grid.shape, -100, np.int16)
    array[tuple(map(slice, *BLOCK))] = 400
    return Volume(array, Grid(grid.shape, affine), "CT")


@pytest.fixture
def block(viewer: Viewer, tmp_path: Path) -> Viewer:
    write_volume(_block(), tmp_path / "block.nii.gz")
    viewer.upload(tmp_path / "block.nii.gz")
    viewer.look_at((16, 14, 11))
    return viewer


def _window(viewer: Viewer) -> tuple[float, float]:
    low, high = viewer.page.evaluate("[voxsam.viewer.window.low, voxsam.viewer.window.high]")
    return low, high


def _cursor(viewer: Viewer) -> list[int]:
    return viewer.page.evaluate("voxsam.viewer.cursor")


def _prompts(server: Server, viewer: Viewer) -> list[dict]:
    return server.ask(f"sessions/{viewer.session}")["objects"][0]["prompts"]


def _is_orange(picture: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The first object's colour, alone or over grey; marks are green, lines blue."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red > green) & (red - blue > 0.15)


def test_a_drag_with_the_right_button_or_w_changes_the_window_and_a_right_click_still_removes(
    block: Viewer, server: Server
) -> None:
    page = block.page
    x, y = block.place((16, 14, 11))
    page.evaluate("voxsam.view.setWindow(-160, 240)")
    block.drag((x, y), (x + 100, y), button="right")
    low, high = _window(block)
    assert high - low == pytest.approx(400 * 2**0.5) and (low + high) / 2 == pytest.approx(40)
    assert page.input_value("#width") == f"{high - low:.0f}"
    page.keyboard.down("w")
    block.drag((x, y), (x, y - 50))  # up: brighter
    page.keyboard.up("w")
    moved = _window(block)
    assert moved[1] - moved[0] == pytest.approx(high - low) and moved[0] < low
    assert _prompts(server, block) == []
    block.answered(lambda: page.keyboard.press("Enter"))
    block.answered(lambda: page.mouse.click(x, y, button="right"))
    page.keyboard.down("Shift")
    block.answered(lambda: page.mouse.click(x + 3, y))
    page.keyboard.up("Shift")
    assert [prompt["positive"] for prompt in _prompts(server, block)] == [True, False, False]
    page.keyboard.press("1")
    assert _window(block) == (-160, 240)


def test_a_notch_of_the_wheel_is_a_slice_and_small_movements_add_up(block: Viewer) -> None:
    page = block.page
    page.mouse.move(*block.place((16, 14, 11)))
    for delta, slices in ((-120, 1), (120, -1), (120, -1), (-100, 1)):
        before = _cursor(block)
        page.mouse.wheel(0, delta)
        block.drawn()
        assert _cursor(block) == [before[0], before[1], before[2] + slices]
    time.sleep(0.4)
    before = _cursor(block)
    page.evaluate("""() => {
        const planes = document.getElementById("planes"), {x, y} = planes.getBoundingClientRect();
        const small = {deltaY: -10, clientX: x + 50, clientY: y + 50, cancelable: true}; // of a trackpad
        for (let n = 0; n < 40; n++) planes.dispatchEvent(new WheelEvent("wheel", small)); }""")
    block.drawn()
    assert 3 <= _cursor(block)[2] - before[2] <= 5


def test_sliders_go_through_slices_and_say_which(block: Viewer) -> None:
    page = block.page
    for plane, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        slider = page.get_by_role("slider", name=f"{plane} slice")
        before = _cursor(block)
        slider.focus()
        page.keyboard.press("ArrowUp")
        block.drawn()
        after = _cursor(block)
        assert [b - a for a, b in zip(before, after, strict=True)] == [int(a == axis) for a in range(3)]
        assert slider.get_attribute("aria-valuetext") == f"slice {after[axis] + 1} of {(36, 30, 24)[axis]}"
        pane, box = block.pane(plane), slider.bounding_box()
        assert pane["x"] < box["x"] and box["x"] + box["width"] <= pane["x"] + pane["width"]
        assert box["height"] > pane["height"] / 2


def test_planes_fill_their_panes_at_one_scale_and_are_enlarged_about_the_pointer(block: Viewer) -> None:
    page = block.page
    page.evaluate("voxsam.tool('look')")
    page.evaluate("voxsam.view.setWindow(-160, 240)")
    # Of the block, along i, j, k. Half a voxel at each side is interpolated, and only 0.035 of it is whiter than WHITE.
    size_mm = (np.subtract(*BLOCK[::-1]) - 0.93) * (2.0, 2.5, 3.5)
    sides = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
    for zoom in (1, 2.5):
        scales = []
        for plane in PLANES:
            rows, columns = np.nonzero((block.picture(plane) > WHITE).all(-1))
            extent = np.ptp(columns) + 1, np.ptp(rows) + 1
            scales += [pixels / size_mm[axis] for pixels, axis in zip(extent, sides[plane], strict=True)]
        np.testing.assert_allclose(scales, np.mean(scales), rtol=0.06)
        assert np.mean(scales) == pytest.approx(1 / page.evaluate("voxsam.viewer.tiles.mmPerPixel"), rel=0.05)
        if zoom > 1:
            continue
        at = tuple(map(round, block.place((19, 12, 11))))  # as the browser reports it
        under = """([x, y]) => {
            const {left, top} = document.getElementById("planes").getBoundingClientRect();
            return voxsam.viewer.tiles.locate("axial", {x: x - left, y: y - top}); }"""
        before = page.evaluate(under, at)
        page.mouse.move(*at)
        page.keyboard.down("Control")
        for _ in range(4):
            page.mouse.wheel(0, -120)
        page.keyboard.up("Control")
        block.drawn()
        assert page.evaluate("voxsam.viewer.tiles.camera.zoom") == pytest.approx(2.46, abs=0.02)
        np.testing.assert_allclose(page.evaluate(under, at), before, atol=1e-6)
    near_the_sides = [40, -60]  # columns of the pane
    assert (block.picture("axial")[:, near_the_sides].max(-1) > 0.1).mean() > 0.9
    page.keyboard.press("0")
    assert (block.picture("axial")[:, near_the_sides].max(-1) > 0.1).mean() < 0.2
    assert page.evaluate("voxsam.viewer.tiles.camera.zoom") == 1


def test_the_ruler_measures_in_mm_of_the_patient_by_mouse_and_by_keys(block: Viewer, server: Server) -> None:
    page = block.page
    grid = _block().grid
    page.keyboard.press("r")
    for plane, start, end in (
        ("axial", (4, 3, 11), (25, 20, 11)),
        ("coronal", (6, 14, 4), (22, 14, 20)),
        ("sagittal", (16, 2, 3), (16, 26, 19)),
    ):
        block.drag(block.place(start, plane), block.place(end, plane))
        expected = np.linalg.norm(np.subtract(*grid.index_to_world([start, end])))
        assert page.inner_text("#live") == f"{expected:.1f} mm"
    assert page.evaluate("voxsam.ruler.lines.length") == 3
    page.focus("#planes")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("ArrowLeft" if page.evaluate("voxsam.plane") != "sagittal" else "ArrowUp")
    start, end = page.evaluate("[voxsam.ruler.draft.from, voxsam.ruler.draft.to]")
    page.keyboard.press("Enter")
    expected = np.linalg.norm(np.subtract(*grid.index_to_world([start, end])))
    assert expected > 5 and page.inner_text("#live") == f"{expected:.1f} mm"
    page.keyboard.press("Delete")
    page.click("#line-remove")
    assert page.evaluate("voxsam.ruler.lines.length") == 2
    assert _prompts(server, block) == []


def test_a_mask_is_filled_or_an_outline_and_a_shaded_surface_without_the_body(block: Viewer) -> None:
    page = block.page
    block.answered(lambda: page.mouse.click(*block.place((16, 14, 11))))
    assert block.labels().sum() > 20
    page.evaluate("voxsam.view.setWindow(-500, 400)")  # the body is seen
    page.keyboard.press("q")  # no diameters, and no frame of the focus: they have the object's colour, or nearly
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(5, 5)
    filled = int(_is_orange(block.picture("axial")).sum())
    page.keyboard.press("f")
    outline = int(_is_orange(block.picture("axial")).sum())
    assert page.is_checked("#outline") and 0 < outline < filled / 2
    page.wait_for_timeout(2000)  # for the 3D view
    with_body = block.picture("render")
    page.click("#body")
    page.wait_for_timeout(2000)
    alone = block.picture("render")
    assert (alone.max(-1) > 0.1).any() and _is_orange(alone[alone.max(-1) > 0.15]).mean() > 0.95
    assert (with_body.max(-1) > 0.1).mean() > 0.05
    shades = np.unique(np.round(alone[_is_orange(alone)].max(-1), 2))
    assert len(shades) > 10  # light and shadow, not one colour
    with page.expect_download() as download:
        page.keyboard.press("x")
    assert download.value.suggested_filename == "block_view.png"
    saved = matplotlib.image.imread(download.value.path())
    planes = page.locator("#planes").bounding_box()
    assert saved.shape[:2] == (round(planes["height"]), round(planes["width"]))
    half = saved.shape[0] // 2, saved.shape[1] // 2
    for rows in (slice(0, half[0]), slice(half[0], None)):
        for columns in (slice(0, half[1]), slice(half[1], None)):
            assert (saved[rows, columns, :3].max(-1) > 0.1).mean() > 0.01  # each pane is on it


def test_recent_scans_are_listed_with_their_work_and_gone_back_to(block: Viewer, server: Server) -> None:
    page = block.page
    block.answered(lambda: page.keyboard.press("Enter"))
    first, mask = block.session, block.labels()
    page.click("#another")
    page.click("#open-demo")
    page.wait_for_function("first => location.hash && !location.hash.endsWith(first)", arg=first)
    block.opened()
    page.click("#another")
    rows = page.locator("#recent li")
    assert rows.count() == 2 and "nothing marked" in rows.nth(0).inner_text()
    assert "block.nii.gz" in rows.nth(1).inner_text() and "1 object" in rows.nth(1).inner_text()
    rows.nth(1).locator("button").first.click()
    page.wait_for_function("first => location.hash.endsWith(first)", arg=first)
    block.opened()
    page.wait_for_selector("#objects :text('1 mark')")
    np.testing.assert_array_equal(block.labels(), mask)
    page.click("#another")
    page.get_by_role("button", name="Leave block.nii.gz out of this list").click()
    assert "block.nii.gz" not in page.inner_text("#recent")
    assert server.ask(f"sessions/{first}")["id"] == first  # the work stays


def test_loading_says_how_far_it_is_and_is_cancelled(block: Viewer) -> None:
    page, session = block.page, block.session
    block.answered(lambda: page.keyboard.press("Enter"))
    mask, held = block.labels(), []
    page.route("**/voxels*", lambda route: held.append(route))
    page.click("#another")
    page.click("#open-demo")
    page.wait_for_selector("#busy:has-text('Loading the scan')")
    page.click("#busy-cancel")
    page.wait_for_selector("#busy", state="hidden")
    assert page.is_hidden("#problem") and block.session == session
    page.click("#back")
    block.drawn()
    np.testing.assert_array_equal(block.labels(), mask)
    page.unroute("**/voxels*")
    page.evaluate("""() => {
        window.heard = [];
        const percent = document.getElementById("busy-percent");
        new MutationObserver(() => heard.push(percent.textContent)).observe(percent, {childList: true}); }""")
    page.click("#another")
    page.click("#open-demo")
    page.wait_for_function("session => !location.hash.endsWith(session)", arg=session)
    block.opened()
    percents = [int(text.removesuffix(" %")) for text in page.evaluate("heard") if text]
    assert percents == sorted(percents) and percents[0] < 20 and percents[-1] > 90


def test_fingers_mark_look_and_enlarge(browser, server: Server, phantoms: Path) -> None:
    tab = Viewer(browser, server.address, touch=True).go()
    try:
        page = tab.page
        tab.upload(phantoms / "phantom.nii.gz")
        at = tab.place(_cursor(tab))
        tab.answered(lambda: page.touchscreen.tap(*at))
        (marked,) = _prompts(server, tab)
        assert marked["positive"] and np.abs(np.subtract(marked["index"], _cursor(tab))).max() == 0
        touch = page.context.new_cdp_session(page)

        def fingers(kind: str, *places: tuple[float, float]) -> None:
            points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        x, y = at
        fingers("touchStart", (x - 20, y), (x + 20, y))
        for width in (30, 40, 60):
            fingers("touchMove", (x - width, y), (x + width, y))
        fingers("touchEnd")
        tab.drawn()
        assert page.evaluate("voxsam.viewer.tiles.camera.zoom") == pytest.approx(3, rel=0.02)
        fingers("touchStart", (x, y))
        fingers("touchMove", (x + 15, y))
        fingers("touchMove", (x + 40, y))
        fingers("touchEnd")
        tab.drawn()
        assert _cursor(tab) != marked["index"]  # one finger looks round
        assert len(_prompts(server, tab)) == 1
    finally:
        tab.close()
    assert tab.faults == []


def test_axe_finds_nothing(viewer: Viewer, server: Server, phantoms: Path, tmp_path: Path) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is absent: run `npm ci` in viewer/")
    page = viewer.page
    page.evaluate(AXE.read_text())

    def check(state: str) -> None:
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        said = [f"{state}: {v['id']} ({v['help']}): {v['nodes'][0]['html'][:200]}" for v in found]
        assert said == []

    check("welcome")
    page.click("#folders button")
    page.wait_for_selector("#browse-list button")
    check("a folder")
    page.keyboard.press("Escape")
    viewer.upload(phantoms / "phantom.nii.gz")
    check("a scan")
    viewer.answered(lambda: page.keyboard.press("Enter"))
    viewer.answered(lambda: page.keyboard.press("n"))
    page.keyboard.press("r")
    start = viewer.place(_cursor(viewer))
    viewer.drag(start, (start[0] + 40, start[1]))
    check("objects and a line")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    page.set_input_files("#choose-files", tmp_path / "broken.nii.gz")
    page.wait_for_selector("#problem:not([hidden])")
    check("a problem")
    page.click("#another")
    check("recent scans")
    # The check can fail: it finds a button without a name.
    page.evaluate("document.getElementById('undo').textContent = ''")
    with pytest.raises(AssertionError, match="button-name"):
        check("planted")
