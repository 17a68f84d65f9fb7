"""Default colours of objects: distinct for any colour vision, bright on the dark page, the same in the browser."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from voxsam.io.segments import COLOURS, in_hex

VIEWER = Path(__file__).resolve().parents[2] / "viewer" / "src"
LEAST_DIFFERENCE = 25.0  # CIE76; some 2 can just be seen side by side
LEAST_CONTRAST = 4.5, 3.0  # WCAG 2.1: of text on the stage (1.4.3), of patches in the panel (1.4.11)
# Machado, Oliveira, Fernandes 2009: linear RGB as seen without one kind of cones.
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def linear(colours) -> NDArray[np.float64]:
    """Linear RGB, 0 to 1, of sRGB (IEC 61966-2-1)."""
    part = np.asarray(colours) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB under D65."""
    share = rgb.clip(0, 1) @ XYZ.T / XYZ.sum(1)
    f = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def nearest(colours, sight: str) -> float:
    seen = lab(linear(colours) @ np.asarray(SIGHTS[sight]).T)
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))


@pytest.mark.parametrize("sight", SIGHTS)
def test_no_two_colours_look_alike(sight):
    assert nearest(COLOURS, sight) > LEAST_DIFFERENCE


def test_the_measure_finds_what_looks_alike():
    """A green and a dull red that few deuteranopes can tell apart, and the ends of the scale."""
    green_and_red = [(0, 158, 115), (170, 120, 120)]
    assert nearest(green_and_red, "deuteranopia") < 5 < LEAST_DIFFERENCE < nearest(green_and_red, "all cones")
    assert nearest([(0, 0, 0), (255, 255, 255)], "all cones") == pytest.approx(100, abs=0.1)


def test_every_colour_stands_out_on_the_dark_stage_and_panel():
    stage, panel = LEAST_CONTRAST
    surfaces = re.findall(r"--(?:back|surface|raised): (#[0-9a-f]{6})", (VIEWER / "style.css").read_text())
    assert len(surfaces) == 3
    for surface, least in [("#000000", stage), *((surface, panel) for surface in surfaces)]:
        dark = linear([int(surface[n : n + 2], 16) for n in (1, 3, 5)]) @ XYZ[1]
        contrast = (linear(COLOURS) @ XYZ[1] + 0.05) / (dark + 0.05)
        assert contrast.min() > least, (surface, contrast.round(1))


def test_the_browsers_own_engine_has_the_same():
    (listed,) = re.findall(r"COLOURS = \[(.*?)\]", (VIEWER / "local" / "session.ts").read_text())
    assert re.findall(r"#\w{6}", listed) == [in_hex(colour) for colour in COLOURS]
