"""The routes of MONAI Label's protocol: what is available (/info/), masks for clicks (/infer/), images and labels.

Clicks arrive as JSON in the field `params`, masks are returned as one part of a multipart response. With a key, /auth/
lets clients log in: any name, and the key as the password.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile as FormFile  # FastAPI's is one of these

import voxsam
from voxsam.errors import PromptError, UnsupportedError, first_fault
from voxsam.geometry import Grid
from voxsam.io import itk, write_mask
from voxsam.prompts import Box, Point, Prompt
from voxsam.protocols.monailabel.datastore import Datastore, Image, session_name
from voxsam.protocols.segment import Segment
from voxsam.region import EMPTY
from voxsam.server.api import TheService
from voxsam.server.api.downloads import write_scan
from voxsam.server.app import Protocol
from voxsam.server.errors import KeyNeeded, NotThere, Refused
from voxsam.server.folders import MAX_FILES
from voxsam.server.messages import MAX_PROMPTS, UploadSource
from voxsam.server.service import Service
from voxsam.volume import Volume

LABEL = "tumour"
KIND = "deepgrow"  # the protocol's word for a click model for any object; MITK offers negative clicks for no other
STRATEGIES = {"first": "The first scan without a label", "random": "Any scan without a label"}
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")  # of masks that a client may ask for
PIECE_BYTES = 1 << 20
OCTETS = "application/octet-stream"  # MITK looks for this type only
DICOM = "application/dicom"

router = APIRouter(tags=["MONAI Label"])
PROTOCOL = Protocol(router, files=("/infer/", "/session/", "/datastore/"), public=("/auth/", "/auth/token"))


def _datastore(request: Request, service: TheService) -> Datastore:
    """The one of this server."""
    state = request.app.state
    if not hasattr(state, "monailabel"):
        state.monailabel = Datastore(service)
    return state.monailabel


TheDatastore = Annotated[Datastore, Depends(_datastore)]
Text = Annotated[str, Form(max_length=1 << 20, description="JSON")]


@router.get("/auth/", summary="Whether a key is needed")
async def auth(service: TheService) -> dict[str, bool]:
    """Clients then ask for a name and a password."""
    return {"enabled": service.settings.key is not None}


@router.post("/auth/token", summary="Log in: any name, the key as the password")
async def token(service: TheService, password: Annotated[str, Form(max_length=4096)] = "") -> dict[str, str]:
    """The key, which later requests send."""
    key = service.settings.key
    if key is None or not hmac.compare_digest(password.encode(), key.get_secret_value().encode()):
        raise KeyNeeded("a wrong password", "the server's key as the password", "enter the key")
    return {"access_token": password, "token_type": "Bearer"}


@router.get("/auth/token/valid", summary="Whether the key that was sent is the server's")
async def token_is_valid() -> dict[str, Any]:
    """Requests with another key do not get here."""
    return {}


@router.get("/info/", summary="The model, and how many images there are")
async def info(service: TheService, store: TheDatastore) -> dict[str, Any]:
    """In MONAI Label's form. There is nothing to train or to score here."""
    card = service.worker.model.card
    model = {"type": KIND, "labels": [LABEL], "dimension": 3, "description": f"VoxSAM: {card.name}", "config": {}}
    return {
        "name": "VoxSAM",
        "description": "One click, a tumour mask",
        "version": voxsam.__version__,
        "labels": [LABEL],
        "models": {} if card.automatic else {card.name: model},
        "trainers": {},
        "strategies": {name: {"description": text} for name, text in STRATEGIES.items()},
        "scoring": {},
        "train_stats": {},
        "datastore": await asyncio.to_thread(_statistics, store),
        "config": {},
    }


def _statistics(store: Datastore) -> dict[str, Any]:
    labels = list(store.all_labels())
    tags = dict(Counter(label.file.parent.name for label in labels))
    return {"total": len(store.images()), "completed": len({label.image for label in labels}), "label_tags": tags}


# Masks

Points = Annotated[list[tuple[float, float, float]], Field(max_length=MAX_PROMPTS)]


class Params(BaseModel):
    """The parameters of a request: clicks as voxel indices (i, j, k), and how the mask is to be written.

    `roi`: (i0, i1, j0, j1, k0, k1), the voxels that the mask must stay within. Other keys are ignored.
    """

    foreground: Points = []
    background: Points = []
    roi: tuple[float, float, float, float, float, float] | tuple[()] = ()
    result_extension: str = ".nii.gz"
    result_compress: bool = True

    def prompts(self, grid: Grid) -> list[Prompt]:
        """The prompts for a predictor; none without a click on the tumour. Raises PromptError."""
        found: list[Prompt] = [Point.at_index(grid, index) for index in self.foreground]
        found += [Point.at_index(grid, index, positive=False) for index in self.background]
        if self.roi:
            ends = np.reshape(self.roi, (3, 2)).clip(0, np.array(grid.shape)[:, None] - 1)
            if not self.foreground:
                raise PromptError("a region without a click", "clicks in it", "click the tumour, too")
            inside = Point.at_index(grid, self.foreground[0]).world_mm
            box = Box.at_index(grid, ends[:, 0].tolist(), ends[:, 1].tolist())
            found.append(Box(box.corner_mm, box.opposite_mm, inside))
        return found if self.foreground else []


