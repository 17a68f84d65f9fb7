"""Baselines without training as rows of a comparison: random walker and region growing from the same clicks."""

from __future__ import annotations

from functools import partial

from voxsam.lab.evaluation.systems import CLASSICAL, SIDE, SPACING_MM, System
from voxsam.lab.systems.compared import About, ComparedSystem, Job, Log, register

CUBE = f"it sees a cube of {SIDE * SPACING_MM:.0f} mm about the first click, at {SPACING_MM:g} mm"
ABOUTS = {
    "random-walker": About(
        title="Random walker",
        paper="Grady, Random Walks for Image Segmentation, IEEE TPAMI 2006",
        source="https://scikit-image.org",
        licence="BSD-3-Clause",
        library="scikit-image",
        differences=f"{CUBE}; the cube's faces count as negative clicks",
        trained=False,
        note=f"not trained; {CUBE}",
    ),
    "region-growing": About(
        title="Region growing",
        paper="ITK's ConfidenceConnectedImageFilter, ITK Software Guide",
        source="https://itk.org",
        licence="Apache-2.0",
        library="SimpleITK",
        differences=CUBE,
        trained=False,
        note=f"not trained; {CUBE}",
    ),
}


class Classic(ComparedSystem):
    """A system of voxsam.lab.evaluation.systems.CLASSICAL."""

    def __init__(self, name: str) -> None:
        self.name, self.about = name, ABOUTS[name]

    def train(self, job: Job, log: Log) -> None:
        """Do nothing: there is nothing to train."""

    def load(self, job: Job) -> System:
        """The system as it is."""
        return CLASSICAL[self.name]()

    def tuned_parameters(self, job: Job) -> int:
        """Zero: nothing is trained."""
        return 0


for _name in ABOUTS:
    register(_name)(partial(Classic, _name))
