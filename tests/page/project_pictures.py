"""Take the pictures of docs/project.md: python -m tests.page.project_pictures

Everything on them is generated: no patient is shown, and the model on offer is the start model under another name.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.page.pictures import FOLDER, Photographer
from tests.page.running import ProjectServer, Viewer, chromium
from voxsam.io import write_volume
from voxsam.phantoms import Phantom, make_phantom
from voxsam.project import Project
from voxsam.project.records import Gate, LearnedModel, now
from voxsam.prompts import Point
from voxsam.weights.registry import find_model

SCAN = (96, 96, 48), (2.5, 2.5, 5.0)
CLICKS = (6, 7, 5, 4, 6)  # of the scans that are done
LEFT = 2  # scans that are not


def make_project(folder: Path) -> tuple[Project, list[Phantom]]:
    """A project of which most is done, with an offer."""
    phantoms = [make_phantom(seed, *SCAN) for seed in range(10, 10 + len(CLICKS) + LEFT)]
    (folder / "scans").mkdir()
    for number, phantom in enumerate(phantoms):
        write_volume(phantom.scan, folder / "scans" / f"patient-{number + 1:02}.nii.gz")
    project = Project.new(folder / "sarcomas", folder / "scans")
    for scan, phantom, count in zip(project.scans, phantoms, CLICKS, strict=False):
        places = [np.add(phantom.click, (n % 2, n // 2, 0)).tolist() for n in range(count)]
        clicks = [Point.at_index(phantom.scan.grid, place) for place in places]
        reader = "ben" if count % 2 else "anna"
        project.done(scan.name, phantom.label, clicks, reader=reader, seconds=30.0 * count, scan=phantom.scan)
    project.skip(project.scans[-1].name, "ben")
    cases = {scan.name: scan.content for scan in project.scans[: len(CLICKS)]}
    after = [3, 4, 4, 2, 3]
    gate = Gate(
        dice=0.85,
        limit=10,
        before=dict(zip(cases, CLICKS, strict=True)),
        after=dict(zip(cases, after, strict=True)),
    )
    name, weights = "learned-5", folder / "learned-5.safetensors"
    shutil.copyfile(find_model(project.settings.start), weights)
    made = {"name": name, "made": now(), "start": project.settings.start, "cases": cases, "seen": len(cases)}
    model = LearnedModel(**made, steps=300, minutes=18.2, gate=gate, state="offered")
    project.keep_model(model, weights)
    return project, phantoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        project, phantoms = make_project(Path(temporary))
        server = ProjectServer(Path(temporary) / "state", project.folder)
        server.start()
        try:
            viewer = Viewer(browser, server.address)
            picture, page = Photographer(viewer, options.output, "project"), viewer.page
            page.goto(server.address)
            page.wait_for_selector("#cases .pick")
            page.fill("#reader", "anna")
            page.click("#project-next")
            name = viewer.worked_on()
            phantom = next(p for scan, p in zip(project.scans, phantoms, strict=True) if scan.name == name)
            viewer.look_at(phantom.click)
            viewer.answered(lambda: page.mouse.click(*viewer.place(phantom.click)))
            page.add_style_tag(content="#took { visibility: hidden }")  # how long it took is this machine's affair
            picture.take("scan")
            page.click("#case-list")
            page.wait_for_function("[...document.querySelectorAll('#cases img')].every(image => image.complete)")
            picture.take("list", still_ms=5000)
            viewer.close()
        finally:
            server.close()


if __name__ == "__main__":
    main()
