"""The routes of nnInteractive's protocol.

Arrays arrive as bodies (wire.py) with JSON in the header X-Meta; masks go back the same way, only the changed box. A
client's session is its lease: 410 for one that has ended, 503 for a full server.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt, ValidationError

import voxsam
from voxsam.boxes import is_empty
from voxsam.errors import PromptError, UnsupportedError, first_fault
from voxsam.network.card import Card
from voxsam.prompts import Prompt
from voxsam.protocols.nninteractive.inputs import (
    BoxInteraction,
    ImageProperties,
    MaskInteraction,
    PointInteraction,
    SeedInteraction,
    as_volume,
    check_image_shape,
)
from voxsam.protocols.nninteractive.wire import pack, read_header, unpack
from voxsam.protocols.segment import Change, Segment, SegmentSession, find_client, release_client, stroke_bytes
from voxsam.region import Region
from voxsam.server.api import TheService
from voxsam.server.app import Protocol
from voxsam.server.errors import Dropped, Refused, TooMany
from voxsam.server.messages import STROKE_MEMORY
from voxsam.server.service import Service
from voxsam.server.sessions import OpenSession, Sessions
from voxsam.volume import Volume

PROTOCOL_VERSION = "2.6.0"  # of the nnInteractive package whose wire protocol this is
PROMPTS = {"points": "positive", "bbox2d": "box", "bbox3d": "box", "lasso": "positive", "scribble": "scribble"}
NO_LICENCE = "!!MISSING!!"  # the protocol's word for it
SCRIBBLE_VOXELS = 2  # thickness that is requested: a scribble becomes points, so a thin one suffices
LEASE, META, OCTETS = "X-Lease-Token", "X-Meta", "application/octet-stream"
ARRAY = {"requestBody": {"content": {OCTETS: {}}, "required": True}}
CHANGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {}}, "description": "The mask in the box that X-Meta names."}
}

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")

router = APIRouter(tags=["nnInteractive"])
PROTOCOL = Protocol(
    router,
    arrays=("/set_image", "/add_scribble_interaction", "/add_lasso_interaction", "/add_initial_seg_interaction"),
)


class Client(SegmentSession):
    """A lease: the client's settings, and the object that it works on."""

    kind = "a lease of this server"
    lease_s = OpenSession.lease_s  # its clients send heartbeats

    def __init__(self, sessions: Sessions, name: str) -> None:
        super().__init__(sessions, name)
        self.follow = True
        self.opening = False

    @property
    def image(self) -> Volume:
        """The client's image. Raises Refused if none was sent."""
        if self.volume is None:
            raise Refused("an interaction without an image", "an image first", "call set_image")
        return self.volume

    async def change(self, image: Volume, act: Callable[[Segment], Change], memory_bytes: int = 0) -> Response:
        """Let the worker call `act` with the object when it is its turn, and respond with what changed.

        Raises Refused if the image is no longer the one that the interaction was made for.
        """

        def work(segment: Segment) -> Change:
            if self.volume is not image:
                raise Refused("an interaction with an image that was replaced", "the image of now", "make it again")
            segment.predictor.follow = self.follow
            return act(segment)

        changed = await asyncio.wrap_future(self.run(work, memory_bytes))
        return await asyncio.to_thread(_change, changed)

    async def add(self, image: Volume, prompts: Sequence[Prompt], predict: bool) -> Response:
        """Add an interaction and respond with what changed, as `change` does. Raises Full."""
        self.check_growth()
        return await self.change(image, lambda segment: segment.add(prompts, predict), stroke_bytes(prompts))

    async def use(self, act: Callable[[Segment], None] = lambda segment: None) -> None:
        """Count a request as a use of the session, even if the worker has nothing to do."""
        if self.volume is not None:
            await asyncio.wrap_future(self.run(act))


async def _client(service: TheService, token: Annotated[str, Header(alias=LEASE)] = "") -> Client:
    return find_client(service.sessions, Client, token, "a lease", "connect and send the image again")


