"""Learning: a model is offered only if it needs fewer clicks; runs resume, wait, and forget cases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint
from itertools import product
from pathlib import Path
from string import ascii_lowercase, digits

import numpy as np
import pytest
from filelock import FileLock

from tests.lab.learning.small import CENTRE, body, make_project
from voxsam import extras
from voxsam.cli import main
from voxsam.errors import InputError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.lab.evaluation.clicks import clicks_needed
from voxsam.lab.learning import learn, samples
from voxsam.lab.learning.samples import first_click
from voxsam.project import Project, folder
from voxsam.project.records import Click, Gate, Reading
from voxsam.project.summary import summarise
from voxsam.testing import stub_network
from voxsam.volume import Volume
from voxsam.weights.checkpoint import load_model

module = sys.modules["voxsam.lab.learning.learn"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@pytest.fixture
def better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let learned models need 3 clicks and the start model 5: the network is too small to learn anything in a test."""
    known = lambda system, *_: (3 if system.name.startswith("learned") else 5, None, ())  # noqa: E731
    monkeypatch.setattr(module, "clicks_needed", known)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that are started, in order."""
    names, real = [], module.train

    def train(recipe, data, out, **options):
        names.append(out.name)
        return real(recipe, data, out, **options)

    monkeypatch.setattr(module, "train", train)
    return names


def test_what_needs_fewer_clicks_is_offered_and_knows_what_it_was_trained_on(project, better, trained):
    lines: list[str] = []
    model = learn(project, steps=2, log=lines.append, low_priority=False)
    assert trained == ["part-0", "part-1", "part-2", "all"]
    assert (model.state, str(model.gate)) == (
        "offered",
        "5.0 -> 3.0 clicks to the same mask on 5 scans, fewer on 5 (p = 0.031)",
    )
    assert lines[0] == "learned-5 learns from 5 scans: about 20 min in 3 x 2 steps to check and 4 on all of them"
    assert model.steps == 4
    assert summarise(project).offered == model and project.in_use == "first"
    project.use("learned-5")
    card = load_model(project.model_source(), "cpu").card
    assert card.name == "learned-5" and card.trained_on["project"] == model.cases
    assert not project.learning.exists()
    assert project.forget("s1") == ("learned-5",) and project.in_use == "first"


def test_what_does_not_help_is_not_offered(project, monkeypatch, trained):
    monkeypatch.setattr(module, "clicks_needed", lambda *_: (5, None, ()))
    model = learn(project, steps=1, low_priority=False)
    assert model.state == "refused" and trained == ["part-0", "part-1", "part-2"] and model.steps == 1
    assert summarise(project).offered is None
    with pytest.raises(InputError, match="the model learned-5, which was no better and is not kept"):
        project.use("learned-5")
    assert project.forget("s1") == (), "no model was trained on it"


def test_what_helps_by_chance_is_not_offered(project, monkeypatch, capsys):
    """Fewer clicks on two of five scans, as many on the others: p is 1/4."""
    counts = dict.fromkeys(("s0", "s1", "s2"), 5)
    case = iter([name for part in module._parts(list(project.done_cases())) for name in part for _ in range(2)])

    def needed(system, *_):
        name = next(case)
        return counts.get(name, 3 if system.name.startswith("learned") else 5), None, ()

    monkeypatch.setattr(module, "clicks_needed", needed)
    model = learn(project, steps=1, low_priority=False)
    assert str(model.gate) == "5.0 -> 4.2 clicks to the same mask on 5 scans, fewer on 2 (p = 0.25)"
    assert model.state == "refused" and summarise(project).offered is None


@pytest.mark.parametrize(
    ("saved", "probability"),
    [
        ((2, 2, 2, 2, 2), 1 / 32),  # every sign has to be right
        ((1, 1, 1, 1, -1), 6 / 32),  # so many sums of five are 3 or more
        ((3, 2, 1), 1 / 8),
        ((3, 2, -1), 2 / 8),  # 6 and 4
        ((0, 0, 1), 1 / 2),  # what does not differ tells nothing
        ((0, 0, 0), 1.0),
        ((-2, -2), 1.0),
        ((), 1.0),
    ],
)
def test_the_probability_of_chance_counts_all_signs(saved, probability):
    names = [str(n) for n in range(len(saved))]
    after = dict(zip(names, (5 - n for n in saved), strict=True))
    gate = Gate(dice=0.85, limit=10, before=dict.fromkeys(names, 5), after=after)
    assert gate.chance == pytest.approx(probability) and gate.is_better == (probability < 0.2)
    signs = np.array(list(product((1, -1), repeat=len(saved)))) if saved else np.zeros((1, 0))
    assert (signs @ np.abs(saved) >= sum(saved)).mean() == pytest.approx(probability), "by counting them one by one"


def test_a_learning_that_was_cut_off_goes_on(project, better, trained, monkeypatch):
    real = module.load_stream

    def cut(given, readings, recipe, data):
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(given, readings, recipe, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "load_stream", cut)
        learn(project, steps=1, low_priority=False)
    assert summarise(project).offered is None and project.models() == []
    assert learn(project, steps=1, low_priority=False).state == "offered"
    assert trained == ["part-0", "part-1", "part-2", "all"], "each once"


def test_a_case_that_is_forgotten_meanwhile_ends_it_and_leaves_nothing(project, better, monkeypatch):
    real = module.read_case

    def forgetting(given, reading):
        if project.learning.exists():
            Project(project.folder).forget("s2")
        return real(given, reading)

    monkeypatch.setattr(module, "read_case", forgetting)
    monkeypatch.setattr(module, "clicks_needed", lambda *given: given[-1]())
    with pytest.raises(InputError, match="a learning that was stopped, or a case of which was forgotten"):
        learn(project, steps=1, low_priority=False)
    assert not project.learning.exists() and project.models() == []


def test_it_waits_while_somebody_clicks(project, monkeypatch):
    project.learning.mkdir()
    (project.learning / "plan.json").touch()
    pause = module.Considerate(project, project.learning / "plan.json", 0)
    pause.wait()
    assert pause.paused_s < 0.1
    monkeypatch.setattr(folder, "QUIET_S", 0.5)
    project.touch_busy()
    pause.wait()
    assert 0.3 < pause.paused_s < 5


def test_one_at_a_time_and_enough_cases(project, tmp_path):
    with FileLock(project.folder / ".learning.lock"):
        assert summarise(project).learning == {}
        with pytest.raises(InputError, match="which another process is learning from; expected one at a time"):
            learn(project, steps=1, low_priority=False)
    project.forget("s0")
    with pytest.raises(InputError, match="4 scans that are done; expected 5 or more"):
        learn(project, steps=1, low_priority=False)


@pytest.mark.parametrize(
    ("count", "parts"),
    [(3, ["0", "1", "2"]), (7, ["036", "14", "25"]), (13, ["789abc"]), (28, ["lmnopqr"])],
)
def test_which_cases_are_left_out(count, parts):
    names = (digits + ascii_lowercase)[:count]
    assert ["".join(part) for part in module._parts(names)] == parts


class Growing:
    """A system whose mask is one slice of the truth, the next with each click, and all of it from four clicks on."""

    name, takes_clicks, takes_negative, parameters = "growing", True, True, 0

    def __init__(self, truth: Volume, first: int) -> None:
        self.truth, self.first = truth, first

    def open(self, volume):
        return self

    def segment(self, points):
        array = self.truth.array.copy()
        array[: self.first + len(points)] = 0
        array[self.first + 1 + len(points) :] = 0
        array[:, :, -1] = 0
        if len(points) >= 4:
            array = self.truth.array
        return self.truth.with_array(array)


def test_clicks_are_counted_until_the_mask_is_known(project):
    scan, mask = body(0)
    inside = mask.array > 0
    count, found, clicks = clicks_needed(Growing(mask, 12), scan, inside, (CENTRE, True))  # type: ignore[arg-type]
    assert count == len(clicks) == 4 and np.array_equal(found, inside)
    two = inside.copy()
    two[1:4, 1:4, 1:4] = True
    assert clicks_needed(Growing(mask, 12), scan, two, (CENTRE, True))[0] == 4, "the other lesion does not count"  # type: ignore[arg-type]


def test_the_first_click_is_the_readers_or_a_fixed_one():
    grid = Grid.from_spacing((9, 8, 7), (1, 2, 3), axes="LPS")
    scan = Volume(np.zeros(grid.shape, np.int16), grid, "CT")
    mask = np.zeros(grid.shape, bool)
    mask[3:6, 2:5, 1:4] = True
    places = [((0, 0, 0), True), ((4, 3, 2), False), ((5, 4, 3), True)]
    clicks = [Click(world_mm=tuple(grid.index_to_world(at)), positive=good) for at, good in places]
    reading = Reading(case="x", reader="r", finished="", clicks=tuple(clicks), content="0")
    assert first_click(scan, mask, reading) == ((5, 4, 3), True)
    bare = reading.model_copy(update={"clicks": ()})
    (drawn, positive) = first_click(scan, mask, bare)
    assert positive and mask[drawn] and first_click(scan, mask, bare) == (drawn, True)


def test_samples_are_the_cases_and_lesions_painted_into_them(project):
    card = stub_network().card
    recipe = samples.recipe_for(card, "first", "x", 3, samples.preprocessing_for(card, ["CT"]), False)
    assert recipe.engine is not None
    shares = recipe.engine.shares()
    assert shares["sarcomas"] == pytest.approx(0.6) and shares["painted"] == pytest.approx(0.4)
    assert recipe.engine.spacing_mm == pytest.approx((6, 6))
    assert recipe.engine.any_scale == 0  # it has one spacing
    wide = card.model_copy(update={"preprocessing": card.preprocessing.model_copy(update={"spacing_range_mm": (1, 4)})})
    first_looks = samples.engine_for(wide.preprocessing, True)
    assert first_looks.any_scale == 0.5 and first_looks.spacing_mm == (1, 4)
    stream = samples.load_stream(project, list(project.done_cases().values()), recipe, None)
    drawn = [stream[number] for number in range(6)]
    assert all(sample["crop"].shape == (1, 16, 16, 16) and sample["label"].any() for sample in drawn)
    assert list(stream.sources.seen["project"]) == ["s0", "s1", "s2", "s3", "s4"]


def test_scans_without_a_unit_are_standardised_and_nothing_is_painted(project):
    card = stub_network().card
    use = samples.preprocessing_for(card, ["MR", ""])
    assert use.per_scan and use.modality == "MR" and use.clip == (-5.0, 10.0)
    with pytest.raises(UnsupportedError, match="CT and other scans in one project"):
        samples.preprocessing_for(card, ["MR", "CT"])
    recipe = samples.recipe_for(card, "first", "x", 3, use, False)
    assert recipe.engine is not None and recipe.engine.shares()["sarcomas"] == 1
    stream = samples.load_stream(project, list(project.done_cases().values()), recipe, None)
    crops = [stream[number]["crop"] for number in range(4)]
    assert min(crop.min() for crop in crops) < -1 and max(crop.max() for crop in crops) > 0
    assert all(crop.min() >= -5 and crop.max() <= 10 for crop in crops)


def test_the_command_measures_learns_and_says_what_it_offers(project, better, trained, monkeypatch, capsys):
    entry = EntryPoint("lab", "voxsam.lab.learning:learn", "voxsam.learning")
    known = extras.entry_points
    monkeypatch.setattr(extras, "entry_points", lambda group: [entry] if group == entry.group else known(group=group))
    monkeypatch.setattr(module, "FEWEST_STEPS", 1)
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    monkeypatch.setattr(module, "LOWEST", 0)
    assert main(["project", "learn", str(project.folder), "--minutes", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert trained[0] == "measured" and lines[0] == "measuring how long a step takes"
    assert lines[1].startswith("learned-5 learns from 5 scans: about ")
    said = lines[-1]
    assert said == (
        "5.0 -> 3.0 clicks to the same mask on 5 scans, fewer on 5 (p = 0.031):"
        f" use it? (voxsam project use {project.folder} learned-5)"
    )
    assert main(["project", "status", str(project.folder)]) == 0
    assert f"Offered: {said}" in capsys.readouterr().out
    assert main(["project", "use", str(project.folder), "learned-5"]) == 0
    assert main(["project", "use", str(project.folder), "--back"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("In use: first (")


KILLED = """
import sys
from voxsam.lab.learning import learn
from voxsam.project import Project
learn(Project(sys.argv[1]), steps=6, low_priority=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_kill_9_at_random_moments_offers_no_broken_model(project):
    """Killed until it is done: every model that has a record loads, and the run ends."""
    rng = np.random.default_rng(0)
    for turn in range(30):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(project.folder)], stderr=subprocess.DEVNULL)
        seconds = float(rng.uniform(0.5, 1)) * 6 * 1.25**turn  # longer and longer, so that a slow machine ends, too
        timer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
        timer.start()
        ended = process.wait() == 0
        timer.cancel()
        for model in project.models():
            if model.cases:
                load_model(project.model_source(model.name), "cpu")
        assert len(project.models()) in (int(ended), 1)
        if project.models():  # it has ended, or was killed after its last step
            break
        time.sleep(0.1)
    assert project.models() and len(project.done_cases()) == 5
    assert json.loads((project.folder / "project.json").read_text())["used"] == []
