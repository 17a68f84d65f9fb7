"""The generated scan that `voxsam demo` clicks and the page offers."""

from __future__ import annotations

from voxsam.phantoms.phantoms import Phantom, make_phantom

SHAPE, SPACING_MM, SEED = (160, 160, 80), (1.5, 1.5, 3.0), 10


def demo_phantom(seed: int = SEED) -> Phantom:
    """A CT of 160 x 160 x 80 voxels with one tumour, the tumour's mask, and a click in it."""
    return make_phantom(seed, SHAPE, SPACING_MM)