Held = Annotated[Client, Depends(_client)]
Meta = Annotated[str, Header(alias=META, description="JSON")]


def _change(change: Change) -> Response:
    """The changed box in X-Meta, [first, last + 1] on each axis, and the mask in it as the body."""
    if is_empty(change.box):
        meta = {"ran_prediction": change.ran, "bbox": None}
        return Response(media_type=OCTETS, headers={META: json.dumps(meta)})
    box = [[part.start, part.stop] for part in change.box]
    meta = {"ran_prediction": change.ran, "bbox": box, "dtype": "uint8", "shape": list(change.mask.shape)}
    return Response(pack(change.mask), media_type=OCTETS, headers={META: json.dumps(meta)})


def _read_meta(model: type[Model], header: str) -> Model:
    """The JSON of the header X-Meta. Raises Refused if it is not what the route takes."""
    try:
        return model.model_validate_json(header)
    except ValidationError as error:
        problem = first_fault(error)
        raise Refused(f"the header {META}: {problem}", "what the route takes", "correct it") from error


# What the model takes, and the lease


@router.get("/capabilities", summary="What the loaded model takes")
async def get_capabilities(service: TheService) -> dict[str, Any]:
    """Supported interactions, licence, and VoxSAM's own entries: model, prompts, server.

    nnInteractive's networks take interactions as input channels; VoxSAM has no such channels, so those entries are only
    there for clients that show or count them.
    """
    card = service.worker.model.card
    prompts = card.prompts
    return {
        "supported_interactions": {kind: prompt in prompts for kind, prompt in PROMPTS.items()},
        "supports_initial_label": "hint" in prompts,
        "supports_zero_shot_label_refinement": "hint" in prompts,
        "supports_undo": True,
        "do_autozoom": True,
        "preferred_scribble_thickness": [SCRIBBLE_VOXELS] * 3,
        "interaction_decay": 1.0,  # old clicks count as much as new ones
        "patch_size": [card.config.crop] * 3,
        "channel_mapping": {"prev_seg": 0, "bbox2d": [1, 2], "bbox3d": [1, 2], "lasso": [1, 2], "points": [3, 4]}
        | {"scribble": [5, 6]},
        "num_interaction_channels": 7,
        "inference_session_version": PROTOCOL_VERSION,
        "license": card.description.get("licence", NO_LICENCE),
        "model": card.name,
        "prompts": list(prompts),
        "server": f"VoxSAM {voxsam.__version__}",
    }


def require_prompt(card: Card, prompt: str, positive: bool = True) -> None:
    """Raises UnsupportedError if the model does not take a prompt ("positive", "box", "scribble", "hint"), or does not
    take negative prompts and this is one."""
    needed = prompt if positive else "negative"
    if needed not in card.prompts:
        raise UnsupportedError(
            f"a {needed} prompt for the model {card.name}",
            f"one of {', '.join(card.prompts)}" if card.prompts else "no prompt: the model segments without clicks",
            "use what /capabilities lists, or another model",
        )


@router.post("/claim", summary="Take a place")
async def claim(service: TheService) -> dict[str, Any]:
    """A lease token, for the header X-Lease-Token of all later requests. 503 if the server is full."""
    client, limits = service.sessions.claim(Client), service.sessions.limits
    times = {"idle_timeout_seconds": limits.idle_s, "liveness_timeout_seconds": limits.alive_s}
    return {"lease_token": client.id, **times, "max_sessions": limits.capacity}


@router.post("/upload_image", summary="What SlicerNNInteractive up to 0.3 asks for", status_code=410)
@router.post("/upload_segment", include_in_schema=False, status_code=410)
async def upload() -> None:
    """410, with what to install: it speaks a protocol of its own, from before nnInteractive had one."""
    given, expected = "the protocol of SlicerNNInteractive up to 0.3", "SlicerNNInteractive 1.0.0 or newer"
    raise Dropped(given, expected, "update the extension in 3D Slicer")


