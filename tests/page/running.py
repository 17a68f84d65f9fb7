"""A server with the page, and a browser to view it, for the tests of the page and its pictures."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from numpy.typing import NDArray

STATIC = Path(__file__).resolve().parents[2] / "src" / "voxsam" / "server" / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# WebGL2 without a graphics card, and no traffic by the browser itself.
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
VIEW = {"width": 1280, "height": 720}
START_S, STOP_S = 300.0, 10.0  # also on a machine that is busy with other work
QUIET_MS = 120_000  # the longest that anything on the page may take
# `voxsam serve` of a project, with another command that learns: the state folder, the port, the project, the command.
SERVE_PROJECT = """
import sys
from pathlib import Path
from voxsam.cli.serve import serve
from voxsam.server.settings import Settings
state, port, project, *command = sys.argv[1:]
serve(Settings(state=Path(state), port=int(port), project=Path(project), learn_command=tuple(command)), False)
"""


class Server:
    """`voxsam serve` in a process of its own; `start` after `stop` starts the same server again."""

    def __init__(self, state: Path, *folders: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        options = ["--port", str(self.port), "--state", str(state), "--threads", "2"]
        self._command = [sys.executable, "-m", "voxsam.cli", "serve", *map(str, folders), *options]
        self._log = (state.parent / "server.log").open("ab")
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.address}healthz", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, Path(self._log.name).read_text()
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def stop(self) -> None:
        """At once, as when the machine goes down: nothing is said to clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None

    def close(self) -> None:
        self.stop()
        self._log.close()

    def ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}api/{path}", timeout=30) as answer:
            return json.load(answer)

    def labels(self, session: str) -> NDArray[np.uint8]:
        """All labels of a session, in the order of the scan's own array."""
        answer = self.ask(f"sessions/{session}/labels?box=full")
        return np.frombuffer(zlib.decompress(base64.b64decode(answer["labels"])), np.uint8).reshape(
            answer["shape"], order="F"
        )


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, run by Playwright, with an empty profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class ProjectServer(Server):
    """A server with a project, in which `learns`, a Python program that is given the project, does the learning."""

    def __init__(self, state: Path, project: Path, learns: str = "") -> None:
        super().__init__(state)
        command = [sys.executable, "-c", learns] if learns else []
        self._command = [sys.executable, "-c", SERVE_PROJECT, str(state), str(self.port), str(project), *command]


