"""Steps of a session in the browser: voxel by voxel the same result as in Python's session."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.web.golden import play
from voxsam.boxes import NOWHERE
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Prediction, Predictor
from voxsam.interactive.session import Session
from voxsam.io.segments import COLOURS, TYPES, in_hex
from voxsam.preprocess import Slices
from voxsam.prompts import Prompt
from voxsam.region import EMPTY, Region
from voxsam.report.metrics import measure
from voxsam.server.api.server import PRESETS
from voxsam.server.edits import KeptMask, ObjectType
from voxsam.server.messages import View
from voxsam.server.saved import play as take
from voxsam.server.store import Event
from voxsam.testing import stub_network
from voxsam.volume import Volume

Step = dict[str, Any]
LENGTH_TOLERANCE = 1e-6  # mm, mL
INDEX_TOLERANCE = 1e-6  # voxels: affines are multiplied in another order
EDITS = ("brush", "lasso", "fill", "smooth", "component", "interpolate")
OTHERS = (
    "undo",
    "redo",
    "new object",
    "select",
    "delete object",
    "delete prompt",
    "describe",
    "rules",
    "masks",
    "reset",
)


def packed(array: NDArray) -> str:
    """An array as base64 of its bytes, i fastest."""
    return base64.b64encode(array.tobytes("F")).decode()


def box_of(box: Slices) -> Step:
    """A box in the page's form."""
    return {"low": [part.start for part in box], "high": [part.stop for part in box]}


def slices_of(box: Step) -> Slices:
    """The page's box as slices."""
    i, j, k = (slice(low, high) for low, high in zip(box["low"], box["high"], strict=True))
    return i, j, k


@dataclass(frozen=True, eq=False)
class Known(Prediction):
    """A prediction whose voxels are given."""

    voxels: Region = EMPTY

    def region(self, keep_clicked: bool) -> Region:
        clicks = [self.grid.voxel_of(click.index_on(self.grid)).tolist() for click in self.clicks if click.positive]
        parts = [self.voxels.component(click) for click in clicks]
        clicked = EMPTY
        for part in parts:
            clicked |= part
        return clicked if keep_clicked and clicked else self.voxels

    @property
    def nbytes(self) -> int:
        return 4 * int(np.prod(self.voxels.shape))


class KnownPredictor(Predictor):
    """Gives one mask after another, whatever the prompts."""

    masks: Sequence[Region] = ()
    calls = 0

    def predict(self, prompts: Prompt | Sequence[Prompt], previous: Prediction | None = None) -> Prediction:
        assert isinstance(prompts, tuple)
        clicks = self._clicks(prompts, previous or Prediction(self.volume.grid))
        self.calls += 1
        voxels, notes = self.masks[self.calls % len(self.masks)], (f"prediction {self.calls}",)
        return Known(self.volume.grid, prompts=prompts, clicks=clicks, notes=notes, voxels=voxels)


