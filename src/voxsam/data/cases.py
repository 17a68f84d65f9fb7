"""Labelled cases in a folder: the Medical Segmentation Decathlon / nnU-Net raw layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from voxsam.errors import FileError


@dataclass(frozen=True)
class Case:
    """One scan and its label file."""

    name: str
    image: Path
    label: Path


def find_cases(folder: Path) -> list[Case]:
    """The training cases of a folder with dataset.json, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, by name.

    MSD's own names without `_0000` are taken too. Raises FileError for a missing folder, file or image, and for a
    dataset.json that is none.
    """
    description = folder / "dataset.json"
    if not description.is_file():
        raise FileError(f"{folder}: no dataset.json", "a folder in MSD or nnU-Net raw layout", "check the path")
    try:
        ending = dict(json.loads(description.read_text(encoding="utf-8"))).get("file_ending", ".nii.gz")
    except (ValueError, TypeError) as error:
        raise FileError(f"{description}: {error}", "a JSON object", "repair the file") from error
    cases = []
    for label in sorted((folder / "labelsTr").glob(f"[!.]*{ending}")):
        name = label.name.removesuffix(ending)
        images = [folder / "imagesTr" / f"{name}{channel}{ending}" for channel in ("_0000", "")]
        image = next((path for path in images if path.is_file()), None)
        if image is None:
            raise FileError(f"{label}: its image is missing", f"{images[0].name} in imagesTr", "add the image")
        cases.append(Case(name, image, label))
    if not cases:
        raise FileError(f"{folder}: no labels in labelsTr", f"at least one *{ending}", "check the path")
    return cases
