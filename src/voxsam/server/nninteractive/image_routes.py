"""Routes of the protocol: the client's image, its buffer, and whether large tumours are followed."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import Request
from pydantic import BaseModel, PositiveInt
from starlette.concurrency import run_in_threadpool

from voxsam.server.errors import Refused
from voxsam.server.nninteractive.answers import read_meta
from voxsam.server.nninteractive.client import ARRAY, Held, Meta, Served, client_of, make_router, use
from voxsam.server.nninteractive.image import ImageProperties, as_volume, check_image_shape
from voxsam.server.nninteractive.wire import read_header, unpack

IMAGE_PATH = "/set_image"  # whose body is a whole scan

router = make_router()


class ImageMeta(BaseModel):
    """What comes with an image."""

    image_properties: ImageProperties = ImageProperties()


class Buffer(BaseModel):
    """The array that a client lets the server's masks be written into, on its own side."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: str


class Autozoom(BaseModel):
    """Whether a tumour that reaches the border of its crop is followed beyond it."""

    do_autozoom: bool


@router.post(IMAGE_PATH, summary="Open a scan", openapi_extra=ARRAY)
async def set_image(request: Request, service: Served, slot: Held, meta: Meta = "{}") -> dict[str, list[int]]:
    """An array (1, X, Y, Z), raw intensities. Another image and its object are closed."""
    properties = read_meta(ImageMeta, meta).image_properties
    with slot.held():
        packed = read_header(await request.body())
        check_image_shape(packed.shape, service.settings.most_voxels)

        def read() -> None:
            slot.open(as_volume(unpack(packed, service.settings.upload_bytes), properties))

        await run_in_threadpool(read)
    return {"original_image_shape": list(packed.shape)}


@router.post("/set_target_buffer", summary="Describe the client's buffer")
async def set_target_buffer(slot: Held, buffer: Buffer) -> dict[str, Any]:
    """Only checked: masks are sent as uint8, 0 and 1, and the client writes them into its buffer."""
    if not _is_whole(buffer.dtype):
        raise Refused(f"a target buffer of {buffer.dtype[:40]!r}", "bool or an integer type", "make it uint8")
    if slot.session is not None and buffer.shape != (shape := slot.session.volume.grid.shape):
        raise Refused(f"a target buffer of shape {buffer.shape}", f"the image's shape {shape}", "make it anew")
    await use(slot)
    return {}


@router.post("/set_do_autozoom", summary="Follow large tumours or not")
async def set_do_autozoom(slot: Held, autozoom: Autozoom) -> dict[str, Any]:
    """VoxSAM's `follow`: from the next prediction on."""
    client_of(slot).follow = autozoom.do_autozoom
    await use(slot)
    return {}


def _is_whole(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biu"
    except (TypeError, ValueError, SyntaxError):  # the last one of numpy's little language with commas
        return False
