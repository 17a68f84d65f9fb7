"""Take the pictures of docs/viewer.md, and measure a click from the page's side: python -m tests.page.pictures

Everything on them is generated: no patient is shown.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from pathlib import Path

import PIL.Image

from tests.page.running import Server, Viewer, chromium
from voxsam.io import write_volume
from voxsam.phantoms import Phantom, make_phantom

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
COLOURS = 200  # of a picture's palette: what keeps it small
STILL_MS = 1500  # for the 3D view
SCAN = (160, 160, 80), (1.5, 1.5, 3.0)
SEED = 10
CLICKS = 12  # that are timed, after two


class Photographer:
    """Writes what the page shows to docs/images."""

    def __init__(self, viewer: Viewer, folder: Path, prefix: str = "viewer") -> None:
        self.viewer, self.folder, self.prefix = viewer, folder, prefix

    def take(self, name: str, still_ms: float = STILL_MS) -> None:
        self.viewer.page.wait_for_timeout(still_ms)
        picture = PIL.Image.open(io.BytesIO(self.viewer.page.screenshot())).convert("RGB")
        path = self.folder / f"{self.prefix}-{name}.png"
        few = picture.quantize(COLOURS, method=PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
        few.save(path, optimize=True)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def photograph(viewer: Viewer, phantom: Phantom, folder: Path) -> None:
    """The states of the page, one after another."""
    page, picture = viewer.page, Photographer(viewer, folder)
    picture.take("empty")
    page.click("#folders button")
    page.click("#browse-list button:has-text('phantom.nii.gz')")
    viewer.opened()
    picture.take("loaded")
    viewer.look_at(phantom.click)
    page.mouse.click(*viewer.place(phantom.click))
    page.wait_for_selector("#busy-fraction[value]")
    picture.take("computing", still_ms=0)
    page.wait_for_selector("#took:not(:empty)")
    viewer.drawn()
    picture.take("clicked")
    _correct(viewer, phantom)
    page.locator("#objects summary").click()
    page.click("text=Show the diameters' slice")
    page.locator("#objects summary").click()
    picture.take("corrected")
    viewer.look_at(phantom.click)
    _paint(viewer, phantom)
    picture.take("brush", still_ms=0)
    page.mouse.up()
    page.wait_for_selector("#busy", state="hidden")
    _second_object(viewer, phantom)
    picture.take("objects")
    page.get_by_role("button", name="Delete Node").click()
    page.wait_for_selector("#objects .pick:has-text('Node')", state="detached")
    page.locator("#objects .pick").first.click()
    viewer.look_at(phantom.click)
    _draw_box(viewer, phantom)
    picture.take("box")
    page.keyboard.press("Escape")
    _measure_line(viewer, phantom)
    picture.take("measured")
    page.keyboard.press("0")
    page.keyboard.press("f")
    page.keyboard.press("c")
    page.evaluate("voxsam.view.setLayout('render')")
    picture.take("3d")
    page.keyboard.press("h")
    picture.take("surface")
    page.keyboard.press("h")
    page.evaluate("voxsam.view.setLayout('all')")
    page.click("#another")
    picture.take("recent")
    page.click("#back")
    page.keyboard.press("?")
    picture.take("help")
    page.keyboard.press("Escape")
    with tempfile.TemporaryDirectory() as broken:
        (Path(broken) / "notes.nii.gz").write_text("no scan")
        page.set_input_files("#choose-files", Path(broken) / "notes.nii.gz")
        page.wait_for_selector("#problem:not([hidden])")
        picture.take("error")
    page.click("#problem-close")


def _correct(viewer: Viewer, phantom: Phantom) -> None:
    """A click that adds and one that removes, where mask and truth differ most in the shown slice."""
    k = phantom.click[2]
    for positive, button in ((True, "left"), (False, "right")):
        drawn, truth = viewer.labels()[..., k] > 0, phantom.label.array[..., k] > 0
        wrong = truth & ~drawn if positive else drawn & ~truth
        if wrong.sum() < 10:
            continue
        from scipy.ndimage import distance_transform_edt

        depth = distance_transform_edt(wrong)
        i, j = divmod(int(depth.argmax()), depth.shape[1])
        viewer.answered(lambda at=(i, j, k), button=button: viewer.page.mouse.click(*viewer.place(at), button=button))


def _paint(viewer: Viewer, phantom: Phantom) -> None:
    """A stroke of the brush along the mask's edge; the button is still down."""
    page = viewer.page
    i, j, k = phantom.click
    edge = i + int(viewer.labels()[i:, j, k].nonzero()[0].max(initial=0))
    page.keyboard.press("a")
    page.mouse.move(*viewer.place((edge, j - 6, k)))
    page.mouse.down()
    for step in range(-5, 7):
        page.mouse.move(*viewer.place((edge + 1, j + step, k)))
    viewer.drawn()