@router.post("/infer/{model}", summary="The mask for clicks on an image")
async def infer(
    service: TheService,
    store: TheDatastore,
    model: str,
    image: str = "",
    session_id: str = "",
    output: Literal["", "all", "image", "json", "dicom_seg"] = "",
    params: Text = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """The image: `file`, else that of a session, else one of the datastore. No click: an empty mask."""
    begun = time.perf_counter()
    card = service.worker.model.card
    if card.automatic or model != card.name:
        raise NotThere(f"the model {model[:80]!r}", "one that /info/ lists", "load the list of models again")
    if label is not None:
        raise UnsupportedError("a label with the request (scribbles)", "clicks", "use the point prompts")
    asked = _read(params)
    opened = await _open(service, store, image, session_id, file)
    scan = opened.require_volume()
    prompts = asked.prompts(scan.grid)
    card_prompts = {"positive", *(["negative"] if asked.background else []), *(["box"] if asked.roi else [])}
    if prompts and (missing := card_prompts - set(card.prompts)):
        given, expected = f"a {min(missing)} prompt for the model {card.name}", ", ".join(card.prompts)
        raise UnsupportedError(given, f"one of {expected}", "use another model")

    def segmented(segment: Segment) -> Volume:
        return segment.predictor.predict(prompts).mask if prompts else EMPTY.on_all(scan)

    mask = await asyncio.wrap_future(opened.run(segmented, scan.array.size))
    seconds = round(time.perf_counter() - begun, 3)
    facts = {"label_names": {LABEL: 1}, "latencies": {"total": seconds}, "remarks": list(mask.remarks)}
    if output == "json":
        return JSONResponse(facts)
    suffix = ".seg.dcm" if output == "dicom_seg" else asked.result_extension

    def write(path: Path) -> None:
        if suffix in (".nrrd", ".mha") and not asked.result_compress:
            itk.write(mask, path, compress=False)
        else:
            write_mask(mask, path, model=card.name)

    body = await _file(service, f"mask{suffix}", write)
    name = f"{secrets.token_hex(8)}{suffix}"
    if output in ("image", "dicom_seg"):
        media = DICOM if output == "dicom_seg" else OCTETS
        return Response(body, media_type=media, headers={"content-disposition": f'attachment; filename="{name}"'})
    return _multipart(facts, name, body)


def _read(params: str) -> Params:
    try:
        asked = Params.model_validate_json(params or "{}")
    except ValidationError as error:
        given = f"params: {first_fault(error)}"
        raise Refused(given, "JSON with foreground and background, lists of [i, j, k]", "correct it") from error
    if asked.result_extension not in EXTENSIONS:
        given = f"result_extension {asked.result_extension[:20]!r}"
        raise Refused(given, f"one of {', '.join(EXTENSIONS)}", "ask for .nii.gz")
    return asked


async def _open(service: Service, store: Datastore, image: str, session_id: str, file: UploadFile | None) -> Image:
    """The image of a request. A file that was sent before is recognised by its content, and not read again."""
    if file is not None and not session_id:
        digest = await asyncio.to_thread(hashlib.file_digest, file.file, "sha256")  # type: ignore[arg-type]  # a file
        name = f"file-{digest.hexdigest()}"
        known = await store.find(name)
        return known or await store.open(UploadSource(upload=await _keep(service, file)), name)
    if session_id:
        return await store.open(UploadSource(upload=session_id))
    if image:
        return await store.open_id(image)
    raise Refused("a request without an image", "image=ID, session_id=ID or a file", "choose an image")


async def _keep(service: Service, file: FormFile, upload: str | None = None) -> str:
    """Store a file of a request as an upload, and return the upload's id."""
    await file.seek(0)

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await file.read(PIECE_BYTES):
            yield piece

    key, _ = await service.uploads.take(pieces(), file.filename or "scan.nii.gz", upload)
    return key


async def _file(service: Service, name: str, write: Callable[[Path], None]) -> bytes:
    """The bytes of a file that `write` writes on a thread, one at a time."""

    def written(path: Path) -> bytes:
        write(path)
        return path.read_bytes()

    async with service.sending:
        with service.store.scratch_folder() as folder:
            return await asyncio.to_thread(written, folder / name)


def _multipart(facts: dict[str, Any], name: str, file: bytes) -> Response:
    """The facts, then the file. MITK takes all after "boundary=" as the boundary: no quotes, nothing after it."""
    boundary = secrets.token_hex(16)
    parts = (
        ('name="params"\r\nContent-Type: application/json', json.dumps(facts).encode()),
        (f'name="image"; filename="{name}"\r\nContent-Type: {OCTETS}', file),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    media = f"multipart/form-data; boundary={boundary}"
    return Response(body + f"--{boundary}--\r\n".encode(), headers={"content-type": media})


# Sessions: an image that a client sent, for a while


@router.put("/session/", summary="Send an image for a while")
async def create_session(request: Request, service: TheService) -> dict[str, Any]:
    """Its files are the parts `files` of a form: one, or those of a DICOM series."""
    key = None
    async with request.form(max_files=MAX_FILES) as form:
        for file in form.getlist("files"):
            if not isinstance(file, str):
                key = await _keep(service, file, key)
    if key is None:
        raise Refused("a session without files", "the scan in the field `files`", "send it")
    return {"session_id": key, "session_info": await session(service, key)}


@router.get("/session/{session_id}", summary="Whether a session is there")
async def session(service: TheService, session_id: str) -> dict[str, Any]:
    """404 if there is none, or no longer: an hour after it was last used."""
    folder = service.store.upload_folder(session_id)
    folder.touch()
    return {"name": session_id, "expiry": 3600}


@router.delete("/session/{session_id}", summary="Forget a session")
async def remove_session(service: TheService, session_id: str) -> dict[str, Any]:
    """With its image."""
    known = await session(service, session_id)
    await asyncio.to_thread(service.sessions.release, session_name(UploadSource(upload=session_id)))
    await asyncio.to_thread(shutil.rmtree, service.store.upload_folder(session_id), ignore_errors=True)
    return known


# The datastore


@router.get("/datastore/", summary="Images and labels")
async def datastore(store: TheDatastore, output: Literal["", "stats", "all", "train"] = "") -> Any:
    """`all`: each image with its labels; else how many there are."""
    if output != "all":
        return await asyncio.to_thread(_statistics, store)

    def listed() -> dict[str, Any]:
        found = {id: {"image": {"info": {}, "ext": ""}, "labels": {}} for id in store.images()}
        for label in store.all_labels():
            labels = found.setdefault(label.image, {"image": {"info": {}}, "labels": {}})["labels"]
            labels[label.file.parent.name] = {"info": label.info, "ext": label.suffix}
        return {"name": "VoxSAM", "description": "", "objects": found}

    return await asyncio.to_thread(listed)


@router.post("/activelearning/{strategy}", summary="The next image to label")
async def next_sample(store: TheDatastore, strategy: str) -> dict[str, Any]:
    """Empty if all have a label."""
    if strategy not in STRATEGIES:
        raise NotThere(f"the strategy {strategy[:40]!r}", f"one of {', '.join(STRATEGIES)}", "choose one of those")
    return await asyncio.to_thread(store.next_sample, strategy)


@router.put("/datastore/", summary="Send an image", include_in_schema=False)
@router.put("/datastore/image", summary="Send an image")
async def add_image(
    service: TheService, store: TheDatastore, file: Annotated[UploadFile, File()], image: str = ""
) -> dict[str, str]:
    """It is kept as long as other uploads are: an hour after it was last used."""
    id = image or (file.filename or "image")
    store.add(id, await _keep(service, file))
    return {"image": id}


@router.head("/datastore/image", include_in_schema=False)
@router.get("/datastore/image", summary="An image as a file")
async def get_image(service: TheService, store: TheDatastore, image: str) -> Response:
    """Unchanged if it is a single file that viewers read, otherwise converted to .nii.gz."""
    file = await asyncio.to_thread(store.file_of, image)
    if file is not None:
        return FileResponse(file, media_type=OCTETS, filename=file.name)
    scan = (await store.open_id(image)).require_volume()
    body = await _file(service, "scan.nii.gz", lambda path: write_scan(scan, path))
    return Response(body, media_type=OCTETS, headers={"content-disposition": 'attachment; filename="scan.nii.gz"'})


@router.get("/datastore/image/info", summary="What is known of an image")
async def image_info(store: TheDatastore, image: str) -> dict[str, Any]:
    """Only that it exists. Raises NotThere."""
    await asyncio.to_thread(store.source, image)
    return {}


@router.put("/datastore/label", summary="Save a label")
async def save_label(
    service: TheService,
    store: TheDatastore,
    image: str,
    label: Annotated[UploadFile, File()],
    params: Text = "{}",
    tag: str = "final",
) -> dict[str, str]:
    """On its image's grid; one with the same tag is replaced."""
    try:
        said = from_json(params or "{}")
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Refused("params that are no JSON object", "a JSON object", "correct it")
    scan, name = (await store.open_id(image)).require_volume(), label.filename or "label.nii.gz"
    info = {"params": {key: value for key, value in said.items() if key != "client_id"}}
    async with service.saved.reading:
        await asyncio.to_thread(store.save, image, tag or "final", name, label.file, info, scan)
    return {"image": image, "label": image}


@router.head("/datastore/label", include_in_schema=False)
@router.get("/datastore/label", summary="A label as a file")
async def get_label(store: TheDatastore, label: str, tag: str = "final") -> Response:
    """As it was sent. Raises NotThere."""
    found = await asyncio.to_thread(store.label, label, tag)
    return FileResponse(found.file, media_type=OCTETS, filename=found.file.name)


@router.get("/datastore/label/info", summary="What a client said of a label")
async def label_info(store: TheDatastore, label: str, tag: str = "final") -> dict[str, Any]:
    """As it was sent. Raises NotThere."""
    return (await asyncio.to_thread(store.label, label, tag)).info
