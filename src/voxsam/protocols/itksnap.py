"""The protocol of itksnap-dls, the server of ITK-SNAP's deep learning extension; versions 1 and 2.

The image arrives as gzipped float32 voxels, x fastest, with their number along x, y, z but no spacing or position:
`voxsam serve --spacing` gives the mm. The response to every interaction is the whole mask, gzipped int8 in base64.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, BinaryIO

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Query, UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, Field, PositiveInt, ValidationError

import voxsam
from voxsam.errors import first_fault
from voxsam.geometry import Grid
from voxsam.prompts import Prompt
from voxsam.protocols.nninteractive.inputs import AXES as REVERSED_AXES
from voxsam.protocols.nninteractive.inputs import MaskInteraction, PointInteraction, on_grid
from voxsam.protocols.nninteractive.routes import require_prompt
from voxsam.protocols.segment import Segment, SegmentSession, find_client, release_client, stroke_bytes
from voxsam.server.api import TheService
from voxsam.server.app import Protocol
from voxsam.server.errors import Refused, TooLarge
from voxsam.server.messages import STROKE_MEMORY
from voxsam.server.service import Service
from voxsam.volume import Volume

AXES = REVERSED_AXES[::-1]  # x, y, z of a supine patient's scan: to the left, to the back, up
VOXEL = np.dtype("<f4")
GZIP_LEVEL = 1  # of masks, which compress well anyway

router = APIRouter(tags=["ITK-SNAP"])
PROTOCOL = Protocol(router, files=tuple(f"{v}/upload_raw/" for v in ("", "/v2")) + ("/process_",))


class Client(SegmentSession):
    """A session of one client, which sends no heartbeats."""

    kind = "a session of ITK-SNAP"


def _client(service: TheService, session_id: str) -> Client:
    return find_client(service.sessions, Client, session_id, "a session", "connect again in ITK-SNAP")


Held = Annotated[Client, Depends(_client)]


class Metadata(BaseModel):
    """The metadata of voxels: how many there are along x, y, z, and the components of each."""

    dimensions: list[PositiveInt] = Field(min_length=3, max_length=3)
    components_per_pixel: int = 1


Text = Annotated[str, Form(max_length=1 << 16, description="JSON")]


@router.get("/status", summary="Whether the server is up")
async def status() -> dict[str, str]:
    """With its version."""
    return {"status": "ok", "version": voxsam.__version__}


@router.get("/v2/models", summary="The model")
async def models(service: TheService) -> dict[str, Any]:
    """The interactions that it takes."""
    card = service.worker.model.card
    known = {"point": "positive", "scribble": "scribble", "lasso": "positive"}
    kinds = [kind for kind, prompt in known.items() if prompt in card.prompts]
    return {"models": [{"id": card.name, "channels": [1], "dimensions": 3, "interactions": kinds}]}


@router.get("/start_session", summary="Take a place")
@router.get("/v2/start_session/{model_id}", summary="Take a place")
async def start_session(service: TheService) -> dict[str, str]:
    """For one image. 503 if the server is full."""
    return {"session_id": service.sessions.claim(Client).id}


@router.get("/end_session/{session_id}", summary="Give a place back")
@router.get("/v2/end_session/{session_id}", summary="Give a place back")
async def end_session(service: TheService, session_id: str) -> dict[str, str]:
    """Also succeeds for a session that has ended."""
    await release_client(service.sessions, Client, session_id)
    return {"message": "Session ended"}


@router.post("/upload_raw/{session_id}", summary="Open a scan")
@router.post("/v2/upload_raw/{session_id}", summary="Open a scan")
async def upload_raw(
    service: TheService, client: Held, file: Annotated[UploadFile, File()], metadata: Text
) -> dict[str, str]:
    """The previous one is closed, and its prompts are lost."""
    known, most = _read(metadata), service.settings.max_voxels
    x, y, z = known.dimensions

    def image() -> Volume:
        grid = Grid.from_spacing(known.dimensions, service.settings.spacing_mm, axes=AXES)
        return on_grid(_whole(_voxels(file.file, known)), grid)

    with client.held():
        if x * y * z > most:
            raise TooLarge(f"an image of {x} x {y} x {z} voxels", f"at most {most:,}", "crop the scan")
        work_bytes = x * y * z * (VOXEL.itemsize + 9)  # while floats are checked
        await asyncio.to_thread(client.open_image, image, work_bytes)
    return {"message": "image received"}


@router.get("/process_point_interaction/{session_id}", summary="A click")
async def click(
    service: TheService, client: Held, x: float, y: float, z: float, foreground: bool = False
) -> dict[str, str]:
    """On a voxel (x, y, z)."""
    require_prompt(service.worker.model.card, "positive", foreground)
    asked = PointInteraction(coordinates=(x, y, z), include_interaction=foreground)
    return await _change(service, client, asked.prompts(client.require_volume().grid))


@router.get("/v2/process_point_interaction/{session_id}", summary="A click")
async def click_of_version_2(
    service: TheService,
    client: Held,
    point: Annotated[list[float], Query(min_length=3, max_length=3)],
    foreground: bool = False,
) -> dict[str, str]:
    """On a voxel (x, y, z)."""
    x, y, z = point
    return await click(service, client, x, y, z, foreground)


@router.post("/process_scribble_interaction/{session_id}", summary="A stroke")
async def scribble(
    service: TheService, client: Held, file: Annotated[UploadFile, File()], metadata: Text, foreground: bool = False
) -> dict[str, str]:
    """An array of the image's shape, not 0 where the stroke is."""
    require_prompt(service.worker.model.card, "scribble", foreground)
    return await _drawn(service, client, file, metadata, MaskInteraction(include_interaction=foreground).scribble)


