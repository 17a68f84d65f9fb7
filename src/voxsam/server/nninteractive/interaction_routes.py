"""Routes of the protocol: interactions, each answered with the changed box of the mask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from voxsam.prompts import Prompt
from voxsam.server.nninteractive.answers import OCTETS, read_meta
from voxsam.server.nninteractive.capabilities import require
from voxsam.server.nninteractive.client import ARRAY, Held, Meta, Served, change, client_of, image_of, make_router
from voxsam.server.nninteractive.interactions import (
    BoxInteraction,
    MaskInteraction,
    PointInteraction,
    SeedInteraction,
    check_mask_shape,
)
from voxsam.server.nninteractive.segment import seed_of
from voxsam.server.nninteractive.wire import read_header, unpack
from voxsam.server.service import Service
from voxsam.server.store import Slot
from voxsam.volume import Volume

CHANGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {}}, "description": "The mask in the box that X-Meta names."}
}

router = make_router()


class Refine(BaseModel):
    """What /predict takes; VoxSAM always predicts the whole mask, so it changes nothing."""

    force_full_refine: bool = False


@router.post("/add_point_interaction", summary="A click", responses=CHANGE)
async def add_point(service: Served, slot: Held, point: PointInteraction) -> Response:
    """At an index (x, y, z) of the image; fractions are kept."""
    require(service.device.model.card, "positive", point.include_interaction)
    image = image_of(slot)
    return await _add(slot, image, point.prompts(image.grid), point.run_prediction)


@router.post("/add_bbox_interaction", summary="A box", responses=CHANGE)
async def add_box(service: Served, slot: Held, box: BoxInteraction) -> Response:
    """3D, or 2D: then it limits the mask within its plane, on all slices."""
    require(service.device.model.card, "box", box.include_interaction)
    image = image_of(slot)
    return await _add(slot, image, box.prompts(image.grid), box.run_prediction)


@router.post("/add_scribble_interaction", summary="A stroke", responses=CHANGE, openapi_extra=ARRAY)
async def add_scribble(request: Request, service: Served, slot: Held, meta: Meta) -> Response:
    """An array, not 0 where the stroke is; X-Meta may say which part of the image it covers."""
    return await _add_mask(request, service, slot, meta, "scribble")


@router.post("/add_lasso_interaction", summary="A closed contour", responses=CHANGE, openapi_extra=ARRAY)
async def add_lasso(request: Request, service: Served, slot: Held, meta: Meta) -> Response:
    """An array, not 0 on the contour or in all of its area."""
    return await _add_mask(request, service, slot, meta, "lasso")


@router.post("/add_initial_seg_interaction", summary="An initial mask", responses=CHANGE, openapi_extra=ARRAY)
async def add_initial_mask(request: Request, service: Served, slot: Held, meta: Meta = "{}") -> Response:
    """An array of the image's shape; earlier interactions are forgotten."""
    require(service.device.model.card, "hint")
    predict, image = read_meta(SeedInteraction, meta).run_prediction, image_of(slot)
    mask = await _read_mask(request, service, image.grid.shape, "an initial mask")
    seed = await run_in_threadpool(seed_of, mask, image.grid)
    return await change(slot, image, lambda segment: segment.seed(seed, predict))


@router.post("/predict", summary="A mask for what waits", responses=CHANGE)
async def predict(slot: Held, refine: Refine) -> Response:
    """For interactions that were added without one. Nothing runs if none was."""
    return await change(slot, image_of(slot), lambda segment: segment.predict())


@router.post("/undo", summary="Take the last interaction back", responses=CHANGE)
async def undo(slot: Held) -> Response:
    """One more with each call, down to the last reset or image."""
    return await change(slot, image_of(slot), lambda segment: segment.undo())


@router.post("/reset_interactions", summary="Begin another object")
async def reset_interactions(slot: Held) -> dict[str, Any]:
    """The client empties its buffer itself. Encoded crops are kept."""
    if slot.session is not None:
        await asyncio.wrap_future(slot.run(lambda session: client_of(slot).segment_of(session).reset()))
    return {}


async def _add_mask(
    request: Request, service: Service, slot: Slot, meta: str, kind: Literal["scribble", "lasso"]
) -> Response:
    interaction, image = read_meta(MaskInteraction, meta), image_of(slot)
    prompt, make = ("scribble", interaction.scribble) if kind == "scribble" else ("positive", interaction.lasso)
    require(service.device.model.card, prompt, interaction.include_interaction)
    part = interaction.place(image.grid.shape)
    mask = await _read_mask(request, service, [p.stop - p.start for p in part], f"a {kind}")
    prompts = await run_in_threadpool(make, mask, image.grid)
    return await _add(slot, image, prompts, interaction.run_prediction)


async def _read_mask(request: Request, service: Service, shape: Sequence[int], what: str) -> NDArray[np.bool_]:
    """Where a body's array is not 0. Its shape is compared before it is unpacked."""
    packed = read_header(await request.body())
    check_mask_shape(packed, shape, what)
    return await run_in_threadpool(lambda: unpack(packed, service.settings.upload_bytes) != 0)


async def _add(slot: Slot, image: Volume, prompts: Sequence[Prompt], predict: bool) -> Response:
    return await change(slot, image, lambda segment: segment.add(prompts, predict))
