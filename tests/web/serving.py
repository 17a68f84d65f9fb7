"""The folder of `make web`, and a plain server for it, like any web space: no special headers, below a path."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.page.running import Viewer
from tests.web.golden import VIEWER


def build(model: Path, demo: Path, folder: Path) -> None:
    """Build the page with an exported model and a demo scan into a folder."""
    environment = {**os.environ, "VOXSAM_MODEL_FOLDER": str(model), "VOXSAM_DEMO_SCAN": str(demo)}
    command = ["npx", "vite", "build", "--mode", "web", "--outDir", str(folder), "--emptyOutDir", "--logLevel", "error"]
    subprocess.run(command, cwd=VIEWER, env=environment, check=True)


class WebSpace:
    """Serves the parent of `folder`, so that the page is below a path. `paths` are those that the page requested.

    The browser itself checks for a newer service worker at any time.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self.sent_bytes = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, self, directory=str(folder.parent)))
        self.port = self.server.server_port
        self.address = f"http://127.0.0.1:{self.port}/{folder.name}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, space: WebSpace, *args: Any, **options: Any) -> None:
        self.space = space
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        if not self.path.endswith("/service-worker.js"):
            self.space.paths.append(self.path)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self.space.sent_bytes += os.fstat(source.fileno()).st_size
        super().copyfile(source, outputfile)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_space(folder: Path) -> Iterator[WebSpace]:
    space = WebSpace(folder)
    try:
        yield space
    finally:
        space.close()


class LocalViewer(Viewer):
    """The page with its engine in the browser."""

    def went(self, act: Any, counted: str) -> None:
        """Do something, and wait until the current object's line has these words and nothing is running."""
        act()
        self.page.wait_for_selector(f"#objects :text('{counted}')")
        self.page.wait_for_selector("#busy", state="hidden")
        self.drawn()

    def isolated(self) -> LocalViewer:
        """Wait until the service worker controls the page and has reloaded it, so that it has threads."""
        self.page.wait_for_function("() => crossOriginIsolated && navigator.serviceWorker.controller !== null")
        self.page.wait_for_selector("#welcome:not([hidden])")
        return self

    def saved(self, button: str, path: Path) -> Path:
        with self.page.expect_download() as download:
            self.page.click(button)
        download.value.save_as(path)
        return path
