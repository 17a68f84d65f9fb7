"""Training samples for a project's model: its cases, lesions painted into their scans, the data engine's own scans.

The engine works in Hounsfield units. A scan without units is standardised and mapped to a mean of `MIDDLE` and an s.d.
of `UNIT`, like a tumour's soft tissue in CT; the stream's normalisation is adapted, so that the network sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxsam.errors import InputError, UnsupportedError
from voxsam.io import read_volume
from voxsam.lab.engine.crops import SOURCES, EngineSettings
from voxsam.lab.engine.load import load_sources
from voxsam.lab.engine.scans import Scan
from voxsam.lab.engine.stream import EngineStream, Sources
from voxsam.lab.evaluation.clicks import Click, ClickMaker
from voxsam.lab.evaluation.scores import Mask
from voxsam.lab.training.recipe import Recipe
from voxsam.network.card import Card
from voxsam.preprocess import STANDARDISED, Preprocessing, standardised
from voxsam.project import Project
from voxsam.project.records import Reading
from voxsam.volume import Volume

CASES = 0.6  # of the samples; the rest is replay
ANY_SCALE = 0.5  # fraction at any scale, as in a first look, for a model that chooses its spacing by looks
UNIT, MIDDLE = 60.0, 40.0
LEARNING_RATE, BATCH = 1e-3, 2
CHECKPOINT_EVERY = 20  # steps: the most that a killed training loses


def preprocessing_for(card: Card, modalities: Sequence[str]) -> Preprocessing:
    """The start model's, standardised for scans without a unit. Raises UnsupportedError for CT mixed with others."""
    units = {modality == "CT" for modality in modalities}
    if len(units) > 1:
        raise UnsupportedError("CT and other scans in one project", "one kind of scan", "make a project for each kind")
    use = card.preprocessing
    return use if use.per_scan or units == {True} else use.model_copy(update={"modality": "MR", **STANDARDISED})


def engine_for(preprocessing: Preprocessing, data: bool) -> EngineSettings:
    """The mix of samples, at the spacings that the network was trained for.

    Nothing is painted into scans without units.
    """
    own = EngineSettings()
    replay = {source: getattr(own, source) if data else float(source == "painted") for source in SOURCES[:-1]}
    if preprocessing.per_scan:
        replay = dict.fromkeys(replay, 0.0)
    total = sum(replay.values()) or 1.0
    shares = {source: (1 - CASES) * share / total for source, share in replay.items()}
    spacing = float(np.prod(preprocessing.spacing_mm) ** (1 / 3))
    range_mm = preprocessing.spacing_range_mm or (spacing, spacing)
    any_scale = ANY_SCALE if preprocessing.spacing_range_mm else 0.0
    sizes = {"spacing_mm": range_mm, "voxels_across": 22.0, "any_scale": any_scale}
    return EngineSettings(**{**shares, "sarcomas": CASES, **sizes})


def recipe_for(card: Card, source: str, name: str, steps: int, preprocessing: Preprocessing, data: bool) -> Recipe:
    """The recipe that fine-tunes the start model with this `card` and the file `source`.

    Raises UnsupportedError for a model that takes no clicks, or several images.
    """
    import torch

    if card.automatic or card.preprocessing.channels > 1:
        given = f"learning with {card.name}, which takes {'no clicks' if card.automatic else 'several images'}"
        raise UnsupportedError(given, "a model of one image that is clicked", "start the project with another model")
    fields: dict[str, Any] = {
        **{"name": name, "system": card.system, "options": card.options, "model": card.config.model_dump()},
        **{"preprocessing": preprocessing, "conditioning": card.conditioning},
        **{"mirrored": card.mirrored, "start_from": source},
        **{"engine": engine_for(preprocessing, data), "corrections": 5, "corrected": 0.5},
        **{"steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "warmup": min(20, steps // 5), "decay": 0.5},
        **{"checkpoint_every": CHECKPOINT_EVERY, "pictures": 0},
        "precision": "bf16-mixed" if torch.cuda.is_available() else "32-true",
        "description": {**card.description, "training": f"fine-tuned from {card.name} on a project's cases"},
    }
    return Recipe.model_validate(fields)


def read_case(project: Project, reading: Reading) -> tuple[Volume, Volume]:
    """A case's scan, and its mask (uint8 0/1) on the scan's grid. Raises InputError if they no longer match."""
    scan = project.read(reading.case)
    mask = read_volume(project.mask_path(reading.case, reading.reader), labels=True, scan=scan)
    if not mask.grid.close_to(scan.grid) or not (mask.array > 0).any():
        given, expected = f"the mask of {reading.case} on {mask.grid}", f"tumour on the scan's {scan.grid}"
        raise InputError(given, expected, "do the case again")
    return scan, Volume((mask.array > 0).astype(np.uint8), scan.grid, "SEG")


def first_click(scan: Volume, mask: Mask, reading: Reading) -> Click:
    """The reader's first positive click inside the mask; if there is none, a random one, always the same."""
    for click in reading.clicks:
        i, j, k = (int(n) for n in scan.grid.voxel_of(scan.grid.world_to_index(click.world_mm)))
        if click.positive and mask[i, j, k]:
            return (i, j, k), True
    (drawn,) = ClickMaker(mask, scan.grid.spacing_mm).draw(1, reading.content)
    return drawn


def load_stream(project: Project, readings: Sequence[Reading], recipe: Recipe, data: Path | None) -> EngineStream:
    """The sample stream of a recipe from these cases: clicked in their own tumours, and scans to paint lesions into."""
    assert recipe.engine is not None and recipe.steps is not None
    own, use = recipe.engine, recipe.preprocessing
    scans, seen = [], {}
    for reading in readings:
        scan, mask = read_case(project, reading)
        seen[reading.case] = reading.content
        if use.per_scan:
            scan = standardised(scan, MIDDLE, UNIT)
        scans.append(Scan.of(reading.case, scan, mask, places=not use.per_scan))
    without = own.model_copy(update={"sarcomas": 0})
    beside = Sources([]) if data is None or use.per_scan else load_sources(data, without, use)
    name = project.folder.name
    sources = Sources(
        backgrounds=[*scans, *beside.backgrounds],
        organs=beside.organs,
        nodules=beside.nodules,
        sarcomas=scans,
        seen={**beside.seen, name: seen},
    )
    if use.per_scan:
        low, high = (bound * UNIT + MIDDLE for bound in use.clip)
        shown = {"clip": (low, high), "mean": use.mean * UNIT + MIDDLE, "sd": use.sd * UNIT, "per_scan": False}
        use = use.model_copy(update=shown)
    length = recipe.steps * recipe.crops_per_step
    return EngineStream(sources, own, use, recipe.model.crop, length, recipe.seed)
