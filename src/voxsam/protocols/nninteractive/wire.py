"""Arrays in the nnInteractive protocol: type and shape, then blosc2 chunks. Nothing in them is trusted.

Byte by byte, little-endian: "NNIA", version (1), codec (1 ZSTD, 2 LZ4), number of axes, length of the type's name, the
name in ASCII ("int16"), one int64 per axis, uint32 number of chunks; then for each chunk two uint64, its length
unpacked and packed, and the blosc2 bytes. The array is in C order.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from voxsam.server.errors import Refused, TooLarge

MAGIC, VERSION, CODECS = b"NNIA", 1, (1, 2)
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
TYPES = ("bool", *INTEGERS, "float16", "float32", "float64")
MAX_AXES = 4
CHUNK_BYTES = 1 << 30  # blosc2 counts a chunk's bytes in an int32
PACKING = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}
SMALLEST_CHUNK = 32  # bytes of a blosc2 header


@dataclass(frozen=True)
class Packed:
    """An array that was received but not yet unpacked: what its header claims, and its chunks."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    payload: memoryview

    @property
    def nbytes(self) -> int:
        """The bytes that it takes unpacked, if the header is right."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(body: bytes) -> Packed:
    """Read what a body claims to hold, without unpacking it. Raises Refused if it is no array of the protocol."""
    try:
        magic, version, codec, axes, letters = struct.unpack_from("<4sBBBB", body)
        (name,) = struct.unpack_from(f"<{letters}s", body, 8)
        shape = struct.unpack_from(f"<{axes}q", body, 8 + letters)
    except struct.error as error:
        raise _damaged(f"{len(body)} bytes, too short for its header") from error
    if (magic, version) != (MAGIC, VERSION) or codec not in CODECS:
        raise _damaged(f"it begins with {body[:6]!r}")
    kind = name.decode("ascii", "replace")
    if kind not in TYPES:
        raise Refused(f"an array of type {kind!r}", f"one of {', '.join(TYPES)}", "convert it before it is sent")
    if not 1 <= axes <= MAX_AXES or min(shape) < 1:
        raise Refused(f"an array of shape {shape}", f"1 to {MAX_AXES} axes of at least 1", "send the scan's array")
    return Packed(shape, np.dtype(kind), memoryview(body)[8 + letters + 8 * axes :])


def unpack(packed: Packed, most_bytes: int) -> NDArray[Any]:
    """Unpack the array. Raises TooLarge beyond `most_bytes`, Refused if the chunks are not what the header claims.

    Every length is checked before memory is allocated, and no byte of the result is left unwritten.
    """
    if packed.nbytes > most_bytes:
        raise TooLarge(
            f"an array of {packed.nbytes:,} bytes", f"at most {most_bytes:,} bytes", "send a part of the scan"
        )
    chunks = _chunks(packed)
    flat = np.zeros(packed.nbytes, dtype=np.uint8)
    at = 0
    for unpacked_bytes, chunk in chunks:
        try:
            blosc2.decompress2(chunk, dst=flat[at : at + unpacked_bytes])
        except (RuntimeError, ValueError) as error:
            raise _damaged("blosc2 cannot unpack it") from error
        at += unpacked_bytes
    array = flat != 0 if packed.dtype == bool else flat.view(packed.dtype)  # bytes other than 0 and 1 are no bool
    return array.reshape(packed.shape)


def pack(array: NDArray[Any]) -> bytes:
    """Pack an array into a body of the protocol; meant for masks, which compress best without a filter."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode("ascii")
    raw = array.reshape(-1).view(np.uint8).data
    parts = [
        struct.pack(f"<4sBBBB{len(name)}s", MAGIC, VERSION, CODECS[0], array.ndim, len(name), name),
        struct.pack(f"<{array.ndim}qI", *array.shape, math.ceil(len(raw) / CHUNK_BYTES)),
    ]
    for start in range(0, len(raw), CHUNK_BYTES):
        piece = raw[start : start + CHUNK_BYTES]
        chunk = blosc2.compress2(piece, cparams=PACKING | {"typesize": array.dtype.itemsize})
        parts += [struct.pack("<QQ", len(piece), len(chunk)), chunk]
    return b"".join(parts)


def _chunks(packed: Packed) -> list[tuple[int, memoryview]]:
    """Each chunk with its unpacked length, every length checked against blosc2's own and the array's header."""
    payload, found, total = packed.payload, [], 0
    try:
        (count,) = struct.unpack_from("<I", payload)
        at = 4
        for _ in range(count):
            unpacked_bytes, packed_bytes = struct.unpack_from("<QQ", payload, at)
            chunk = payload[at + 16 : at + 16 + packed_bytes]
            if len(chunk) < packed_bytes or packed_bytes < SMALLEST_CHUNK or unpacked_bytes < 1:
                raise _damaged("it ends within a chunk")
            if blosc2.get_cbuffer_sizes(chunk)[:2] != (unpacked_bytes, packed_bytes):
                raise _damaged("a chunk is of another length than announced")
            found.append((unpacked_bytes, chunk))
            total += unpacked_bytes
            at += 16 + packed_bytes
    except struct.error as error:
        raise _damaged("it ends within a chunk") from error
    if total != packed.nbytes or at != len(payload):
        raise _damaged(f"its chunks hold {total:,} bytes, its header claims {packed.nbytes:,}")
    return found


def _damaged(detail: str) -> Refused:
    return Refused(f"an array that is damaged ({detail})", "one packed by a client", "send it again")
