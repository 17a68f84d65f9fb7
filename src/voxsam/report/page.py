"""The frame of VoxSAM's HTML pages: one file that loads nothing else, all text escaped by whoever fills it."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path

from voxsam import __version__
from voxsam.atomic import atomic_path
from voxsam.errors import FileError

PNG_HEADER = 24  # bytes, to the end of width and height
FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
<footer>VoxSAM {version}. Research use only, not a medical device.</footer>
</main>
</body>
</html>
"""


def write_page(path: str | os.PathLike[str], title: str, style: str, body: str) -> None:
    """Write a page, whole or not at all: `title` is text, `style` CSS, `body` HTML. Raises FileError."""
    page = FRAME.format(title=escape(title), style=style, body=body, version=escape(__version__))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def image(picture: Path, alt: str) -> str:
    """An <img> with the PNG inside it. Raises FileError if it is not a readable PNG."""
    content = base64.b64encode(_png(picture)).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{content}">'


def png_size(picture: Path) -> tuple[int, int]:
    """Width and height in pixels. Raises FileError if it is not a readable PNG."""
    width, height = struct.unpack(">II", _png(picture)[16:24])  # the header chunk comes first (PNG, 5.6)
    return width, height


def _png(picture: Path) -> bytes:
    try:
        content = picture.read_bytes()
    except OSError as error:
        raise FileError(f"{picture} cannot be read ({error.strerror})", "a PNG file", "check the path") from error
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < PNG_HEADER:
        raise FileError(f"{picture} is not a PNG", "a PNG file", "write it with overview_figure")
    return content


def bullets(items: Sequence[str]) -> str:
    """A list of lines of text; nothing for none."""
    return "<ul>\n" + "".join(f"<li>{escape(item)}</li>\n" for item in items) + "</ul>\n" if items else ""
