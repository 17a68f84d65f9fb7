"""The order of the work: as listed, or first the scan that an automatic model is least sure of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxsam.cli import main
from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Prediction
from voxsam.preprocess import Window
from voxsam.project import Project, look
from voxsam.project.look import look_first, sureness
from voxsam.project.summary import summarise
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import save_model

GRID = Grid.from_spacing((4, 3, 2), (1, 2, 3), axes="LPS")


def prediction(*values: float) -> Prediction:
    """A prediction of these probabilities, and 0 elsewhere."""
    probability = np.zeros(GRID.shape, np.float32)
    probability.flat[: len(values)] = values
    return Prediction(GRID, None, pieces=((Window(GRID, (0, 0, 0), GRID.shape), probability),))


@pytest.fixture
def automatic(tmp_path: Path) -> str:
    """A model without clicks."""
    path = tmp_path / "auto.safetensors"
    save_model(stub_network(automatic=True, name="auto"), path)
    return str(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1, 1), 1.0), ((0.75, 0.75), 2 * 1.5 / (1.5 + 2)), ((1, 0.5), 2 / (1.5 + 1)), ((0.4,), 0.0), ((), 0.0)],
)
def test_how_sure_a_model_is_is_the_dice_that_it_expects(values, expected):
    assert sureness(prediction(*values)) == pytest.approx(expected)


def test_the_least_sure_comes_first_and_a_look_that_was_cut_off_goes_on(project, automatic, monkeypatch):
    known = iter([prediction(1), KeyboardInterrupt(), prediction(0.6), prediction(0.8)])

    def segment(*_):
        found = next(known)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(look, "segment_automatically", segment)
    assert project.upcoming() == ["a", "b", "deep__c"] and summarise(project).order == "as listed"
    with pytest.raises(KeyboardInterrupt):
        look_first(project, automatic, "cpu")
    found = look_first(project, automatic, "cpu")
    assert found == pytest.approx({"a": 1.0, "b": 2 * 0.6 / 1.6, "deep__c": 2 * 0.8 / 1.8})
    assert project.upcoming() == ["b", "deep__c", "a"] and project.upcoming(after="a")[0] == "b"
    assert project.next("anna") == "b" and project.next("ben") == "deep__c" and project.next("anna") == "b"
    assert summarise(project).order == "the scan that auto is least sure of first"
    project.order_by("")
    assert project.upcoming() == ["a"] and [scan.sure for scan in project.scans] == [None] * 3


def test_a_model_that_wants_clicks_has_no_first_look(project, model):
    with pytest.raises(
        UnsupportedError, match="a first look with first, which wants clicks; .*the order is the list's"
    ):
        look_first(project, str(model), "cpu")
    assert project.settings.first_look == ""


def test_the_command_orders_and_says_so(project: Project, automatic, model, capsys):
    folder = str(project.folder)
    assert main(["project", "order", folder, "--model", automatic]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Order: the scan that auto is least sure of first", "How sure it is:"] and len(lines) == 5
    assert main(["project", "status", folder]) == 0
    assert "Order: the scan that auto is least sure of first" in capsys.readouterr().out
    first = lines[2].split()[1]
    assert main(["project", "next", folder]) == 0 and capsys.readouterr().out.startswith(f"{first}: ")
    assert main(["project", "order", folder, "--list"]) == 0 and capsys.readouterr().out == "Order: as listed\n"
    assert main(["project", "order", folder]) == 2 and main(["project", "order", folder, "--model", str(model)]) == 2
    assert "a first look with first, which wants clicks" in capsys.readouterr().err
