"""Display in a notebook: planes to scale, mask and clicks in the right places; the voxels for the viewer."""

from __future__ import annotations

import gzip
import io
import sys

import nibabel as nib
import numpy as np
import pytest
from known_model import KnownModel, block_scan, oblique, upright
from PIL import Image

from voxsam.errors import FileError, GeometryError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.report.figures import DPI, SIZE_INCHES, picture
from voxsam.volume import Volume

RED, BLUE, GREEN = (255, 90, 95), (105, 255, 240), (77, 255, 136)  # first object, second object, positive click


def pixels(shown) -> np.ndarray:
    """(rows, columns, 3) of a picture."""
    return np.asarray(Image.open(io.BytesIO(shown._repr_png_())).convert("RGB")).astype(int)


def panels(shown) -> list[np.ndarray]:
    """The axial, coronal and sagittal parts of the picture, without the line of text."""
    image = pixels(shown)[: int(0.925 * SIZE_INCHES[1] * DPI)]
    return np.array_split(image, 3, axis=1)


def extent(image, colour, tolerance=30) -> np.ndarray:
    """(height, width) of the extent of pixels of about this colour; 0 if there are none."""
    at = np.argwhere(np.abs(image - colour).max(-1) < tolerance)
    return np.ptp(at, axis=0) if len(at) else np.zeros(2)


def ball(spacing, shape, radius_mm=20.0) -> tuple[Volume, Volume, tuple[int, ...]]:
    grid = Grid.from_spacing(shape, spacing)
    middle = tuple(n // 2 for n in shape)
    offsets = (np.moveaxis(np.indices(shape), 0, -1) - middle) * spacing
    inside = (np.linalg.norm(offsets, axis=-1) <= radius_mm).astype(np.uint8)
    scan = Volume((inside * 60 + np.random.default_rng(0).integers(0, 40, shape)).astype(np.int16), grid, "CT")
    return scan, scan.with_array(inside, "SEG"), middle


def test_a_ball_is_round_and_of_one_size_in_all_planes_whatever_the_voxels():
    scan, mask, middle = ball((0.8, 1.6, 4.0), (100, 60, 40))
    shown = picture(scan, mask, [(middle, True)])
    assert pixels(shown).shape == (344, 960, 3)
    sizes = np.array([extent(panel, RED) for panel in panels(shown)])
    assert sizes.min() > 60
    assert np.ptp(sizes) <= 0.15 * sizes.mean()  # a plane of voxels of 4 mm is a few pixels off


def test_the_planes_go_through_the_click_and_show_it():
    scan, mask, middle = ball((1.0, 1.5, 3.0), (80, 60, 40))
    shown = panels(picture(scan, mask, [(middle, True)]))
    assert all(extent(panel, GREEN).max() > 8 for panel in shown)
    elsewhere = panels(picture(scan, mask, [(middle, True)], centre=(5, 5, 3)))
    assert all(extent(panel, GREEN).max() == 0 for panel in elsewhere)
    assert all(extent(panel, RED).max() == 0 for panel in elsewhere)


def test_the_words_say_how_much_is_marked():
    scan, mask, middle = ball((1.0, 1.5, 3.0), (80, 60, 40))
    assert repr(picture(scan, mask, [(middle, True)])) == f"{mask.volume_ml:.1f} mL, 1 click"
    twice = mask.with_array(mask.array * 2)
    twice.array[0, 0, 0] = 1
    assert repr(picture(scan, twice, [])) == f"{twice.volume_ml:.1f} mL in 2 objects, 0 clicks"
    assert repr(picture(scan, mask.with_array(np.zeros_like(mask.array)), [])).startswith("an empty mask")


def test_a_mask_of_another_scan_is_refused():
    scan, mask, _ = ball((1.0, 1.5, 3.0), (80, 60, 40))
    with pytest.raises(GeometryError, match="a mask on Grid"):
        picture(scan, Volume(mask.array, Grid.from_spacing(mask.grid.shape, (1, 1, 1))), [])


def test_a_session_shows_every_object_and_click(tmp_path):
    grid = upright(40, 40, 40)
    session = Session(KnownModel(), block_scan(grid, ((8, 16),) * 3, ((24, 32), (8, 16), (8, 16))))
    assert repr(session.show()) == "an empty mask, 0 clicks"
    session.click((12, 12, 12))
    session.new_object()
    session.click((28, 12, 12))
    shown = session.show()
    assert repr(shown) == "1.0 mL in 2 objects, 2 clicks"
    axial = panels(shown)[0]
    assert extent(axial, RED).max() > 10 and extent(axial, BLUE).max() > 10
    shown.save(tmp_path / "shown.png")
    assert (tmp_path / "shown.png").read_bytes() == shown.png
    with pytest.raises(FileError, match="the output folder"):
        shown.save(tmp_path / "nowhere" / "shown.png")


def test_the_viewer_holds_the_scan_and_the_mask():
    pytest.importorskip("ipyniivue")
    session = Session(KnownModel(), block_scan(oblique(), ((2, 9), (3, 8), (1, 7))))
    mask = session.click((5, 5, 3))
    layers = session.show(interactive=True).volumes
    for layer, volume in zip(layers, (session.volume, mask), strict=True):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(layer.data))
        assert np.array_equal(np.asarray(image.dataobj), volume.array)
        assert image.affine == pytest.approx(volume.grid.affine, abs=1e-5)
    assert mask.array.any() and layers[1].opacity == 0.5 and layers[0].cal_min < layers[0].cal_max


def test_without_the_viewer_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    session = Session(KnownModel(), block_scan(oblique(), ((2, 9), (3, 8), (1, 7))))
    with pytest.raises(UnsupportedError, match=r"pip install 'voxsam\[notebook\]', or leave interactive out"):
        session.show(interactive=True)
