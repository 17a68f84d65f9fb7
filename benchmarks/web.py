"""The page that needs no server, in Chromium: seconds to the first mask, of clicks on one and two threads; memory.

    make web && python -m benchmarks.web [--scan CT] [-o web.json]

The same clicks are also timed natively in the same run. Nothing else may use the machine's processors meanwhile. The
scan is a phantom of 512 x 512 x 119 voxels, or a file and a click in it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from tests.page.running import chromium
from tests.web.golden import VIEWER
from tests.web.serving import LocalViewer, web_space
from voxsam import Session, load_model, read_volume
from voxsam.io import write_volume
from voxsam.phantoms import make_phantom
from voxsam.volume import Volume

FOLDER = Path(__file__).resolve().parents[1] / "dist" / "web"
BESIDE = 4  # voxels from the first click to each of the others


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what `make web` built")
    parser.add_argument("--scan", type=Path, help="a CT; default: a phantom")
    parser.add_argument("--click", type=int, nargs=3, help="a voxel in its tumour")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if stale := _stale(options.folder):
        parser.error(stale)
    with tempfile.TemporaryDirectory() as folder:
        path, click = (options.scan, _voxel(options.click)) if options.scan else _phantom(Path(folder))
        found = {"machine": describe_machine(2), "scan": list(read_volume(path).grid.shape)}
        found |= {f"threads_{n}": _in_browser(options.folder, path, click, n) for n in (1, 2)}
        found["native"] = _native(path, click)
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def _stale(folder: Path) -> str:
    """Why a folder is not an up-to-date build, and what to do; "" if it is."""
    page = folder / "index.html"
    if not page.is_file():
        return f"{folder} holds no page; expected what `make web` builds: run it, or name the folder with --folder"
    newest = max(VIEWER.joinpath("src").rglob("*.*"), key=lambda file: file.stat().st_mtime)
    if newest.stat().st_mtime > page.stat().st_mtime:
        return f"{folder} is older than {newest.name}; expected a folder of this version: run `make web` again"
    return ""


def _phantom(folder: Path) -> tuple[Path, tuple[int, int, int]]:
    """Write a phantom of 512 x 512 x 119 voxels of 0.8 x 0.8 x 2.5 mm, with noise in every voxel, and a click in it."""
    phantom = make_phantom(1, (128, 128, 119), (3.2, 3.2, 2.5))
    array = phantom.scan.array.repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng(1).standard_normal(array.shape, dtype=np.float32)
    grid = phantom.scan.grid.respace(np.divide(phantom.scan.grid.spacing_mm, (4, 4, 1)).tolist())
    write_volume(Volume(array + (12 * noise).astype(np.int16), grid, "CT"), folder / "ct.nii.gz")
    i, j, k = phantom.click
    return folder / "ct.nii.gz", (4 * i, 4 * j, k)


def _voxel(numbers: list[int]) -> tuple[int, int, int]:
    i, j, k = numbers
    return i, j, k


def _clicks(click: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    i, j, k = click
    return [click, (i + BESIDE, j, k), (i, j + BESIDE, k), (i - BESIDE, j, k)]


def _in_browser(folder: Path, scan: Path, click: tuple[int, int, int], threads: int) -> dict[str, Any]:
    """Wall-clock seconds that the user waits, processor seconds of the tab, bytes transferred and memory."""
    with web_space(folder) as space, _tab(space.address, threads) as viewer:
        start = time.perf_counter()
        viewer.go()
        loaded_s = time.perf_counter() - start
        if threads > 1:
            viewer.isolated()
        threads_used = min(threads, viewer.page.evaluate("crossOriginIsolated ? navigator.hardwareConcurrency : 1"))
        start = time.perf_counter()
        viewer.upload(scan)
        opened_s = time.perf_counter() - start
        waits, cpu = [], []
        for n, index in enumerate(_clicks(click), 1):
            viewer.look_at(index)
            place = viewer.place(index)
            start, cpu_start = time.perf_counter(), _renderer(viewer).cpu_s
            marks = f"{n} mark{'s' if n > 1 else ''}"
            viewer.went(lambda place=place: viewer.page.mouse.click(*place), marks)
            waits.append(time.perf_counter() - start)
            cpu.append(_renderer(viewer).cpu_s - cpu_start)
        return {
            "threads": threads_used,
            "page_loaded_s": round(loaded_s, 2),
            "scan_opened_s": round(opened_s, 2),
            "page_loaded_to_first_mask_s": round(loaded_s + opened_s + waits[0], 2),
            "first_click_s": round(waits[0], 2),
            "next_click_s": round(median(waits[1:]), 2),
            "first_click_cpu_s": round(cpu[0], 2),
            "next_click_cpu_s": round(median(cpu[1:]), 2),
            "transfer_mb": round(space.sent_bytes / 1e6, 1),
            "tab_memory_mb": _renderer(viewer).memory_mb,
        }


@contextmanager
def _tab(address: str, threads: int) -> Iterator[LocalViewer]:
    with chromium() as browser:
        viewer = LocalViewer(browser, address, service_workers="allow" if threads > 1 else "block")
        try:
            yield viewer
        finally:
            viewer.close()


@dataclass(frozen=True)
class _Process:
    """The tab's process, including workers: resident memory, and processor seconds so far."""

    memory_mb: int
    cpu_s: float


def _renderer(viewer: LocalViewer) -> _Process:
    session = viewer.page.context.browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return max((_process(one["id"]) for one in processes if one["type"] == "renderer"), key=lambda one: one.memory_mb)


def _process(number: int) -> _Process:
    status = Path(f"/proc/{number}/status").read_text().splitlines()
    resident_kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    times = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]
    return _Process(resident_kb // 1000, sum(map(int, times)) / os.sysconf("SC_CLK_TCK"))


def _native(scan: Path, click: tuple[int, int, int]) -> dict[str, Any]:
    """The same clicks in Python, on one thread and on two."""
    found: dict[str, Any] = {}
    model, volume = load_model("voxsam-tiny"), read_volume(scan)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        Session(model, volume).click(click)  # warms up
        session, seconds = Session(model, volume), []
        for index in _clicks(click):
            start = time.perf_counter()
            session.click(index)
            seconds.append(time.perf_counter() - start)
        found[f"threads_{threads}"] = {
            "first_click_s": round(seconds[0], 2),
            "next_click_s": round(median(seconds[1:]), 2),
        }
    return found


if __name__ == "__main__":
    main()
