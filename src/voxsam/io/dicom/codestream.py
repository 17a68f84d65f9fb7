"""The size that a compressed frame itself declares, read before a decoder takes memory for it.

The decoders believe the codestream, not the DICOM header: 250 bytes of JPEG 2000 that declare 30000 x 30000 pixels take
gigabytes. JPEG and JPEG-LS: the frame header (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: the SIZ segment (T.800 A.5.1).
"""

from __future__ import annotations

import struct

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
JPEG_FRAMES = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}  # SOF markers; F7 is that of JPEG-LS
BOXES_BYTES = 4096  # a JP2 file wraps the codestream in boxes; DICOM forbids it, and some files have it


def declared_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples per pixel; None for another kind of compression (RLE, say), or where none is found."""
    if frame.startswith(JPEG_START):
        return _jpeg(frame)
    start = frame.find(JPEG_2000_START, 0, BOXES_BYTES)
    return None if start < 0 else _jpeg_2000(frame[start + 4 :])


def _jpeg(frame: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in JPEG_FRAMES:
            rows, columns, samples = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, samples
        # 0xFF may be repeated before a marker
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_2000(segment: bytes) -> tuple[int, int, int] | None:
    if len(segment) < 38:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", segment, 4)
    return bottom - top, right - left, struct.unpack_from(">H", segment, 36)[0]
