"""The site of the documentation misses nothing: every page is in its contents, every public name in its reference."""

from __future__ import annotations

import re
from pathlib import Path

import voxsam

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"


def test_every_page_is_in_the_contents() -> None:
    nav = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"([\w/]+\.(?:md|py))$", nav, re.MULTILINE))
    assert listed == {p.relative_to(DOCS).as_posix() for p in (*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.py"))}


def test_every_public_name_is_in_the_reference_and_has_words() -> None:
    listed = re.findall(r"^::: (voxsam\.[\w.]+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {name: getattr(voxsam, name) for name in voxsam.__all__ if name != "__version__"}
    assert {f"{one.__module__}.{one.__qualname__}" for one in public.values()} == set(listed)
    assert all(one.__doc__ for one in public.values())
