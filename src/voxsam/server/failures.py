"""Failures as HTTP answers: always JSON, one line, given, expected, remedy; never a traceback or a path."""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from voxsam.errors import InputError
from voxsam.server.errors import KeyNeeded, Refused

LOG = logging.getLogger("voxsam.server")
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # the latter is torch's, known without importing torch


def answer_failure(error: InputError) -> JSONResponse:
    """The answer to what the client did wrong, or to what the server cannot take now."""
    status = error.status if isinstance(error, Refused) else HTTPStatus.BAD_REQUEST
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, KeyNeeded) else None
    return _answer(status, error.given, error.expected, error.remedy, headers)


def add_handlers(app: FastAPI) -> None:
    """Let every failure of the application be answered by this module."""
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


async def _input(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return answer_failure(error)


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(422, f"{where}: {first['msg']}", "a request as /openapi.json describes it", "correct the request")


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, InputError):  # raised while FastAPI read the body
        return answer_failure(error.__cause__)
    reason = HTTPStatus(error.status_code).phrase.lower()
    return _answer(
        error.status_code, reason, "a path and method of /openapi.json", "correct the address", error.headers
    )


async def _internal(request: Request, error: Exception) -> JSONResponse:
    """What is nobody's mistake but VoxSAM's. The log gets the place, not the message: it may hold a patient's name."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{frames[-1].name}:{frames[-1].lineno}" if frames else ""
    LOG.error("internal error", extra={"facts": {"error": type(error).__name__, "at": at}})
    if type(error).__name__ in OUT_OF_MEMORY:
        return _answer(503, "a request beyond the free memory", "a smaller scan", "close sessions, or use --device cpu")
    return _answer(500, "an internal error", "an answer", "try again, and report it with the server's log")


def _answer(status: int, given: str, expected: str, remedy: str, headers: object = None) -> JSONResponse:
    given = " ".join(given.split())
    error = {"message": f"{given}; expected {expected}; {remedy}", "given": given, "expected": expected}
    return JSONResponse({"error": {**error, "remedy": remedy}}, status, headers)  # type: ignore[arg-type]
