"""Named models: where their files are, or where to get them, and their download.

Downloads use the standard library's urllib, which honours the system's proxies and certificates. huggingface_hub
resumes only files of its own hub, and without If-Range; pooch, httpx and requests do not resume at all.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock

from voxsam.errors import CheckpointError, FileError, UnsupportedError

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


def user_folder(mac: str, variable: str, default: str) -> Path:
    """$VOXSAM_HOME, or `voxsam` in a folder of the user's: ~/Library/`mac` on macOS, %LOCALAPPDATA% on Windows, else
    $`variable`, or ~/`default` without it.
    """
    home = os.environ.get("VOXSAM_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / mac / "voxsam"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "voxsam"
    return Path(os.environ.get(variable) or Path.home() / default) / "voxsam"


def models_folder() -> Path:
    """Where named models are kept: $VOXSAM_HOME, or `voxsam` in the platform's folder for caches."""
    return user_folder("Caches", "XDG_CACHE_HOME", ".cache")


def named(name: str) -> NamedModel:
    """The model of that name. Raises CheckpointError, with the known names, if there is none."""
    if name not in MODELS:
        raise CheckpointError(f"unknown model {name!r}", f"one of {', '.join(MODELS)}", "see `voxsam weights list`")
    return MODELS[name]


def find_model(source: str | Path) -> Path:
    """The file of a named model, or the path itself; whether it can be read is not checked.

    A known name wins over a file of the same name; a word without folder and suffix that is not a file is taken for a
    name. Raises CheckpointError for an unknown name, and for a name whose file must be imported first.
    """
    path = Path(source).expanduser()
    is_word = isinstance(source, str) and path.name == source and not path.suffix
    if not is_word or (source not in MODELS and path.exists()):
        return path
    model = named(str(source))
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
    """The path of SAM's own file of that name, if it has been fetched; else None."""
    model = MODELS.get(name)
    if model is None or model.kind != "sam":
        return None
    path = models_folder() / model.file
    return path if path.is_file() else None


def list_models(folder: Path | None = None) -> list[ModelRow]:
    """Every named model and where it is; `folder` takes the place of the models folder."""
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


Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None: the server does not say)

TIMEOUT_S = 30  # of silence
CHUNK_BYTES = 1 << 20


def fetch(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download the file of a named model to `folder` (default: the models folder) unless it is there; returns its path.

    Called again after an interruption, it resumes where it stopped, if the server allows that and the file has not
    changed there. Raises CheckpointError for an unknown name or a wrong checksum, FileError if the address or the disk
    fails, UnsupportedError for a model without a direct address.
    """
    model = named(name)
    if model.kind == "voxsam":
        return PACKAGED_FOLDER / model.file
    if model.url is None:
        raise UnsupportedError(f"{name} has no direct address", "a model that can be fetched", model.note)
    folder = models_folder() if folder is None else folder
    target = folder / model.file
    lock = target.with_name(f"{target.name}.part.lock")  # of another process that fetches the same model
    if _is_whole(target, model) and not lock.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire()
    except OSError as error:
        raise _disk(target, error) from error
    with held:
        if not _is_whole(target, model):
            _download(model, target, progress)
        lock.unlink(missing_ok=True)
    return target


def _is_whole(target: Path, model: NamedModel) -> bool:
    return target.is_file() and _sha256(target) == model.sha256


def _download(model: NamedModel, target: Path, progress: Progress | None) -> None:
    part = target.with_name(f"{target.name}.part")
    if not part.is_file() or part.stat().st_size != model.size_bytes:
        _Transfer(model, target, part, progress).run()
    if _sha256(part) != model.sha256:
        part.unlink()
        raise CheckpointError(
            f"what came from {model.url} has another checksum, and was removed",
            f"sha256 {model.sha256}",
            f"try again; if it stays so, download it elsewhere and put it at {target}",
        )
    os.replace(part, target)
    _tag_file(part).unlink(missing_ok=True)


class _Transfer:
    """A request for a file or the rest of it. `part` keeps what arrived, a file beside it the server's version tag."""

    def __init__(self, model: NamedModel, target: Path, part: Path, progress: Progress | None) -> None:
        self.url, self.target, self.part = str(model.url), target, part
        self.tag = _tag_file(part)
        self.progress = progress or (lambda done, total: None)

    def run(self) -> None:
        """Complete `part`, or raise FileError."""
        have = self.part.stat().st_size if self.part.is_file() and self.tag.is_file() else 0
        try:
            with self._open(have) as response:
                start = _start_of(response)
                if start in (0, have):
                    return self._receive(response, start)
                if not have:
                    raise self._unreachable("the server sent a part of the file, unasked")
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise self._unreachable(f"{error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise self._unreachable(str(getattr(error, "reason", None) or error)) from error
        self.tag.unlink()  # what we have is not the start of the server's file: begin again, once
        self.run()

    def _open(self, have: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": "voxsam", "Accept-Encoding": "identity"}
        if have:  # If-Range: the rest only if the file is still the same, else all of it
            headers |= {"Range": f"bytes={have}-", "If-Range": self.tag.read_text(encoding="ascii")}
        return urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_S)

    def _receive(self, response: http.client.HTTPResponse, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        try:
            self._check_space(total, start)
            if not start:
                self._keep_tag(response)
            with open(self.part, "ab" if start else "wb") as file:
                done = start
                self.progress(done, total)
                while chunk := self._read(response, done, total):
                    file.write(chunk)
                    file.flush()
                    done += len(chunk)
                    self.progress(done, total)
        except OSError as error:
            raise _disk(self.target, error) from error
        if total is not None and done < total:
            raise self._stopped("the connection was closed", done, total)

    def _read(self, response: http.client.HTTPResponse, done: int, total: int | None) -> bytes:
        try:
            return response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._stopped(str(error), done, total) from error

    def _check_space(self, total: int | None, start: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise FileError(
                f"{self.target} needs {_mb(total - start)} more and the disk has {_mb(free)} free",
                "a disk with room for it",
                "free some space, or set VOXSAM_HOME to a folder on another disk",
            )

    def _keep_tag(self, response: http.client.HTTPResponse) -> None:
        tag = response.headers.get("ETag", "")
        tag = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")  # If-Range takes no weak tags
        if tag.isascii() and tag:
            self.tag.write_text(tag, encoding="ascii")
        else:
            self.tag.unlink(missing_ok=True)

    def _stopped(self, reason: str, done: int, total: int | None) -> FileError:
        of = f" of {_mb(total)}" if total else ""
        return FileError(
            f"the transfer of {self.url} stopped after {_mb(done)}{of} ({reason})",
            "an unbroken connection",
            "run the same command again: it goes on from there",
        )

    def _unreachable(self, reason: str) -> FileError:
        return FileError(
            f"{self.url} could not be fetched ({reason})",
            "a connection to that address",
            f"try again, or download it elsewhere and put it at {self.target}",
        )


def _start_of(response: http.client.HTTPResponse) -> int:
    """Where in the file this response starts: 0 unless the server sends a part, -1 if it does not say which."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _disk(target: Path, error: OSError) -> FileError:
    return FileError(
        f"{target} could not be written ({error.strerror or error})",
        "a folder that takes files, with room for it",
        "free some space, or set VOXSAM_HOME to another folder",
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