def _second_object(viewer: Viewer, phantom: Phantom) -> None:
    """Another object beside the first, named and typed, its details open."""
    page = viewer.page
    i, j, k = phantom.click
    viewer.answered(lambda: page.keyboard.press("n"))
    page.locator("#radius").fill("7")
    page.check("#ball")
    viewer.answered(lambda: page.mouse.click(*viewer.place((i - 26, j + 14, k))))
    page.keyboard.press("c")
    page.locator("#objects summary").click()
    page.get_by_label("Name", exact=True).fill("Node")
    viewer.answered(lambda: page.get_by_label("Name", exact=True).press("Enter"))
    viewer.answered(lambda: page.get_by_label("Type").select_option("Lymph Node"))
    page.focus("#planes")


def _measure_line(viewer: Viewer, phantom: Phantom) -> None:
    """Enlarged about the tumour, the mask as an outline, a line across it."""
    page = viewer.page
    page.keyboard.press("f")
    page.mouse.move(*viewer.place(phantom.click))
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    viewer.drawn()
    page.keyboard.press("r")
    i, j, k = phantom.click
    (x0, y0), (x1, y1) = (viewer.place(end) for end in ((i - 9, j - 7, k), (i + 9, j + 7, k)))
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=3)
    page.mouse.up()


def _draw_box(viewer: Viewer, phantom: Phantom) -> None:
    inside = phantom.label.array.nonzero()
    k = phantom.click[2]
    corners = [(int(inside[0].min()), int(inside[1].min()), k), (int(inside[0].max()), int(inside[1].max()), k)]
    (x0, y0), (x1, y1) = (viewer.place(corner) for corner in corners)
    page = viewer.page
    page.keyboard.press("b")
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
    page.mouse.move(x1, y1)
    page.mouse.up()


def measure(viewer: Viewer, phantom: Phantom) -> None:
    """Print how long clicks after the first take, from the press of the button to the mask on the screen."""
    page = viewer.page
    viewer.look_at(phantom.click)
    i, j, k = phantom.click
    for n in range(CLICKS + 2):
        viewer.answered(lambda at=(i + n % 4, j + n // 4, k): page.mouse.click(*viewer.place(at)))
        page.wait_for_timeout(STILL_MS)
    took = page.evaluate("performance.getEntriesByName('voxsam:click').map(entry => entry.duration)")[2:]
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').filter(({name}) => name.endsWith('/prompts'))"
        ".map(entry => [entry.duration, entry.transferSize])"
    )[2:]
    print(f"page to page: median {statistics.median(took):.0f} ms, longest {max(took):.0f} ms of {len(took)} clicks")
    print(f"of it the request: median {statistics.median(ms for ms, _ in sizes):.0f} ms")
    print(f"an answer: at most {max(size for _, size in sizes) / 1000:.1f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    parser.add_argument("--only-measure", action="store_true")
    options = parser.parse_args()
    phantom = make_phantom(SEED, *SCAN)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        scans = Path(temporary) / "scans"
        scans.mkdir()
        write_volume(phantom.scan, scans / "phantom.nii.gz")
        server = Server(Path(temporary) / "state", scans)
        server.start()
        try:
            viewer = Viewer(browser, server.address).go()
            if not options.only_measure:
                photograph(viewer, phantom, options.output)
                viewer = Viewer(browser, server.address).go()
            viewer.page.click("#folders button")
            viewer.page.click("#browse-list button:has-text('phantom.nii.gz')")
            viewer.opened()
            measure(viewer, phantom)
        finally:
            server.close()


if __name__ == "__main__":
    main()