@router.post("/release", summary="Give a place back")
async def release(service: TheService, token: Annotated[str, Header(alias=LEASE)] = "") -> dict[str, bool]:
    """Also succeeds for a lease that has ended."""
    await release_client(service.sessions, Client, token)
    return {"released": True}


@router.post("/heartbeat", summary="A sign of life")
async def heartbeat(client: Held) -> dict[str, float]:
    """Seconds until the session ends unless it is used; a heartbeat does not count as a use."""
    return {"remaining_seconds": client.unused_s}


@router.get("/lease_status", summary="How long a lease lasts")
async def lease_status(client: Held) -> dict[str, float]:
    """As in the response to a heartbeat."""
    return {"remaining_seconds": client.unused_s, "idle_timeout_seconds": client.sessions.limits.idle_s}


# The image


class ImageMeta(BaseModel):
    """The metadata of an image."""

    image_properties: ImageProperties = ImageProperties()


class Buffer(BaseModel):
    """The array on the client's side into which it writes the server's masks."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: str


class Autozoom(BaseModel):
    """Whether a tumour that reaches the border of its crop is followed beyond it."""

    do_autozoom: bool


@router.post("/set_image", summary="Open a scan", openapi_extra=ARRAY)
async def set_image(request: Request, service: TheService, client: Held, meta: Meta = "{}") -> dict[str, list[int]]:
    """An array (1, X, Y, Z), raw intensities. The previous image and its object are closed. One at a time."""
    properties = _read_meta(ImageMeta, meta).image_properties
    if client.opening:
        raise TooMany("an image while another one is being read", "one at a time", "wait for the answer")
    client.opening = True
    try:
        with client.held():
            body = await request.body()
            return {"original_image_shape": await asyncio.to_thread(_open, service, client, body, properties)}
    finally:
        client.opening = False


def _open(service: Service, client: Client, body: bytes, properties: ImageProperties) -> list[int]:
    """Open the image in a body and return its shape."""
    packed = read_header(body)
    check_image_shape(packed.shape, service.settings.max_voxels)
    copies = 0 if packed.dtype.kind in "iub" else 9 * math.prod(packed.shape)  # while floats are checked
    limit = service.settings.upload_bytes
    client.open_image(lambda: as_volume(unpack(packed, limit), properties), packed.nbytes + copies)
    return list(packed.shape)


@router.post("/set_target_buffer", summary="Describe the client's buffer")
async def set_target_buffer(client: Held, buffer: Buffer) -> dict[str, Any]:
    """Only checked: masks are sent as uint8, 0 and 1, and the client writes them into its buffer."""
    if not _is_whole(buffer.dtype):
        raise Refused(f"a target buffer of {buffer.dtype[:40]!r}", "bool or an integer type", "make it uint8")
    if client.volume is not None and buffer.shape != (shape := client.volume.grid.shape):
        raise Refused(f"a target buffer of shape {buffer.shape}", f"the image's shape {shape}", "make it anew")
    await client.use()
    return {}


@router.post("/set_do_autozoom", summary="Follow large tumours or not")
async def set_do_autozoom(client: Held, autozoom: Autozoom) -> dict[str, Any]:
    """VoxSAM's `follow`: from the next prediction on."""
    client.follow = autozoom.do_autozoom
    await client.use()
    return {}


