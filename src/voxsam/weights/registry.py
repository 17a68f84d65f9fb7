"""The models that have a name: where their files lie, or where they can be had."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from voxsam.errors import CheckpointError, FileError

PACKAGED_FOLDER = Path(__file__).resolve().parents[1] / "weights"
AUTHORS_PAGE = "https://github.com/med-air/3DSAM-adapter"
META = "https://dl.fbaipublicfiles.com/segment_anything"
SAM_NOTE = "SAM's 2D weights (Meta): the frozen part of a model to fine-tune; import it with --kind sam"


@dataclass(frozen=True)
class NamedModel:
    """`file` is its name in the package (kind "voxsam") or in the models folder; `url` None: no direct address."""

    name: str
    kind: Literal["voxsam", "sam", "released"]
    file: str
    licence: str
    note: str
    url: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None


class ModelRow(NamedTuple):
    """One line of `voxsam weights list`. `where`: packaged, downloaded, available, by hand, or missing."""

    name: str
    size_bytes: int | None
    where: str
    licence: str
    note: str


def _sam(size: str, code: str, size_bytes: int, sha256: str) -> NamedModel:
    file = f"sam_{size}_{code}.pth"
    return NamedModel(f"sam_{size}", "sam", file, "Apache-2.0", SAM_NOTE, f"{META}/{file}", size_bytes, sha256)


# Sizes and checksums of Meta's files as published by several projects that check them; the code in each file name is
# the start of its MD5.
MODELS = {
    model.name: model
    for model in (
        NamedModel(
            "voxsam-tiny", "voxsam", "voxsam-tiny.safetensors", "Apache-2.0", "the default model, inside the package"
        ),
        _sam("vit_b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _sam("vit_l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _sam("vit_h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        NamedModel(
            "3dsam-adapter",
            "released",
            "last.pth.tar",
            "none stated",
            "checkpoints of the 3DSAM-adapter authors (KiTS, LiTS, pancreas, colon): download them by hand from their"
            f" project page, {AUTHORS_PAGE}, and import them with --kind released",
        ),
    )
}


def models_folder() -> Path:
    """Where named models are kept: $VOXSAM_HOME, or `voxsam` in the platform's folder for caches."""
    home = os.environ.get("VOXSAM_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "voxsam"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "voxsam"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voxsam"


def named(name: str) -> NamedModel:
    """The model of a name. Raises CheckpointError with the known names."""
    if name not in MODELS:
        raise CheckpointError(f"unknown model {name!r}", f"one of {', '.join(MODELS)}", "see `voxsam weights list`")
    return MODELS[name]


def find_model(source: str | Path) -> Path:
    """The file of a model's name, or the path itself; that it can be read is not checked.

    A known name wins over a file of the same name; a word without folder and suffix that is no file is taken for a
    name. Raises CheckpointError for an unknown name, and for a name whose file must be imported first.
    """
    path = Path(source).expanduser()
    is_word = isinstance(source, str) and path.name == source and not path.suffix
    if not is_word or (source not in MODELS and path.exists()):
        return path
    return _file_of(named(str(source)))


def _file_of(model: NamedModel) -> Path:
    if model.kind == "voxsam":
        path = PACKAGED_FOLDER / model.file
        if not path.is_file():
            raise FileError(f"{path} is missing from this installation", "the packaged model", "install voxsam again")
        return path
    if model.url is None:
        raise CheckpointError(f"{model.name} is no single file", "a VoxSAM model", model.note)
    path = models_folder() / model.file
    first = "" if path.is_file() else f"`voxsam weights fetch {model.name}`, then "
    raise CheckpointError(
        f"{model.name} is SAM's 2D file, to be fine-tuned first",
        "a VoxSAM model",
        f"run {first}`voxsam weights import {path} --kind sam --profile kits|lits|pancreas|colon -o MODEL.safetensors`",
    )


def sam_file(name: str) -> Path | None:
    """Where SAM's own file of that name lies, if it has been fetched; None for any other name."""
    model = MODELS.get(name)
    if model is None or model.kind != "sam":
        return None
    path = models_folder() / model.file
    return path if path.is_file() else None


def list_models(folder: Path | None = None) -> list[ModelRow]:
    """Every named model and where it is; `folder` stands for the models folder."""
    folder = models_folder() if folder is None else folder
    return [_row(model, folder) for model in MODELS.values()]


def _row(model: NamedModel, folder: Path) -> ModelRow:
    packaged = model.kind == "voxsam"
    path = (PACKAGED_FOLDER if packaged else folder) / model.file
    if model.url is None and not packaged:
        return ModelRow(model.name, None, "by hand", model.licence, model.note)
    if path.is_file():
        where = "packaged" if packaged else "downloaded"
        return ModelRow(model.name, path.stat().st_size, where, model.licence, model.note)
    return ModelRow(model.name, model.size_bytes, "missing" if packaged else "available", model.licence, model.note)
