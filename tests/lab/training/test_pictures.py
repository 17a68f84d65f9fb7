"""Pictures of examples: where a click and the masks are drawn, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lab.training.minuscule import recipe, rows
from voxsam.lab.training.callbacks import crop_grid, draw
from voxsam.lab.training.run import train
from voxsam.preprocess import Preprocessing
from voxsam.report.panels import three_planes

TURNED = Preprocessing(axes="PIR", spacing_mm=(2, 3, 5), clip=(-100, 200), mean=50, sd=50)


def sample() -> dict[str, np.ndarray]:
    """A block of tumour, and a click in it after one that is padding."""
    label = np.zeros((1, 12, 10, 8), np.float32)
    label[0, 2:6, 3:7, 1:4] = 1
    points = np.array([[0, 0, 0], [3, 5, 2]], np.float32)
    return {"crop": label * 2 - 1, "label": label, "points": points, "labels": np.array([-1, 1])}


def test_the_planes_of_a_crop_go_through_the_click_whatever_its_axes() -> None:
    grid = crop_grid(TURNED, (12, 10, 8))
    assert grid.axes == "PIR"
    np.testing.assert_allclose(grid.spacing_mm, (2, 3, 5))
    for plane in three_planes(grid, (3, 5, 2)):
        place, off = plane.place_mm(grid, np.array([3, 5, 2]))
        assert abs(off) < 1e-9
        assert (place > 0).all() and (place < plane.size_mm).all()


def test_a_picture_has_a_row_for_each_example_and_shows_its_score() -> None:
    given = sample()
    half = given["label"][0].astype(np.uint8).copy()
    half[4:] = 0  # half of the block: Dice 2/3
    figure = draw([given, given], [half, half * 0], TURNED, "step 7")
    panels = figure.axes
    assert len(panels) == 6
    assert panels[0].get_title(loc="left") == "Dice 0.67"
    assert panels[3].get_title(loc="left") == "Dice 0.00"
    assert figure.get_suptitle().startswith("step 7;")
    (clicked,) = panels[0].lines[0].get_xydata()
    plane = three_planes(crop_grid(TURNED, (12, 10, 8)), (3, 5, 2))[0]
    np.testing.assert_allclose(clicked, plane.place_mm(crop_grid(TURNED, (12, 10, 8)), np.array([3, 5, 2]))[0])


@pytest.mark.filterwarnings("ignore")
def test_a_run_draws_and_logs_as_it_goes(tmp_path: Path) -> None:
    train(recipe(steps=4, validate_every=2, pictures=1, precision="bf16-mixed"), None, tmp_path)
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == ["step-000002.png", "step-000004.png"]
    logged = [row for row in rows(tmp_path) if row["loss"]]
    assert all(0.05 < float(row["memory GB"]) < 100 for row in logged)
    assert all(float(row["samples/s"]) > 0 for row in logged[1:])
    events = next((tmp_path / "log").glob("events*")).read_bytes()
    assert b"examples" in events and b"PNG" in events
