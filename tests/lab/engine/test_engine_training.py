"""A run on samples of the engine: it ends, resumes, and its model says what it was trained on."""

from pathlib import Path

import pytest
import torch

from voxsam.errors import FileError, InputError
from voxsam.lab.engine import milestone
from voxsam.lab.engine.scans import Scan
from voxsam.lab.engine.stream import Sources
from voxsam.lab.training import run
from voxsam.lab.training.recipe import Recipe
from voxsam.weights.checkpoint import load_model

SEEN = {"backgrounds_ct": {"body": "0123456789abcdef"}}
MODEL = {
    **{"size": "tiny", "width": 16, "depth": 4, "heads": 2, "adapter_width": 8, "crop": 32, "stride": 8, "patch": 16},
    **{"window": 2, "position_grid": 4, "feature_width": 16, "head_width": 8, "queries": 2, "prompt_heads": 2},
    **{"prompt_mlp": 16, "click_maps": [1.5, 4.0], "refine_width": 8},
}
PREPROCESSING = {"clip": [-600, 300], "mean": 40, "sd": 60, "spacing_mm": [2, 2, 2], "spacing_range_mm": [1, 4]}
ENGINE = {"nodules": 0, "organs": 0, "regions": 0}


def recipe(**fields) -> Recipe:
    given = {"name": "any", "model": MODEL, "preprocessing": PREPROCESSING, "engine": ENGINE, "steps": 2}
    more = {"corrected": 1.0, "corrections": 2, "pictures": 0, "ema": 0, "warmup": 1, "checkpoint_every": 1}
    return Recipe.model_validate({**given, **more, **fields})


@pytest.fixture
def sources(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "load_sources", lambda folder, use, _: Sources([scan], seen=SEEN))


def test_a_run_ends_goes_on_and_its_model_says_what_it_has_seen(sources, scan, tmp_path: Path, monkeypatch):
    run.train(recipe(), tmp_path, tmp_path / "out")
    path = run.train(recipe(steps=3), tmp_path, tmp_path / "out")
    card = load_model(path, "cpu").card
    assert card.trained_on == SEEN
    assert card.config.click_maps == (1.5, 4.0) and card.preprocessing.spacing_range_mm == (1, 4)
    monkeypatch.setattr(milestone, "load_sources", lambda folder, use, _: Sources([scan], seen=SEEN))
    assert milestone.write_milestone(tmp_path / "out", tmp_path, tmp_path / "half.safetensors") == 3
    half = load_model(tmp_path / "half.safetensors", "cpu")
    assert half.card.trained_on == SEEN and half.card.description["training"] == "3 of 3 steps"
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * path.stat().st_size
    torch.testing.assert_close(half.state_dict(), load_model(path, "cpu").state_dict(), rtol=2e-3, atol=1e-4)
    follow = recipe(start_from=str(path), name="next", steps=1)
    after = load_model(run.train(follow, tmp_path, tmp_path / "next"), "cpu").card
    assert after.trained_on == SEEN


def test_another_engine_is_another_run(sources, tmp_path: Path):
    run.train(recipe(steps=1), tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"its engine\.cut is 0\.15, and now 0\.5"):
        run.train(recipe(engine={**ENGINE, "cut": 0.5}), tmp_path, tmp_path / "out")


def test_a_run_of_minutes_ends_by_itself(sources, tmp_path: Path):
    path = run.train(recipe(steps=None, minutes=0.02), tmp_path, tmp_path / "out")
    assert load_model(path, "cpu").card.trained_on == SEEN


def test_an_engine_needs_data_and_an_end(tmp_path: Path):
    with pytest.raises(FileError, match="a data engine without data"):
        run.train(recipe(), None, tmp_path / "out")
    with pytest.raises(InputError, match="epochs of a data engine; expected steps or minutes: its samples never end"):
        run.train(recipe(steps=None, epochs=2), tmp_path, tmp_path / "out")
