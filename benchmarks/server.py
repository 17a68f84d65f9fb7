"""The server over real HTTP: clicks in a large scan, eight clients at once, a killed client, clicks during learning.

`python -m benchmarks.server [PART ...]` starts `voxsam serve` in its own process, prints a table and, with --json,
writes a file. Every mask that the eight clients get is compared, voxel by voxel, with that of a local session.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.machine import describe_machine
from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.io import read_volume, write_volume
from voxsam.phantoms import make_phantom
from voxsam.project import Project
from voxsam.prompts import Point
from voxsam.resample import resample
from voxsam.volume import Volume
from voxsam.weights import load_model

LARGE = (512, 512, 300)
SMALL, SMALL_SPACING_MM = (96, 96, 48), (2.5, 2.5, 5.0)
CLICKS = 10  # after the first, in the same crop
LEARNED = 3  # cases
PARTS = ("crowd", "killed", "click", "learning")
ALIVE_S = 5.0  # the server's --alive for the killed client
SERVE = "import sys; from voxsam.cli import main; sys.exit(main())"
# A client that listens and clicks until it is killed.
VICTIM = """
import sys, httpx
with httpx.Client(base_url=sys.argv[1], timeout=600) as client:
    sid = client.post("/api/sessions", json={"source": {"folder": "0", "path": "0.nii.gz"}}).json()["id"]
    with client.stream("GET", f"/api/sessions/{sid}/events"):
        print("open", flush=True)
        while True:
            body = {"prompts": [{"kind": "point", "index": [48, 48, 24]}]}
            client.post(f"/api/sessions/{sid}/prompts", json=body)
"""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[httpx.Client, int]]:
    """Run `voxsam serve FOLDER`; yields a client and the server's process id."""
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--port", "0", "--state", str(folder / ".state")]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, "the server did not start"
        try:
            with httpx.Client(base_url=address[0], timeout=600) as client:
                yield client, process.pid
        finally:
            process.terminate()


def open_scan(client: httpx.Client, path: str) -> str:
    """Open a file of the served folder and return the session's id."""
    answer = client.post("/api/sessions", json={"source": {"folder": "0", "path": path}})
    return answer.raise_for_status().json()["id"]


def click(client: httpx.Client, session: str, index: Any) -> tuple[dict[str, Any], float, int]:
    """Click; return the answer, the round-trip seconds, and the bytes transferred."""
    body = {"prompts": [{"kind": "point", "index": [int(i) for i in index]}]}
    start = time.perf_counter()
    answer = client.post(f"/api/sessions/{session}/prompts", json=body).raise_for_status()
    return answer.json(), time.perf_counter() - start, len(answer.content) + len(answer.request.content)


def paste(mask: np.ndarray, answer: dict[str, Any]) -> None:
    """Put the labels of an answer into the mask."""
    box = tuple(map(slice, answer["changed"]["low"], answer["changed"]["high"]))
    labels = zlib.decompress(base64.b64decode(answer["labels"]))
    mask[box] = np.frombuffer(labels, np.uint8).reshape(mask[box].shape, order="F")