class Script:
    """A scan, the masks that a network gives for it, and steps; as JSON, and as Python's session takes them."""

    def __init__(
        self, seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], axes: str
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.grid = Grid.from_spacing(shape, spacing_mm, (-31, 12.5, 80), axes).turned(seed % 3, 4.0 * seed)
        self.scan = Volume(self.noise(2.0, 400).astype(np.int16), self.grid, "CT")
        self.predictions = [Region.of(self.blobs()) for _ in range(12)]
        self.steps: list[Step] = []

    def noise(self, sd: float, scale: float) -> NDArray[np.float64]:
        """Smooth noise on the scan, of the standard deviation `scale`."""
        values = ndimage.gaussian_filter(self.random.normal(size=self.grid.shape), sd)
        return values / values.std() * scale

    def blobs(self) -> NDArray[np.bool_]:
        """Some objects, also with holes."""
        middle = self.random.uniform(0.3, 0.7, 3) * self.grid.shape
        away = np.linalg.norm(
            (np.indices(self.grid.shape).T - middle).T * self.grid.spacing_mm.reshape(3, 1, 1, 1), axis=0
        )
        return self.noise(1.2, 1) - away / away.mean() * 1.5 > -0.9

    def voxel(self, inside: Region) -> list[int]:
        """A voxel of a region; of the scan if there is none."""
        places = (
            np.argwhere(inside.inside) + [part.start for part in inside.box]
            if inside
            else np.argwhere(np.ones(self.grid.shape))
        )
        return self.random.choice(places).tolist()

    def near(self, voxel: Sequence[int], reach: float, count: int) -> NDArray[np.float64]:
        """(count, 3) places around a voxel, also beside the scan."""
        return np.round(voxel + self.random.uniform(-reach, reach, (count, 3)), 2)

    def prompts(self, inside: Region) -> list[Step]:
        """A click, a box or a stroke somewhere."""
        voxel, kind, positive = (
            self.voxel(inside),
            self.random.choice(["point", "box", "scribble"]),
            bool(self.random.random() < 0.7),
        )
        if kind == "box":
            low, high = self.near(voxel, 6, 2).clip(0, np.array(self.grid.shape) - 1).round()
            return [{"kind": "box", "low": low.tolist(), "high": high.tolist()}]
        if kind == "scribble":
            walk = np.cumsum(self.random.integers(-1, 2, (30, 3)), axis=0) + voxel
            walk = walk.clip(0, np.array(self.grid.shape) - 1)
            return [{"kind": "scribble", "voxels": walk.tolist(), "positive": positive}]
        return [{"kind": "point", "index": voxel, "positive": positive}]

    def edit(self, kind: str, inside: Region) -> Step:
        """An edit near an object."""
        random, voxel = self.random, self.voxel(inside)
        axis = int(random.integers(3))
        flat = None if random.random() < 0.4 else axis
        drawn = self.near(voxel, 5, int(random.integers(3, 9)))
        if kind == "brush":
            if flat is not None:
                drawn[:, axis] = voxel[axis]
            some = [-150.0, 250.0] if random.random() < 0.4 else None
            radius = float(random.choice([1.0, 4.5, 7.0]))
            brush = {"radius_mm": radius, "add": bool(random.random() < 0.6), "axis": flat, "intensities": some}
            return {"kind": kind, "stroke": drawn.tolist(), **brush}
        if kind == "lasso":
            drawn[:, axis] = voxel[axis] + random.uniform(-0.4, 0.4)
            lasso = {"axis": axis, "add": bool(random.random() < 0.6), "slices": random.choice([None, 1, 2, 3, 4])}
            return {"kind": kind, "polygon": drawn.tolist(), **lasso}
        if kind == "fill":
            return {"kind": kind, "axis": flat}
        if kind == "smooth":
            return {"kind": kind, "sd_mm": float(random.choice([0.8, 2.0, 4.0]))}
        if kind == "component":
            return {"kind": kind, "index": voxel, "keep": bool(random.random() < 0.5)}
        return {"kind": kind, "axis": axis}

    def step(self, kind: str, session: Session) -> Step:
        """A step of some kind; the session may refuse it."""
        random, region = self.random, session.segmented[session.current].region
        number = int(random.choice(session.objects))
        if kind == "prompt":
            return {
                "kind": kind,
                "prompts": [mark for _ in range(random.integers(1, 3)) for mark in self.prompts(region)],
            }
        if kind == "edit":
            return {
                "kind": kind,
                "edits": [self.edit(str(random.choice(EDITS)), region) for _ in range(random.integers(1, 3))],
            }
        if kind == "masks":
            stripes = self.blobs()
            axis = int(random.integers(3))
            np.moveaxis(stripes, axis, 0)[np.arange(stripes.shape[axis]) % 4 > 0] = (
                False  # slices to interpolate between
            )
            halves = [np.arange(self.grid.shape[0])[:, None, None] < self.grid.shape[0] // 2]
            masks = [
                {"name": f"mask {n}", "region": Region.of(stripes & half)}
                for n, half in enumerate([halves[0], ~halves[0]])
            ]
            return {"kind": kind, "masks": [mask for mask in masks if mask["region"]], "remarks": ["as loaded"]}
        if kind in ("select", "delete object"):
            return {"kind": kind, "number": number}
        if kind == "delete prompt":
            return {"kind": kind, "number": number, "index": int(random.integers(2))}
        if kind == "describe":
            facts = {
                "name": f"named {random.integers(9)}",
                "colour": "#01fe80",
                "visible": False,
                "locked": bool(random.random() < 0.5),
            }
            return {"kind": kind, "number": number, "facts": facts}
        if kind == "rules":
            return {
                "kind": kind,
                "rules": {str(random.choice(["overlap", "keep_clicked"])): bool(random.random() < 0.5)},
            }
        return {"kind": kind}

    def as_json(self) -> str:
        """For the browser's code."""

        def mask(region: Region) -> Step:
            return {"box": box_of(region.box), "inside": packed(region.inside.astype(np.uint8))}

        def given(step: Step) -> Step:
            if step["kind"] != "masks":
                return step
            return {**step, "masks": [{"name": one["name"], **mask(one["region"])} for one in step["masks"]]}

        facts = {"shape": self.grid.shape, "affine": self.grid.affine.tolist(), "scan": packed(self.scan.array)}
        steps = [given(step) for step in self.steps]
        return json.dumps({**facts, "predictions": [*map(mask, self.predictions)], "steps": steps})

    def session(self) -> Session:
        """Python's, before the first step."""
        session = Session(stub_network(), self.scan)
        session.predictor = KnownPredictor(session.model).set_image(self.scan)
        session.predictor.masks = self.predictions
        return session


def events(step: Step) -> list[Event]:
    """A step of the page as the server's events."""
    kind, number = step["kind"], step.get("number", 1)
    found: list[Step]
    if kind in ("prompt", "edit"):
        found = [{"do": kind, f"{kind}s": step[f"{kind}s"]}]
    elif kind == "masks":
        notes = tuple(step["remarks"])
        found = [{"do": "mask", "masks": [KeptMask.of(one["name"], one["region"], notes) for one in step["masks"]]}]
    elif kind == "describe":
        facts = {name: fact for name, fact in step["facts"].items() if name != "locked"}
        found = [{"do": "describe", "number": number, "description": facts}]
        if "locked" in step["facts"]:
            found.append({"do": "lock", "number": number, "on": step["facts"]["locked"]})
    elif kind == "rules":
        found = [{"do": name, "on": on} for name, on in step["rules"].items()]
    elif kind == "delete prompt":
        found = [{"do": "remove_prompt", "number": number, "index": step["index"]}]
    else:
        do = {"new object": "new_object", "delete object": "delete"}.get(kind, kind)
        found = [{"do": do, "number": number, "object": number}]
    return [Event.model_validate(event) for event in found]


def done(session: Session, step: Step) -> str | None:
    """Take a step in Python; returns the message of a refusal."""
    try:
        for event in events(step):
            take(event, session)
    except InputError as error:
        return str(error)
    return None


def compare(session: Session, answer: Step, before: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Assert that the browser's answer equals Python's session; returns all labels."""
    labels = np.zeros(session.volume.grid.shape, np.uint8)
    box = slices_of(answer["box"])
    sent = np.frombuffer(base64.b64decode(answer["labels"]), np.uint8)
    labels[box] = sent.reshape(labels[box].shape, order="F")
    assert np.array_equal(labels, session.mask.array)
    outside = np.ones(labels.shape, bool)
    outside[slices_of(answer["changed"])] = False
    assert np.array_equal(labels[outside], before[outside])
    grid = session.volume.grid
    view = View.of(session, NOWHERE)
    for name in ("current", "overlap", "keep_clicked"):
        assert answer[name] == getattr(view.step, name), name
    for name in ("can_undo", "can_redo"):
        assert answer[name] == getattr(view, name), name
    clicks = dict(answer["clicks"])
    for sent, state in zip(answer["objects"], view.object_states({}, grid), strict=True):
        expected = state.model_dump()
        for name in ("number", "name", "colour", "visible", "locked", "type", "edited", "messages", "prompts"):
            assert sent[name] == expected[name], name
        found = session.segmented[state.number]
        size = measure(found.region, grid)
        assert sent["volume_ml"] == pytest.approx(size.volume_ml, abs=LENGTH_TOLERANCE)
        for name, line in (("longest", size.longest), ("perpendicular", size.perpendicular)):
            assert (sent[name] is None) == (line is None)
            if line is not None:
                assert sent[name]["mm"] == pytest.approx(line.length_mm, abs=LENGTH_TOLERANCE)
        if size.longest is not None:
            assert np.allclose(sent["longest"]["ends"], size.longest.ends)
        given = [(*click.index_on(grid), click.positive) for click in found.prediction.clicks]
        at = [(*click["index"], click["positive"]) for click in clicks[state.number]]
        assert np.allclose(np.array(at, float), np.array(given, float), atol=1e-3)
    return labels


def random_script(seed: int, count: int, shape: tuple[int, int, int]) -> Script:
    """Steps of every kind, including some that a session refuses."""
    spacing = [(0.8, 1.1, 3.0), (1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.5, 0.5, 5.0)][seed % 4]
    script = Script(seed, shape, spacing, ["LPS", "RAS", "SAR", "PIR"][seed % 4])
    session = script.session()
    kinds = [*OTHERS * (count // 20), *["edit"] * (count // 2), *["prompt"] * (count // 5)]
    for kind in script.random.permutation(kinds).tolist():
        step = script.step(kind, session)
        more = [{"kind": "redo"}] if step["kind"] == "undo" and script.random.random() < 0.6 else []
        for one in (step, *more):
            script.steps.append(one)
            done(session, one)
    return script


def assert_same(scripts: dict[str, Script], folder: Path) -> list[Step]:
    """Play scripts in the browser's session and in Python's; returns the browser's answers."""
    for name, script in scripts.items():
        (folder / f"{name}.json").write_text(script.as_json())
    play("session", folder)
    found = []
    for name, script in scripts.items():
        answers = json.loads((folder / f"{name}.answers.json").read_text())
        session, labels = script.session(), np.zeros(script.grid.shape, np.uint8)
        assert len(answers) == len(script.steps)
        for n, (step, answer) in enumerate(zip(script.steps, answers, strict=True)):
            refused = done(session, step)
            where = f"{name}, step {n}: {step}"[:600]
            assert answer["refused"] == refused, where
            try:
                labels = compare(session, answer, labels)
            except AssertionError as error:
                raise AssertionError(where) from error
            found.append({**answer, "step": step})
    return found


def test_steps_of_every_kind_make_what_pythons_session_makes(tmp_path: Path) -> None:
    answers = assert_same({"some": random_script(2, 40, (20, 18, 12))}, tmp_path)
    assert {"prompt", "edit", *OTHERS} == {answer["step"]["kind"] for answer in answers}
    assert sum(answer["done"] for answer in answers) > 20 and any(answer["refused"] for answer in answers)


@pytest.mark.slow
def test_many_steps_on_larger_scans(tmp_path: Path) -> None:
    answers = assert_same({f"seed {seed}": random_script(seed, 60, (60, 52, 32)) for seed in range(8)}, tmp_path)
    taken = [answer["step"] for answer in answers if answer["done"]]
    assert {"prompt", "edit", *OTHERS} == {step["kind"] for step in taken}
    assert {edit["kind"] for step in taken for edit in step.get("edits", ())} == {*EDITS}


def test_windows_types_and_colours_are_those_of_the_server() -> None:
    offered = json.loads(play("facts"))
    assert offered["presets"] == [preset.model_dump() for preset in PRESETS]
    assert offered["types"] == [ObjectType.of(code).model_dump() for code in TYPES]
    assert offered["colours"] == [in_hex(colour) for colour in COLOURS]
