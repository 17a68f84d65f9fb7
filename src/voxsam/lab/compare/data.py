"""The data sets of a plan, prepared once: generated where no folder is given, then as `voxsam prepare` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from voxsam.errors import InputError
from voxsam.lab.compare.plan import DataSpec, Phantoms
from voxsam.lab.data.cases import Case
from voxsam.lab.data.phantom_set import write_phantoms
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.store import Store, open_store
from voxsam.lab.evaluation.selection import choose_cases, find_labelled
from voxsam.phantoms.phantoms import CLOSE

Progress = Callable[[str, float | None], None]


def prepare_data(spec: DataSpec, folder: Path, progress: Progress) -> Store:
    """The store in `folder`/prepared, made or brought up to date. Raises what `prepare` raises.

    Raises InputError for a data set of which nothing is left for testing.
    """
    raw = Path(spec.folder) if spec.folder is not None else _phantoms(spec.phantoms or Phantoms(), folder, progress)
    options = Options(spec.layout, spec.labels, spec.spacing_mm, spec.split_seed)
    store = prepare(raw, folder / "prepared", options, progress).store
    if not store.split["test"]:
        given, expected = f"{spec.name}: {len(store.names)} cases, none of them for testing", "two cases or more"
        raise InputError(given, expected, "add cases")
    return store


def cases_to_test(prepared: Path) -> list[Case]:
    """The cases that no system is trained on, as files on their own grids; they know which labels are tumour."""
    return choose_cases(find_labelled(prepared)[0], open_store(prepared).split["test"])


def example_names(store: Store, count: int) -> list[str]:
    """Test cases to draw: `count` of them, evenly from the smallest to the largest tumour."""
    ordered = sorted(store.split["test"], key=lambda name: (store.description.cases[name].volume_ml, name))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[round(place)] for place in places]


def _phantoms(spec: Phantoms, folder: Path, progress: Progress) -> Path:
    """Scans of these seeds on this grid, generated anew unless they are there already."""
    shape, spacing = ("x".join(map(str, numbers)) for numbers in (spec.shape, spec.spacing_mm))
    raw = folder / f"phantoms-{spec.count}-{spec.seed}-{shape}-{spacing}-{spec.brighter_hu}"
    if not (raw / "dataset.json").is_file():  # which is written last
        shutil.rmtree(raw, ignore_errors=True)
        seeds = range(spec.seed, spec.seed + spec.count)
        write_phantoms(raw, seeds, (spec.shape, spec.spacing_mm), CLOSE, progress, spec.brighter_hu)
    return raw