class Viewer:
    """The page in a tab, with actions for tests. It notes what must not happen: errors, and requests elsewhere."""

    def __init__(
        self, browser: Any, address: str, view: dict[str, int] = VIEW, touch: bool = False, **options: Any
    ) -> None:
        self.address = address
        self.context = browser.new_context(viewport=view, accept_downloads=True, has_touch=touch, **options)
        self.context.set_default_timeout(QUIET_MS)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.on("request", self._see)

    def _hear(self, message: Any) -> None:
        is_network = "Failed to load resource" in message.text or "ERR_" in message.text  # refusals, restarts
        if message.type == "error" and not is_network:
            self.faults.append(f"console: {message.text}")

    def _see(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.faults.append(f"request: {request.url}")

    def go(self) -> Viewer:
        """Load the page. If it cannot start, fail at once with the page's own message."""
        answer = self.page.goto(self.address)
        assert answer is not None and answer.ok, f"{self.address} is no page (status {answer and answer.status})"
        self.page.wait_for_selector("#welcome:not([hidden]), #problem:not([hidden])")
        assert self.page.is_visible("#welcome"), self.page.inner_text("#problem")
        return self

    def worked_on(self, other_than: str | None = None) -> str:
        """Wait until a scan of the project is shown, another one than `other_than`; its name."""
        script = """other => window.voxsam?.state?.case && voxsam.state.case !== other && voxsam.viewer.isOpen
            && document.getElementById("project").hidden && document.getElementById("busy").hidden"""
        self.page.wait_for_function(script, arg=other_than)
        self.drawn()
        return self.page.evaluate("voxsam.state.case")

    @property
    def session(self) -> str:
        return self.page.evaluate("location.hash").removeprefix("#session=")

    def opened(self) -> None:
        """Wait until a scan is shown. If none is, fail with what the page shows in its place."""
        from playwright.sync_api import TimeoutError as TooLong

        try:
            self.page.wait_for_selector("#panel:not([hidden])")
            self.page.wait_for_selector("#welcome", state="hidden")
        except TooLong as error:
            seen = {name: self.page.inner_text(name) for name in ("#busy", "#problem", "#scan", "#welcome")}
            raise AssertionError(f"no scan is shown: {self.page.url}, {seen}, {self.faults}") from error
        self.drawn()

    def upload(self, *files: Path) -> None:
        self.page.set_input_files("#choose-files", files)
        self.opened()

    def drop(self, path: Path) -> None:
        """Drop a file or a folder on the stage, as from the system's file manager."""
        stage = self.page.locator("#stage").bounding_box()
        assert stage is not None
        place = {"x": stage["x"] + stage["width"] / 2, "y": stage["y"] + stage["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        session = self.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})
        session.detach()

    def drop_disc(self, disc: Path) -> None:
        """Drop the disc of `write_disc`, which has two series, and choose the shorter one from the list."""
        self.drop(disc)
        self.page.wait_for_selector("#choose-series[open]")
        rows = self.page.locator("#series button")
        assert rows.count() == 2 and all("CT · " in text and " images" in text for text in rows.all_inner_texts())
        rows.filter(has_text="3 images").click()
        self.opened()

    def answered(self, act: Any) -> None:
        """Do something, and wait for the server's answer and for its drawing."""
        with self.page.expect_response(
            lambda response: "/api/sessions/" in response.url and response.request.method != "GET"
        ):
            act()
        self.page.wait_for_selector("#busy", state="hidden")
        self.drawn()

    def drawn(self) -> None:
        """Wait for the planes to be drawn."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def look_at(self, index: tuple[int, int, int]) -> None:
        self.page.evaluate("index => voxsam.viewer.moveTo(index)", list(index))
        self.drawn()

    def place(self, index: tuple[float, float, float], plane: str = "axial") -> tuple[float, float]:
        """Where a voxel is on the screen, once its slice is shown."""
        script = """([index, plane]) => {
            const {x, y} = voxsam.viewer.tiles.projector(plane)(index);
            const {left, top} = document.getElementById("planes").getBoundingClientRect();
            return [left + x, top + y]; }"""
        return tuple(self.page.evaluate(script, [list(index), plane]))

    def drag(self, start: tuple[float, float], *way: tuple[float, float], button: str = "left") -> None:
        """Press, go to places on the screen one after another, let go."""
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down(button=button)
        if len(way) == 1:
            mouse.move((start[0] + way[0][0]) / 2, (start[1] + way[0][1]) / 2)
        for place in way:
            mouse.move(*place)
        mouse.up(button=button)
        self.drawn()

    def pane(self, name: str) -> dict[str, float]:
        """Where a pane lies on the screen."""
        script = """name => {
            const {left, top} = document.getElementById("planes").getBoundingClientRect();
            const {x, y, width, height} = voxsam.viewer.tiles.rect(name);
            return {x: left + x, y: top + y, width, height}; }"""
        return self.page.evaluate(script, name)

    def picture(self, name: str) -> NDArray[np.float32]:
        """The pixels of a pane, (rows, columns, 3) from 0 to 1."""
        self.drawn()
        png = self.page.screenshot(clip=self.pane(name))
        return matplotlib.image.imread(io.BytesIO(png))[..., :3]

    def labels(self) -> NDArray[np.uint8]:
        """The labels drawn, in the order of the scan's own array: read voxel by voxel, like the read-out."""
        script = """() => {
            const {viewer} = voxsam, [ni, nj, nk] = viewer.orientation.shape, out = [];
            for (let k = 0; k < nk; k++) for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++)
                if (viewer.labelAt([i, j, k])) out.push(i, j, k, viewer.labelAt([i, j, k]));
            return [[ni, nj, nk], out]; }"""
        shape, found = self.page.evaluate(script)
        labels = np.zeros(shape, np.uint8)
        i, j, k, values = np.array(found, int).reshape(-1, 4).T
        labels[i, j, k] = values
        return labels

    def close(self) -> None:
        self.context.close()
