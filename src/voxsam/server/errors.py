"""Errors that only a server raises, each with its HTTP status, and responses to failures: JSON, one line, no path."""

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

from voxsam.errors import FileError, InputError, SeriesError, first_fault

LOG = logging.getLogger("voxsam.server")
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # the latter is torch's, known without importing torch
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RETRY_S = 10  # after which a client that found the server full should try again


class Refused(InputError):
    """Base of the errors that only a server raises; `status` is that of the HTTP response."""

    status = 400


class KeyNeeded(Refused):
    """The request has no key, or a wrong one."""

    status = 401


class Forbidden(Refused):
    """The request comes from a host or site that is not allowed, or asks for something outside the served folders."""

    status = 403


class NotThere(Refused):
    """There is no such session, folder, file or upload."""

    status = 404


class TooSlow(Refused):
    """A body stopped arriving."""

    status = 408


class OtherScan(Refused):
    """There is another scan now where a saved session's scan was."""

    status = 409


class Taken(Refused):
    """The id that a client chose belongs to another session."""

    status = 409


class Dropped(Refused):
    """The session was released while the request waited."""

    status = 410


class TooLarge(Refused):
    """A body or a scan is larger than this server accepts."""

    status = 413


class TooMany(Refused):
    """One client has too many requests waiting."""

    status = 429


class Full(Refused):
    """All places, or all memory, are in use."""

    status = 503


class NoRoom(Refused):
    """The server's disk cannot store what should be kept."""

    status = 507


def closed() -> Dropped:
    """The error for whoever waited for a session that was closed."""
    return Dropped("a session that was closed", "an open session", "open the scan again")


def no_room() -> NoRoom:
    """The error for what could not be written."""
    return NoRoom("a file that the server cannot store now", "a server with room on its disk", "try again later")


def no_project() -> NotThere:
    """The error of a server without a project."""
    return NotThere("a project, of which this server has none", "a server with one", "start `voxsam serve --project`")


def failure(error: InputError, private: tuple[str, ...] = ()) -> JSONResponse:
    """The response to a mistake of the client, or to what the server cannot accept now.

    `private` are folders of the server: no response names them, and a failed write to the first is not the client's.
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

    @app.exception_handler(InputError)
    async def refused(request: Request, error: InputError) -> JSONResponse:
        return failure(error, request.app.state.service.private)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        given = first_fault(error)
        return _answer(422, given, "a request as /openapi.json describes it", "correct the request")

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, InputError):  # raised while FastAPI read the body
            return failure(error.__cause__)
        reason = HTTPStatus(error.status_code).phrase.lower()
        return _answer(
            error.status_code, reason, "a path and method of /openapi.json", "correct the address", error.headers
        )

    @app.exception_handler(OSError)
    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> JSONResponse:
        """The response to a bug. The log gets the place, not the message, which may contain a patient's name."""
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return failure(no_room())
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{frames[-1].name}:{frames[-1].lineno}" if frames else ""
        LOG.error("internal error", extra={"facts": {"error": type(error).__name__, "at": at}})
        if type(error).__name__ in OUT_OF_MEMORY:
            given, remedy = "a request beyond the free memory", "close sessions, or use --device cpu"
            return _answer(503, given, "a smaller scan", remedy)
        return _answer(500, "an internal error", "an answer", "try again, and report it with the server's log")


def _answer(
    status: int,
    given: str,
    expected: str,
    remedy: str,
    headers: object = None,
    facts: Mapping[str, object] | None = None,
) -> JSONResponse:
    """The response to VoxSAM's clients ("error") and nnInteractive's ("detail"); names not in UTF-8 are escaped."""
    given = " ".join(given.split()).encode("utf-8", "backslashreplace").decode()
    message = f"{given}; expected {expected}; {remedy}"
    error = {"message": message, "given": given, "expected": expected, "remedy": remedy}
    return JSONResponse({"error": error, "detail": message, **(facts or {})}, status, headers)  # type: ignore[arg-type]
