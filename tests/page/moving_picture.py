"""Make the README's animation of a scan that is dropped and clicked: python -m tests.page.moving_picture

Everything on it is generated: no patient is shown.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from tests.page.running import Server, Viewer, chromium
from voxsam.io import write_volume
from voxsam.phantoms import make_phantom

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "click.gif"
SCAN = (160, 160, 80), (1.5, 1.5, 3.0)
SEED = 10
WIDTH = 800  # pixels of the picture; the page is shown at its own size and made smaller
COLOURS = 128  # of the palette
DROP = """async ([name, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.elementFromPoint(640, 360).dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


class Film:
    """Pictures of the page with a pointer drawn on them, and how long each of them is shown."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.frames: list[tuple[PIL.Image.Image, int]] = []

    def take(self, shown_ms: int, pointer: tuple[float, float], carries: str = "", pressed: bool = False) -> None:
        picture = PIL.Image.open(io.BytesIO(self.viewer.page.screenshot())).convert("RGB")
        draw = PIL.ImageDraw.Draw(picture)
        x, y = pointer
        if carries:
            draw.rounded_rectangle((x + 14, y + 10, x + 200, y + 46), 6, "#e4e7eb", "#52606d", 2)
            draw.text((x + 28, y + 18), carries, "#1f2933", font_size=18)
        if pressed:
            draw.ellipse((x - 16, y - 16, x + 16, y + 16), outline="#f0b429", width=4)
        arrow = [(0, 0), (0, 26), (7, 20), (12, 31), (17, 29), (12, 18), (21, 18)]
        draw.polygon([(x + a, y + b) for a, b in arrow], "#ffffff", "#000000")
        height = round(picture.height * WIDTH / picture.width)
        self.frames.append((picture.resize((WIDTH, height), PIL.Image.Resampling.LANCZOS), shown_ms))

    def save(self, path: Path) -> None:
        """One palette for all frames, taken from the last, which shows most colours."""
        palette = self.frames[-1][0].quantize(COLOURS, method=PIL.Image.Quantize.MAXCOVERAGE)
        few = [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame, _ in self.frames]
        durations = [shown_ms for _, shown_ms in self.frames]
        few[0].save(path, save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=True)


def film(viewer: Viewer, scan: Path, index: tuple[int, int, int]) -> Film:
    """Drop, look, click, mask."""
    page, taken = viewer.page, Film(viewer)
    for x, y in ((1180, 640), (1000, 540), (820, 440), (660, 370)):
        taken.take(900 if x == 1180 else 120, (x, y), carries=scan.name)
    page.evaluate(DROP, [scan.name, base64.b64encode(scan.read_bytes()).decode()])
    viewer.opened()
    viewer.look_at(index)
    page.wait_for_timeout(1500)
    end = viewer.place(index)
    for step in range(4):
        at = tuple(start + (goal - start) * step / 3 for start, goal in zip((660, 370), end, strict=True))
        taken.take(700 if step == 0 else 150, (at[0], at[1]))
    taken.take(500, end, pressed=True)
    viewer.answered(lambda: page.mouse.click(*end))
    page.add_style_tag(content="#took { visibility: hidden }")  # how long it took is this machine's affair
    viewer.drawn()
    page.mouse.move(1200, 690)
    page.wait_for_timeout(1500)
    taken.take(3500, (end[0] + 60, end[1] + 60))
    return taken


def main() -> None:
    phantom = make_phantom(SEED, *SCAN)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        scan = Path(temporary) / "ct.nii.gz"
        write_volume(phantom.scan, scan)
        server = Server(Path(temporary) / "state")
        server.start()
        try:
            film(Viewer(browser, server.address).go(), scan, phantom.click).save(OUTPUT)
        finally:
            server.close()
    print(f"{OUTPUT}  {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
