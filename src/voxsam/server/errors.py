"""What a server refuses, each with the HTTP status that says so; still one line: given, expected, remedy."""

from __future__ import annotations

from voxsam.errors import InputError


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
    """All places, or all memory for scans, are taken."""

    status = 503