def _is_whole(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biu"
    except (TypeError, ValueError, SyntaxError):  # the last one from numpy's comma-separated types
        return False


# Interactions, each answered with the changed box of the mask


class Refine(BaseModel):
    """What /predict takes; VoxSAM always predicts the whole mask, so it changes nothing."""

    force_full_refine: bool = False


@router.post("/add_point_interaction", summary="A click", responses=CHANGE)
async def add_point(service: TheService, client: Held, point: PointInteraction) -> Response:
    """At an index (x, y, z) of the image; fractions are kept."""
    require_prompt(service.worker.model.card, "positive", point.include_interaction)
    return await client.add(client.image, point.prompts(client.image.grid), point.run_prediction)


@router.post("/add_bbox_interaction", summary="A box", responses=CHANGE)
async def add_box(service: TheService, client: Held, box: BoxInteraction) -> Response:
    """3D or 2D; a 2D box limits the mask within its plane, on all slices."""
    require_prompt(service.worker.model.card, "box", box.include_interaction)
    return await client.add(client.image, box.prompts(client.image.grid), box.run_prediction)


@router.post("/add_scribble_interaction", summary="A stroke", responses=CHANGE, openapi_extra=ARRAY)
async def add_scribble(request: Request, service: TheService, client: Held, meta: Meta) -> Response:
    """An array, not 0 where the stroke is; X-Meta may say which part of the image it covers."""
    return await _add_mask(request, service, client, meta, "scribble")


@router.post("/add_lasso_interaction", summary="A closed contour", responses=CHANGE, openapi_extra=ARRAY)
async def add_lasso(request: Request, service: TheService, client: Held, meta: Meta) -> Response:
    """An array, not 0 on the contour or in all of its area."""
    return await _add_mask(request, service, client, meta, "lasso")


@router.post("/add_initial_seg_interaction", summary="An initial mask", responses=CHANGE, openapi_extra=ARRAY)
async def add_initial_mask(request: Request, service: TheService, client: Held, meta: Meta = "{}") -> Response:
    """An array of the image's shape; earlier interactions are forgotten."""
    require_prompt(service.worker.model.card, "hint")
    predict, image = _read_meta(SeedInteraction, meta).run_prediction, client.image
    body = await request.body()
    seed = await asyncio.to_thread(_with_mask, service, body, image.grid.shape, "an initial mask", Region.of)
    memory_bytes = STROKE_MEMORY * math.prod(seed.shape)
    return await client.change(image, lambda segment: segment.seed(seed, predict), memory_bytes)


@router.post("/predict", summary="A mask for what waits", responses=CHANGE)
async def predict(client: Held, refine: Refine) -> Response:
    """For interactions that were added without one. Nothing runs if none was."""
    return await client.change(client.image, lambda segment: segment.predict())


@router.post("/undo", summary="Take the last interaction back", responses=CHANGE)
async def undo(client: Held) -> Response:
    """Each call takes back one more, down to the last reset or image."""
    return await client.change(client.image, lambda segment: segment.undo())


@router.post("/reset_interactions", summary="Begin another object")
async def reset_interactions(client: Held) -> dict[str, Any]:
    """The client empties its buffer itself. Encoded crops are kept."""
    await client.use(lambda segment: segment.reset())
    return {}


async def _add_mask(
    request: Request, service: Service, client: Client, meta: str, kind: Literal["scribble", "lasso"]
) -> Response:
    interaction, image = _read_meta(MaskInteraction, meta), client.image
    prompt, make = ("scribble", interaction.scribble) if kind == "scribble" else ("positive", interaction.lasso)
    require_prompt(service.worker.model.card, prompt, interaction.include_interaction)
    shape = [part.stop - part.start for part in interaction.place(image.grid.shape)]
    body = await request.body()
    prompts = await asyncio.to_thread(
        _with_mask, service, body, shape, f"a {kind}", lambda mask: make(mask, image.grid), STROKE_MEMORY
    )
    return await client.add(image, prompts, interaction.run_prediction)


def _with_mask(
    service: Service,
    body: bytes,
    shape: Sequence[int],
    what: str,
    make: Callable[[NDArray[np.bool_]], T],
    memory: int = 0,
) -> T:
    """The result of `make` for the mask where a body's array is not 0; `memory` is what it needs in bytes per voxel.

    The array's shape is checked before it is unpacked.
    """
    packed = read_header(body)
    if packed.shape != tuple(shape):
        raise PromptError(f"{what} of shape {packed.shape}", f"shape {tuple(shape)}", "send it on the image's grid")
    with service.sessions.memory.take(packed.nbytes + math.prod(shape) * (2 + memory)):
        return make(unpack(packed, service.settings.upload_bytes) != 0)
