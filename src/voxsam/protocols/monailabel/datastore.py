"""Datastore: images by ids that clients can show and send back, those that are open, and the labels that they save.

An image is a scan in a served folder ("0/patient1/ct.nii.gz": the folder's number, the path in it), or one that a
client sent, which is kept as other uploads are. Labels go to the state folder; served folders are never written to:

    STATE/labels/TAG/NAME.SUFFIX    a label as it was sent
    STATE/labels/TAG/NAME.json      the image that it is of, and what the client said about it

An image is opened at the first request and kept with its encoded crops. The protocol is stateless: every request brings
all clicks, so clients that request the same image share it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom.uid import UID

from voxsam.atomic import atomic_path, make_folder
from voxsam.io import NIFTI_SUFFIXES, SUFFIXES, write_mask
from voxsam.io.dicom.files import read_slices
from voxsam.protocols.segment import SegmentSession
from voxsam.server.errors import Full, NotThere, Refused
from voxsam.server.folders import Entry
from voxsam.server.messages import FolderSource, Source, UploadSource
from voxsam.server.service import Service
from voxsam.server.store import private
from voxsam.volume import Volume

MAX_IMAGES = 10_000
MAX_DEPTH = 8  # of folders in a served one
LABEL_SUFFIXES = (".seg.nrrd", *SUFFIXES)
SAFE_TAG = re.compile(r"[A-Za-z0-9_-]{1,40}")
UNSAFE = re.compile(r"[^A-Za-z0-9.\-]+")
BIN_TYPES = {1: np.uint8, 2: np.uint16}  # of a label.bin, by the bytes per voxel
BIN_MEMORY = 4  # bytes of memory per voxel of one, while it is written as a file


@dataclass(frozen=True)
class Label:
    """A saved label: its file and suffix, the image that it is of, and what the client said about it."""

    file: Path
    suffix: str
    image: str
    info: dict[str, Any]


class Image(SegmentSession):
    """An open image. Its clients send no heartbeats."""

    kind = "an image of MONAI Label's clients"


def session_name(source: Source) -> str:
    """The name of the session in which the image of a source is open."""
    return f"image-{source.model_dump_json()}"


class Datastore:
    """The images and labels of one server."""

    def __init__(self, service: Service) -> None:
        self.folders, self.store, self.saved = service.folders, service.store, service.saved
        self.sessions = service.sessions
        self.labels = service.store.folder / "labels"
        self._sent: dict[str, str] = {}  # ids of images that clients sent, and their uploads
        self._opening = asyncio.Lock()  # one image at a time

    # Images

    def images(self) -> dict[str, Entry | None]:
        """All images by id; None for one that a client sent."""
        found = {id: None for id, upload in self._sent.items() if (self.store.uploads / upload).is_dir()}
        served = (item for number in self.folders.roots for item in self._served(number, "", 0))
        return {**found, **dict(islice(served, MAX_IMAGES))}

    def _served(self, number: str, folder: str, depth: int) -> Iterator[tuple[str, Entry]]:
        for entry in self.folders.entries(number, folder):
            if entry.kind != "folder":
                yield f"{number}/{entry.path}", entry
            elif depth < MAX_DEPTH:
                yield from self._served(number, entry.path, depth + 1)

    def source(self, id: str) -> FolderSource | UploadSource:
        """The source of an image, by its id or by its SeriesInstanceUID, which OHIF uses. Raises NotThere."""
        if id in self._sent:
            return UploadSource(upload=self._sent[id])
        number, _, path = id.partition("/")
        if path and number in self.folders.roots:
            self.folders.find(number, path)
            return FolderSource(folder=number, path=path)
        if path and number in self.folders.archives:
            return FolderSource(folder=number, path=path)
        if UID(id).is_valid:
            for other, entry in self.images().items():
                if entry is not None and entry.kind == "series" and self._has_series(other, id):
                    return self.source(other)
            for archive, place in self.folders.archives.items():
                if study := place.study_of(id):
                    return FolderSource(folder=archive, path=f"{study}/{id}")
        raise NotThere("an image that is not here", "the id of an image in /datastore/", "list them, or send it")

    def _has_series(self, id: str, uid: str) -> bool:
        number, _, path = id.partition("/")
        return any(image.series == uid for image in islice(read_slices(self.folders.find_scan(number, path)), 1))

    def add(self, id: str, upload: str) -> None:
        """Register an upload under an id."""
        self._sent[id] = upload

    def file_of(self, id: str) -> Path | None:
        """The file of an image, if it is a single one that viewers read; None if it has to be converted."""
        source = self.source(id)
        if isinstance(source, UploadSource):
            files = list(self.store.upload_folder(source.upload).iterdir())
            path = files[0] if len(files) == 1 else None
        else:
            path = self.folders.find_scan(source.folder, source.path)
        return path if path is not None and path.is_file() and path.name.lower().endswith(SUFFIXES) else None

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """The first image without a label, or any of them ("random"); empty if there is none."""
        done = {label.image for label in self.all_labels()}
        left = [id for id in self.images() if id not in done]
        if not left:
            return {}
        id = random.choice(left) if strategy == "random" else left[0]
        file = self.file_of(id)
        name = UNSAFE.sub("_", id)
        if file is None:
            return {"id": id, "name": name if name.endswith(NIFTI_SUFFIXES) else f"{name}.nii.gz"}
        with open(file, "rb") as stream:
            return {"id": id, "name": name, "checksum": f"SHA256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"}

    # Open images

    async def find(self, name: str) -> Image | None:
        """An image that is open, or None."""
        async with self._opening:
            return self.sessions.find(Image, name)

    async def open(self, source: Source, name: str | None = None) -> Image:
        """The image of a source, in a session of that name (None: the source's own), read if it is not open.

        If the server is full, other images that nobody waits for are closed first. Raises InputError.
        """
        name = name or session_name(source)
        async with self._opening:
            while True:
                try:
                    return self.sessions.find(Image, name) or await self._read(source, name)
                except Full:
                    others = [image for image in self.sessions.open if isinstance(image, Image) and not image.pending]
                    if not others:
                        raise
                    self.sessions.release(min(others, key=lambda image: image.used).id)

    async def open_id(self, id: str) -> Image:
        """The image of an id. Raises InputError."""
        return await self.open(await asyncio.to_thread(self.source, id))

    async def _read(self, source: Source, name: str) -> Image:
        image = self.sessions.claim(Image, name)
        try:
            with image.held():
                async with self.saved.reading:
                    scan = await asyncio.to_thread(self.saved.reader.read, source)
                image.open(scan.volume, scan.part)
        except BaseException:
            self.sessions.release(name)
            raise
        return image

    # Labels

    def all_labels(self) -> Iterator[Label]:
        """All saved labels."""
        for facts in self.labels.glob("*/*.json"):
            known = json.loads(facts.read_text(encoding="utf-8"))
            suffix = known["suffix"]
            yield Label(facts.with_suffix(suffix), suffix, known["image"], known["info"])

    def label(self, image: str, tag: str) -> Label:
        """The label of an image with a tag. Raises NotThere."""
        for label in self.all_labels():
            if label.image == image and label.file.parent.name == tag:
                return label
        raise NotThere("a label that is not here", "one listed in /datastore/?output=all", "save it first")

    def save(self, image: str, tag: str, name: str, stream: BinaryIO, info: dict[str, Any], scan: Volume) -> None:
        """Save a label of an image, replacing an earlier one with that tag. Raises InputError for another kind of file,
        or a label with another number of voxels than the image.
        """
        if not SAFE_TAG.fullmatch(tag):
            raise Refused(f"a tag of {len(tag)} characters", "up to 40 letters, digits, - and _", "choose another")
        stem = f"{UNSAFE.sub('_', image)[-80:].replace('.', '_')}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"
        suffix = next((end for end in LABEL_SUFFIXES if name.lower().endswith(end)), "")
        folder = self.labels / tag
        make_folder(folder)
        with self.store.scratch_folder() as scratch:
            coming = scratch / f"label{suffix or '.nii.gz'}"
            if name.lower().endswith(".bin"):
                with self.sessions.memory.take(BIN_MEMORY * scan.array.size):
                    write_mask(_voxels(stream, scan), coming)
            elif suffix:
                with open(coming, "xb", opener=private) as file:
                    shutil.copyfileobj(stream, file)
                label = self.saved.reader.label(coming, "the label")
                if label.grid.shape != scan.grid.shape:
                    given = f"a label of {' x '.join(map(str, label.grid.shape))} voxels"
                    expected = f"those of the image: {' x '.join(map(str, scan.grid.shape))}"
                    raise Refused(given, expected, "save it on its grid")
            else:
                given = "a label of an unsupported kind"
                raise Refused(given, f"one of {', '.join((*LABEL_SUFFIXES, '.bin'))}", "save it as .nii.gz")
            for old in folder.glob(f"{stem}.*"):
                old.unlink()
            os.replace(coming, folder / f"{stem}{suffix or '.nii.gz'}")
        with atomic_path(folder / f"{stem}.json") as facts:
            facts.write_text(
                json.dumps({"image": image, "suffix": suffix or ".nii.gz", "info": info}), encoding="utf-8"
            )


def _voxels(stream: BinaryIO, image: Volume) -> Volume:
    """The label that OHIF sends as bare voxels, first index fastest. Raises Refused for another number of them."""
    count = image.array.size
    nbytes = stream.seek(0, os.SEEK_END)
    kind = BIN_TYPES.get(nbytes // count)
    if kind is None or nbytes % count:
        raise Refused(f"a label of {nbytes} bytes", f"one or two for each of {count} voxels", "send it again")
    stream.seek(0)
    data = stream.read(nbytes)
    labels = np.frombuffer(data, kind).reshape(image.grid.shape, order="F")
    if labels.max(initial=0) > np.iinfo(np.uint8).max:
        raise Refused(f"a label {labels.max()}", "labels up to 255", "number its segments anew")
    return Volume(labels.astype(np.uint8), image.grid, "SEG")
