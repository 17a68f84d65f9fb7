"""Opening a large CT in the page, from a served folder: seconds until it is shown and complete, and stalls meanwhile.

    make viewer && python -m benchmarks.opening [--slices 600] [-o opening.json]

Seconds are wall-clock time, so nothing else may use the machine's processors; `*_cpu_s` are processor time. The scan is
a phantom with slices of 512 x 512 voxels and noise in every voxel, as .nii.gz.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import describe_machine
from tests.page.running import Server, Viewer, chromium
from voxsam.io import write_volume
from voxsam.phantoms import make_phantom
from voxsam.volume import Volume

SLICES, FINER = 600, 4  # FINER: voxels within a slice for one of the phantom's, along each side
NAME = "large.nii.gz"
ASK_S = 0.2  # between two requests to the server
# The longest time for which the page was blocked.
WATCH = """() => {
    window.longestGap = 0;
    let before = performance.now();
    setInterval(() => {
        const now = performance.now();
        window.longestGap = Math.max(window.longestGap, now - before);
        before = now;
    }, 10); }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found = {"machine": describe_machine(2), **measure(options.slices)}
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def measure(slices: int, finer: int = FINER) -> dict[str, Any]:
    """Open a phantom with slices of 128 times `finer` voxels a side, and wait until it is complete."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        scans = Path(folder) / "scans"
        scans.mkdir()
        shape = write_scan(scans / NAME, slices, finer)
        server = Server(Path(folder) / "state", scans)
        server.start()
        try:
            viewer = Viewer(browser, server.address).go()
            viewer.page.evaluate(WATCH)
            viewer.page.click("#folders button")
            before = _cpu_s(server, viewer)
            with asking(server) as answers:
                start = time.perf_counter()
                viewer.page.click(f"#browse-list button:has-text('{NAME}')")
                viewer.opened()
                shown_s = time.perf_counter() - start
                viewer.page.wait_for_selector("#arriving", state="hidden")
                whole_s = time.perf_counter() - start
            after = _cpu_s(server, viewer)
            gap_ms = viewer.page.evaluate("longestGap")
        finally:
            server.close()
        return {
            "shape": shape,
            "file_mb": round((scans / NAME).stat().st_size / 1e6, 1),
            "shown_s": round(shown_s, 2),
            "whole_s": round(whole_s, 2),
            "page_longest_stall_s": round(gap_ms / 1000, 2),
            "server_longest_answer_s": round(max(answers), 2),
            "server_cpu_s": round(after[0] - before[0], 2),
            "browser_cpu_s": round(after[1] - before[1], 2),
        }


def write_scan(path: Path, slices: int, finer: int) -> list[int]:
    """Write the phantom and return its shape."""
    phantom = make_phantom(1, (128, 128, slices), (3.2, 3.2, 1.0))
    array = phantom.scan.array.repeat(finer, 0).repeat(finer, 1)
    rng = np.random.default_rng(1)
    for k in range(slices):
        array[:, :, k] += (12 * rng.standard_normal(array.shape[:2], dtype=np.float32)).astype(np.int16)
    grid = phantom.scan.grid.respace(np.divide(phantom.scan.grid.spacing_mm, (finer, finer, 1)).tolist())
    write_volume(Volume(array, grid, "CT"), path)
    return list(array.shape)


@contextmanager
def asking(server: Server) -> Iterator[list[float]]:
    """Poll the server with a small request; yields the list of seconds that each answer took."""
    took, end = [], threading.Event()

    def ask() -> None:
        while True:
            start = time.perf_counter()
            urllib.request.urlopen(f"{server.address}healthz", timeout=300).close()
            took.append(time.perf_counter() - start)
            if end.wait(ASK_S):
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield took
    finally:
        end.set()
        thread.join()


def _cpu_s(server: Server, viewer: Viewer) -> tuple[float, float]:
    """Processor seconds so far: of the server with its finished reading processes, and of the browser."""
    own = psutil.Process(server.pid).cpu_times()
    session = viewer.page.context.browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return own.user + own.system + own.children_user + own.children_system, sum(one["cpuTime"] for one in processes)


if __name__ == "__main__":
    main()
