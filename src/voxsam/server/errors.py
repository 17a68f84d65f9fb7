"""What a server refuses, each with its HTTP status, and how every failure is answered: JSON, one line, no path."""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from voxsam.errors import FileError, InputError, SeriesError

LOG = logging.getLogger("voxsam.server")
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # the latter is torch's, known without importing torch
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RETRY_S = 10  # when a client that found the server full should come back


class Refused(InputError):
    """Base of what only a server refuses; `status` is that of the HTTP answer."""

    status = 400


class KeyNeeded(Refused):
    """The request has no key, or not the server's."""

    status = 401


class Forbidden(Refused):
    """The request comes from where the server takes none, or asks for what lies outside its folders."""

    status = 403


class NotThere(Refused):
    """There is no such session, folder, file or upload."""

    status = 404


class TooSlow(Refused):
    """A body stopped coming."""

    status = 408


class OtherScan(Refused):
    """Where a saved session's scan was, another one is now."""

    status = 409


class Taken(Refused):
    """The id that a client chose is another session's."""

    status = 409


class Dropped(Refused):
    """The session was released while the request waited."""

    status = 410


class TooLarge(Refused):
    """A body or a scan is larger than this server takes."""

    status = 413


class TooMany(Refused):
    """One client has too many requests waiting."""

    status = 429


class Full(Refused):
    """All places, or all memory, are taken."""

    status = 503


class NoRoom(Refused):
    """The server's disk does not take what is to be kept on it."""

    status = 507


def closed() -> Dropped:
    """For whoever waited for a session that is no more."""
    return Dropped("a session that was closed", "an open session", "open the scan again")


def no_room() -> NoRoom:
    """For what could not be written."""
    return NoRoom("a file that the server cannot store now", "a server with room on its disk", "try again later")


def no_project() -> NotThere:
    """Where nobody gave the server one."""
    return NotThere("a project, of which this server has none", "a server with one", "start `voxsam serve --project`")


def failure(error: InputError, private: tuple[str, ...] = ()) -> JSONResponse:
    """The answer to what the client did wrong, or to what the server cannot take now.

    `private` are folders of the server: no answer names them, and what cannot be written there is no client's fault.
    """
    cause = error.__cause__
    is_ours = isinstance(error, FileError) and any(folder in error.given for folder in private[:1])
    if is_ours or (isinstance(cause, OSError) and cause.errno in FULL_DISK):
        LOG.error("not stored", extra={"facts": {"error": type(cause or error).__name__}})
        error = no_room()
    status = error.status if isinstance(error, Refused) else HTTPStatus.BAD_REQUEST
    if isinstance(error, SeriesError):
        status = HTTPStatus.CONFLICT
    headers = {}
    if isinstance(error, KeyNeeded):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Full):
        headers["Retry-After"] = str(RETRY_S)
    given = error.given
    for folder in private:
        given = given.replace(f"{folder}{os.sep}", "").replace(folder, "a folder of the server")
    facts = {"series": error.series} if isinstance(error, SeriesError) else {}
    return _answer(status, given, error.expected, error.remedy, headers, facts)


def add_handlers(app: FastAPI) -> None:
    """Let every failure of the application be answered by this module."""
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


async def _input(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return failure(error, request.app.state.service.private)


async def _system(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return failure(no_room())
    return await _internal(request, error)


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    given = first_problem(error.errors())
    return _answer(422, given, "a request as /openapi.json describes it", "correct the request")


def first_problem(errors: object) -> str:
    """The first of pydantic's errors in one line: where, and what is wrong there."""
    first = errors[0]  # type: ignore[index]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, InputError):  # raised while FastAPI read the body
        return failure(error.__cause__)
    reason = HTTPStatus(error.status_code).phrase.lower()
    expected = "a path and method of /openapi.json"
    return _answer(error.status_code, reason, expected, "correct the address", error.headers)


async def _internal(request: Request, error: Exception) -> JSONResponse:
    """What is nobody's mistake but VoxSAM's. The log gets the place, not the message: it may hold a patient's name."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{frames[-1].name}:{frames[-1].lineno}" if frames else ""
    LOG.error("internal error", extra={"facts": {"error": type(error).__name__, "at": at}})
    if type(error).__name__ in OUT_OF_MEMORY:
        return _answer(503, "a request beyond the free memory", "a smaller scan", "close sessions, or use --device cpu")
    return _answer(500, "an internal error", "an answer", "try again, and report it with the server's log")


def _answer(
    status: int,
    given: str,
    expected: str,
    remedy: str,
    headers: object = None,
    facts: Mapping[str, object] | None = None,
) -> JSONResponse:
    """As VoxSAM's clients know it ("error"), and those of nnInteractive ("detail"); names that are no UTF-8 escaped."""
    given = " ".join(given.split()).encode("utf-8", "backslashreplace").decode()
    message = f"{given}; expected {expected}; {remedy}"
    error = {"message": message, "given": given, "expected": expected, "remedy": remedy}
    return JSONResponse({"error": error, "detail": message, **(facts or {})}, status, headers)  # type: ignore[arg-type]