def resident_mib(process: int) -> float:
    """The current resident memory of a process, in MiB."""
    line = next(row for row in Path(f"/proc/{process}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


# One client, a large scan


def large_scan(folder: Path) -> list[int]:
    """Write a phantom of 512 x 512 x 300 voxels and return an index in its tumour."""
    phantom = make_phantom(10, (160, 160, 80), (1.5, 1.5, 3.0))
    fine = phantom.scan.grid.respace(
        (np.array(phantom.scan.grid.shape) * phantom.scan.grid.spacing_mm / LARGE).tolist()
    )
    grid = Grid(LARGE, fine.affine)
    write_volume(Volume(resample(phantom.scan, grid).astype(np.int16), grid, "CT"), folder / "large.nii.gz")
    return np.rint(phantom.scan.grid.index_in(grid, phantom.click)).astype(int).tolist()


def measure_clicks(folder: Path) -> dict[str, Any]:
    """Seconds and bytes of the first click in a large scan, and of later ones."""
    place = large_scan(folder)
    with serving(folder) as (client, _):
        session = open_scan(client, "large.nii.gz")
        _, first_s, first_bytes = click(client, session, place)
        later = [click(client, session, np.add(place, (2 * n, n, 0)))[1:] for n in range(1, CLICKS + 1)]
    seconds, sizes = zip(*later, strict=True)
    return {
        "scan": " x ".join(map(str, LARGE)),
        "first_click_s": round(first_s, 3),
        "first_click_bytes": first_bytes,
        "next_click_s_median": round(statistics.median(seconds), 3),
        "next_click_s_worst": round(max(seconds), 3),
        "next_click_bytes_most": max(sizes),
    }


# Eight at once


def places(number: int, centre: Any) -> list[list[int]]:
    """The indices that client `number` clicks repeatedly in its own scan."""
    rng = np.random.default_rng(number)
    return [np.add(centre, rng.integers(-3, 4, 3)).tolist() for _ in range(4)]


def expected(folder: Path, centres: list[Any]) -> list[list[str]]:
    """For each client, the digests of the mask after each of its steps, from a local session."""
    model, found = load_model("voxsam-tiny"), []
    for number, centre in enumerate(centres):
        session = Session(model, read_volume(folder / f"{number}.nii.gz"))
        masks = [session.click(place) for place in places(number, centre)]
        found.append([_digest(mask.array) for mask in (*masks, session.undo())])
    return found


def one_client(address: str, number: int, centre: Any, want: list[str], end: float, tally: dict[str, int]) -> None:
    """Click, undo and reset until `end`; count steps, errors and masks that differ from the expected ones."""
    with httpx.Client(base_url=address, timeout=600) as client:
        session = open_scan(client, f"{number}.nii.gz")
        mask = np.zeros(client.get(f"/api/sessions/{session}").json()["shape"], np.uint8)
        steps: list[Callable[[], dict[str, Any]]] = [
            lambda place=place: click(client, session, place)[0] for place in places(number, centre)
        ]
        steps.append(lambda: client.post(f"/api/sessions/{session}/undo").raise_for_status().json())
        while time.monotonic() < end:
            for step, digest in zip(steps, want, strict=True):
                try:
                    paste(mask, step())
                except (httpx.HTTPError, KeyError) as error:
                    tally["errors"] += 1
                    tally[str(error)[:200]] = tally.get(str(error)[:200], 0) + 1
                    return
                tally["steps"] += 1
                tally["mixed_up"] += _digest(mask) != digest
            paste(mask, client.post(f"/api/sessions/{session}/reset").raise_for_status().json())


def measure_crowd(folder: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Let `clients` click at once for `seconds`: errors, mixed-up masks, and the server's memory late in the run."""
    centres = []
    for number in range(clients):
        phantom = make_phantom(number, SMALL, SMALL_SPACING_MM)
        write_volume(phantom.scan, folder / f"{number}.nii.gz")
        centres.append(phantom.click)
    want, tally, memory = expected(folder, centres), {"steps": 0, "errors": 0, "mixed_up": 0}, []
    with serving(folder) as (client, process):
        end, address = time.monotonic() + seconds, str(client.base_url)
        work = [(address, n, centres[n], want[n], end, tally) for n in range(clients)]
        threads = [threading.Thread(target=one_client, args=one) for one in work]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(resident_mib(process))
            time.sleep(min(1.0, seconds / 20))
    # It grows until the history of every session has reached its limit, and should then stay constant.
    late, last = memory[len(memory) * 3 // 4], memory[-1]
    return {
        "clients": clients,
        "seconds": seconds,
        **tally,
        "memory_mib_three_quarters": round(late),
        "memory_mib_end": round(last),
    }


# A killed client


def measure_killed(folder: Path) -> dict[str, Any]:
    """How long the session of a killed client is kept."""
    write_volume(make_phantom(0, SMALL, SMALL_SPACING_MM).scan, folder / "0.nii.gz")
    with serving(folder, "--alive", str(ALIVE_S)) as (client, _):
        command = [sys.executable, "-c", VICTIM, str(client.base_url)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout and victim.stdout.readline() == "open\n"
            time.sleep(1)
            victim.kill()
        start = time.monotonic()
        while "voxsam_sessions 0.0" not in client.get("/metrics").text:
            time.sleep(0.1)
        return {"time_out_s": ALIVE_S, "freed_after_s": round(time.monotonic() - start, 1)}


# While the model learns


def measure_learning(folder: Path, clicks: int) -> dict[str, Any]:
    """Seconds of a click, wall-clock time and the server's CPU time, without learning and during it.

    Each click waits until learning has resumed after the last one, so that it meets learning at full load.
    """
    (folder / "scans").mkdir()
    phantoms = [make_phantom(number, SMALL, SMALL_SPACING_MM) for number in range(LEARNED + 1)]
    for number, phantom in enumerate(phantoms):
        write_volume(phantom.scan, folder / "scans" / f"{number}.nii.gz")
    project = Project.new(folder / "project", folder / "scans")
    for number, phantom in enumerate(phantoms[:LEARNED]):
        project.done(str(number), phantom.label, [Point.at_index(phantom.scan.grid, phantom.click)])
    centre = np.asarray(phantoms[LEARNED].click)
    with serving(folder / "scans", "--project", str(project.folder), "--learn-minutes", "60") as (client, process):
        source = {"case": str(LEARNED), "reader": "reader"}
        session = client.post("/api/sessions", json={"source": source}).raise_for_status().json()["id"]
        click(client, session, centre)
        quiet = [_timed_click(client, process, session, centre, n) for n in range(clicks)]
        client.post("/api/project/learning").raise_for_status()
        during = []
        for n in range(clicks):
            while not _is_training(client):
                time.sleep(0.5)
            during.append(_timed_click(client, process, session, centre, n))
        client.delete("/api/project/learning").raise_for_status()
    medians = [[statistics.median(part) for part in zip(*found, strict=True)] for found in (quiet, during)]
    (wall_s, cpu_s), (wall_learning_s, cpu_learning_s) = medians
    return {
        "clicks": clicks,
        "click_s": round(wall_s, 3),
        "click_while_learning_s": round(wall_learning_s, 3),
        "times": round(wall_learning_s / wall_s, 2),
        "worst_while_learning_s": round(max(wall for wall, _ in during), 3),
        "cpu_s": round(cpu_s, 3),
        "cpu_while_learning_s": round(cpu_learning_s, 3),
        "cpu_times": round(cpu_learning_s / cpu_s, 2),
    }


def _timed_click(client: httpx.Client, process: int, session: str, centre: Any, n: int) -> tuple[float, float]:
    """Wall-clock seconds until the answer, and the server's processor seconds for it."""
    before = psutil.Process(process).cpu_times()
    _, wall_s, _ = click(client, session, centre + (n % 3 - 1, n // 3 % 3 - 1, 0))
    after = psutil.Process(process).cpu_times()
    client.post(f"/api/sessions/{session}/undo").raise_for_status()
    return wall_s, after.user + after.system - before.user - before.system


def _is_training(client: httpx.Client) -> bool:
    """Whether training steps are running: learning is neither starting nor paused."""
    found = client.get("/api/project").raise_for_status().json()["learning"]
    assert not found["failed"], found["said"]
    return found["stage"] == "running" and found["fraction"] > 0


def _digest(mask: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()


def main() -> None:
    """Measure the parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0, help="that the clients click")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    chosen = parser.parse_args()
    import torch

    results: dict[str, Any] = {"machine": describe_machine(torch.get_num_threads())}
    measured = {
        "crowd": lambda folder: measure_crowd(folder, chosen.clients, chosen.seconds),
        "killed": measure_killed,
        "click": measure_clicks,
        "learning": lambda folder: measure_learning(folder, CLICKS),
    }
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    for part in chosen.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="voxsam-") as name:
            results[part] = measured[part](Path(name))
    for part, facts in results.items():
        print(part)
        for fact, value in facts.items():
            print(f"    {fact:24} {value}")
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