@router.post("/process_lasso_interaction/{session_id}", summary="A closed contour")
async def lasso(
    service: TheService, client: Held, file: Annotated[UploadFile, File()], metadata: Text, foreground: bool = False
) -> dict[str, str]:
    """An array of the image's shape, not 0 on the contour or in all of its area."""
    require_prompt(service.worker.model.card, "positive", foreground)
    return await _drawn(service, client, file, metadata, MaskInteraction(include_interaction=foreground).lasso)


@router.get("/reset_interactions/{session_id}", summary="Begin another object")
@router.get("/v2/reset_interactions/{session_id}", summary="Begin another object")
async def reset(client: Held) -> dict[str, str]:
    """Encoded crops are kept."""
    client.require_volume()
    await asyncio.wrap_future(client.run(lambda segment: segment.reset()))
    return {"status": "success"}


async def _drawn(
    service: Service, client: Client, file: UploadFile, metadata: str, make: Callable[..., Sequence[Prompt]]
) -> dict[str, str]:
    volume, known = client.require_volume(), _read(metadata)
    if tuple(known.dimensions) != volume.grid.shape:
        given = f"a drawing of {known.dimensions} voxels"
        raise Refused(given, f"those of the image, {list(volume.grid.shape)}", "draw on the image that was sent")

    def prompts() -> Sequence[Prompt]:
        with service.sessions.memory.take(volume.array.size * (VOXEL.itemsize + 2 + STROKE_MEMORY)):
            return make(_voxels(file.file, known) != 0, volume.grid)

    return await _change(service, client, await asyncio.to_thread(prompts))


async def _change(service: Service, client: Client, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Let the worker add the prompts, and respond with the whole mask."""
    client.check_growth()

    def work(segment: Segment) -> NDArray[np.uint8]:
        segment.add(prompts, predict=True)
        return segment.mask

    with service.sessions.memory.take(2 * client.require_volume().array.size):
        mask = await asyncio.wrap_future(client.run(work, stroke_bytes(prompts)))
        packed = await asyncio.to_thread(lambda: gzip.compress(mask.T.tobytes(), GZIP_LEVEL))
    return {"status": "success", "result": base64.b64encode(packed).decode("ascii")}


def _read(metadata: str) -> Metadata:
    try:
        known = Metadata.model_validate_json(metadata)
    except ValidationError as error:
        given = f"metadata: {first_fault(error)}"
        raise Refused(given, "JSON with the dimensions of a 3D image", "open a 3D image in ITK-SNAP") from error
    if known.components_per_pixel != 1:
        given = f"an image of {known.components_per_pixel} components"
        raise Refused(given, "one: the model takes one", "open one of them alone")
    return known


def _voxels(stream: BinaryIO, known: Metadata) -> NDArray[np.float32]:
    """(x, y, z) voxels of a file. Raises Refused unless it unpacks to exactly that many."""
    x, y, z = known.dimensions
    nbytes = x * y * z * VOXEL.itemsize
    try:
        with gzip.open(stream) as unpacked:
            data = unpacked.read(nbytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused("voxels that cannot be unpacked", "gzipped float32", "send them again") from error
    if len(data) != nbytes:
        given = f"voxels of {'more than ' * (len(data) > nbytes)}{min(len(data), nbytes)} bytes"
        raise Refused(given, f"{nbytes} for {x} x {y} x {z} float32", "send all of them")
    return np.frombuffer(data, VOXEL).reshape((x, y, z), order="F")


def _whole(array: NDArray[np.float32]) -> NDArray[Any]:
    """The array as int16, for half of the memory, if that holds its values: a CT arrives as floats."""
    small = np.iinfo(np.int16)
    if array.min() < small.min or array.max() > small.max:  # False for NaN, which is not to reach astype
        return array
    whole = np.nan_to_num(array).astype(np.int16)
    return whole if np.array_equal(whole, array) else array
