"""How the protocol answers: a change of the mask as a packed box, a failure as {"detail": one line}."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from voxsam.boxes import is_empty
from voxsam.errors import InputError
from voxsam.server.errors import Full, Refused
from voxsam.server.nninteractive.segment import Change
from voxsam.server.nninteractive.wire import pack

META = "X-Meta"
OCTETS = "application/octet-stream"
RETRY_S = 10  # what a client is told that found the server full

Model = TypeVar("Model", bound=BaseModel)


def answer_change(change: Change) -> Response:
    """The changed box in X-Meta, [first, last + 1] on each axis, and the mask in it as the body."""
    if is_empty(change.box):
        meta = {"ran_prediction": change.ran, "bbox": None}
        return Response(media_type=OCTETS, headers={META: json.dumps(meta)})
    box = [[part.start, part.stop] for part in change.box]
    meta = {"ran_prediction": change.ran, "bbox": box, "dtype": "uint8", "shape": list(change.mask.shape)}
    return Response(pack(change.mask), media_type=OCTETS, headers={META: json.dumps(meta)})


def read_meta(model: type[Model], header: str) -> Model:
    """The JSON of the header X-Meta. Raises Refused for what it does not hold."""
    try:
        return model.model_validate_json(header)
    except ValidationError as error:
        raise Refused(f"the header {META}: {_first(error.errors())}", "what the route takes", "correct it") from error


class WireRoute(APIRoute):
    """A route whose failures are those of the protocol."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler; what it refuses is answered in one line."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except InputError as error:
                return _refusal(error)
            except RequestValidationError as error:
                return JSONResponse({"detail": _first(error.errors())}, 422)

        return answer


def _refusal(error: InputError) -> JSONResponse:
    status = error.status if isinstance(error, Refused) else 400
    headers = {"Retry-After": str(RETRY_S)} if isinstance(error, Full) else None
    return JSONResponse({"detail": str(error)}, status, headers)


def _first(errors: Any) -> str:
    """The first of pydantic's errors in one line: where, and what is wrong there."""
    where = ".".join(str(part) for part in errors[0]["loc"])
    return " ".join(f"{where}: {errors[0]['msg']}".split())
