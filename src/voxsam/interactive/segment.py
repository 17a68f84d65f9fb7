"""Segment a scan in one call, and the steps of it that the command, the cohort and Python share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import InputError, PromptError, UnsupportedError
from voxsam.interactive.automatic import OVERLAP, predict, prepare
from voxsam.interactive.crops import ReportProgress
from voxsam.interactive.predictor import Prediction, Predictor, keeps_clicked
from voxsam.io import read_channels, read_volume
from voxsam.kernels.linear import Precision
from voxsam.network.card import Card
from voxsam.network.promptable import Promptable
from voxsam.prompts import Box, MaskHint, Point, Prompt, Scribble
from voxsam.volume import Volume
from voxsam.weights import load_model
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

File = str | Path
Scan = File | Volume | NDArray
Index = Sequence[float]


def segment(
    scan: Scan | Sequence[Scan],
    clicks: Sequence[Index] = (),
    *,
    negative: Sequence[Index] = (),
    clicks_mm: Sequence[Index] = (),
    negative_mm: Sequence[Index] = (),
    boxes: Sequence[tuple[Index, Index]] = (),
    scribbles: Sequence[File | Volume] = (),
    hints: Sequence[File | Volume] = (),
    model: File | Promptable = "voxsam-tiny",
    device: str = "auto",
    precision: Precision = "float32",
    follow: bool = True,
    keep_clicked: bool | None = None,
    spacing_mm: Sequence[float] | None = None,
    series: str | int = "",
    progress: ReportProgress | None = None,
) -> Volume:
    """The mask of the tumour that the prompts point at, on the scan's grid: `voxsam segment` in Python.

    `scan` is a path, a Volume, or an array (i, j, k) with its `spacing_mm` (`Volume.from_array` also takes its axes and
    origin); a list holds the channels of a multi-channel model. `clicks` and `negative` are voxel indices (i, j, k),
    `clicks_mm` and `negative_mm` RAS+ coordinates in mm, `boxes` pairs of opposite corner voxels, `scribbles` and
    `hints` label files or Volumes; a model trained without clicks takes none of these. `series` selects one of several
    in a folder. `keep_clicked` keeps only components with a positive click; None: for models with polarity, which the
    released ones lack. The mask's `remarks` say what to know about it. Raises InputError for what cannot be used.
    """
    card = model.card if isinstance(model, Promptable) else read_card(find_model(model))
    given = (clicks, negative, clicks_mm, negative_mm, boxes, scribbles, hints)
    check_mode(card, automatic=not any(map(len, given)))
    scans = (scan,) if isinstance(scan, File | Volume | np.ndarray) else scan
    images = tuple(image for one in scans for image in _images(one, card.config.channels, spacing_mm, series))
    indices = [(index, True) for index in _each(clicks)] + [(index, False) for index in _each(negative)]
    places = [(place, True) for place in _each(clicks_mm)] + [(place, False) for place in _each(negative_mm)]
    prompts = placed(images[0], indices, places, boxes, scribbles, hints)
    network = model if isinstance(model, Promptable) else load_model(model, device, precision)
    return opened(network, images, prompts, follow=follow, keep_clicked=keep_clicked, progress=progress)().mask


def placed(
    scan: Volume,
    clicks: Sequence[tuple[Index, bool]],
    clicks_mm: Sequence[tuple[Index, bool]],
    boxes: Sequence[tuple[Index, Index]],
    scribbles: Sequence[File | Volume],
    hints: Sequence[File | Volume],
) -> list[Prompt]:
    """Prompts on a scan from clicks (index or RAS+ mm, and whether positive), boxes (two corner voxels) and labels.

    `FILE.dcm#3` is segment 3 of a DICOM-SEG or RTSTRUCT. Raises PromptError if one lies outside the scan.
    """
    found: list[Prompt] = [Point.at_index(scan.grid, index, positive) for index, positive in clicks]
    found += [Point(_triple(place), positive) for place, positive in clicks_mm]
    found += [Box.at_index(scan.grid, low, high) for low, high in boxes]
    for prompt in found:
        prompt.points(scan.grid)  # refuse what lies outside before a model is loaded
    labelled = [(Scribble, given) for given in scribbles] + [(MaskHint, given) for given in hints]
    for kind, given in labelled:
        found.append(kind(given if isinstance(given, Volume) else _labels(Path(given), scan)))
        try:
            found[-1].points(scan.grid)
        except PromptError as error:
            if isinstance(given, Volume):
                raise
            raise PromptError(f"{Path(given).name}: {error.given}", error.expected, error.remedy) from error
    return found


def _labels(path: Path, scan: Volume) -> Volume:
    file, _, segment = path.name.rpartition("#")
    if file and re.fullmatch(r"[+-]?[0-9]+", segment) and not path.exists():
        return read_volume(path.with_name(file), labels=True, scan=scan, segment=int(segment))
    return read_volume(path, labels=True, scan=scan)


def check_mode(card: Card, automatic: bool) -> None:
    """Raises UnsupportedError for prompts with a model trained without clicks, and for none with any other model."""
    if automatic and not card.automatic:
        raise UnsupportedError(
            f"no prompts (--auto) with the model {card.name}",
            "a model trained without clicks",
            "click the tumour (--click I,J,K; in a table a click for each scan), or choose another model",
        )
    if card.automatic and not automatic:
        raise UnsupportedError(
            f"prompts for the model {card.name}",
            "none (--auto): this model was trained without clicks",
            "leave the prompts out, or choose another model",
        )


def check_class(card: Card, name: str | None) -> None:
    """Raises InputError for a class that the model does not know; None stands for any."""
    known = card.classes.names if card.classes else ()
    if name is not None and name not in known:
        expected = f"one of {', '.join(known)}" if known else f"none: {card.name} knows no classes"
        raise InputError(f"the class {name}", expected, "choose another, or leave --class out")


def read_images(paths: Sequence[File], channels: int, series: str | int = "") -> tuple[Volume, ...]:
    """All images in the files; a file may hold several volumes only for a model of several `channels`."""
    if channels == 1:
        return tuple(read_volume(path, series=series) for path in paths)
    return tuple(image for path in paths for image in read_channels(path, series=series))


def opened(
    network: Promptable,
    images: Sequence[Volume],
    prompts: Sequence[Prompt],
    *,
    follow: bool = True,
    keep_clicked: bool | None = None,
    overlap: float = OVERLAP,
    spacing_mm: float | None = None,
    progress: ReportProgress | None = None,
) -> Callable[[], Prediction]:
    """Prepare a scan, and return the function that runs the network on it: by a sliding window without prompts.

    `spacing_mm` is that of Predictor, `keep_clicked` that of `segment`.
    """
    if network.card.automatic and not prompts:
        prepared = prepare(network, images)
        return lambda: predict(network, prepared, overlap=overlap, progress=progress)
    keep = keeps_clicked(network) if keep_clicked is None else keep_clicked
    predictor = Predictor(network, follow=follow, keep_clicked=keep, progress=progress, spacing_mm=spacing_mm)
    predictor.set_image(images)
    return lambda: predictor.predict(prompts)


def _images(scan: Scan, channels: int, spacing_mm: Sequence[float] | None, series: str | int) -> tuple[Volume, ...]:
    if isinstance(scan, Volume):
        return (scan,)
    if not isinstance(scan, np.ndarray):
        return read_images([Path(scan)], channels, series)
    if spacing_mm is None:
        raise InputError("an array without its spacing", "spacing_mm=(i, j, k)", "give the mm between its voxels")
    return (Volume.from_array(scan, spacing_mm=spacing_mm),)


def _each(places: Sequence[Index]) -> Sequence[Index]:
    """The places as a list; a single place may be given without one."""
    return [places] if len(places) == 3 and np.ndim(places) == 1 else places  # type: ignore[list-item]


def _triple(place: Index) -> tuple[float, float, float]:
    return tuple(float(value) for value in place)  # type: ignore[return-value]
