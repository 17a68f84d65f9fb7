"""The site of the documentation misses nothing: every page is in its contents, every public name in its reference."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

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


UNIT = re.compile(r"_(mm|ml|hu|s|bytes)$|^(degrees|fraction)$")
SHAPE = re.compile(r"\((\.{3},|\d+,|n,|i, j, k|D, H, W|None)|\b\d\.\.\d\b")


def lacking(name: str, one: Any, of: str = "") -> list[str]:
    """What the words on a public function lack, `of` being those on its class: shapes, units, errors."""
    words, found = f"{inspect.getdoc(one) or ''}", []
    if not words:
        return [f"{name}: no words"]
    known = f"{words}\n{of}"
    signature = inspect.signature(one)
    given = {key: str(one.annotation) for key, one in signature.parameters.items() if key not in ("self", "cls")}
    if any("NDArray" in kind or "ArrayLike" in kind for kind in (*given.values(), str(signature.return_annotation))):
        found += [] if SHAPE.search(known) else [f"{name}: an array without its shape"]
    for key, kind in given.items():
        if (
            re.match(r"(float|Sequence\[float\]|tuple\[float)", kind)
            and not UNIT.search(key)
            and f"`{key}`" not in known
        ):
            found += [] if re.search(r"voxel|index|\(i, j, k\)|mm", known) else [f"{name}: the unit of {key}"]
    if str(signature.return_annotation) == "float" and not UNIT.search(name):
        found += (
            [] if re.search(r"\bmm\b|\bmL\b|millilitre|second|fraction|0 to 1|\bHU\b", known) else [f"{name}: a unit"]
        )
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(parsed(one)))
    if raises and not re.search(r"\b[Rr]aises\b", known):
        found.append(f"{name}: what it raises")
    return found


def parsed(one: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, SyntaxError, TypeError):  # made by a decorator
        return ast.Module([], [])


def of_class(name: str, kind: type) -> list[str]:
    words, found = inspect.getdoc(kind) or "", []
    for part, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not part.startswith("_") and inspect.isfunction(function):
            found += lacking(f"{name}.{part}", function, words)
    return found if words else [f"{name}: no words", *found]


def test_the_reference_says_shapes_units_and_errors() -> None:
    public = {name: getattr(voxsam, name) for name in voxsam.__all__ if name != "__version__"}
    found = [
        line
        for name, one in public.items()
        for line in (of_class(name, one) if inspect.isclass(one) else lacking(name, one))
    ]
    assert not found


def test_what_lacks_is_found() -> None:
    def bare(array: NDArray, reach: float) -> float:
        """A thing."""
        raise ValueError(array)

    def told(array: NDArray, reach: float) -> float:
        """(...,) each of (..., 3) points' distance in mm, up to `reach` mm. Raises ValueError for none."""
        raise ValueError(array)

    def silent() -> None: ...

    assert lacking("bare", bare) == [
        "bare: an array without its shape",
        "bare: the unit of reach",
        "bare: a unit",
        "bare: what it raises",
    ]
    assert lacking("told", told) == [] and lacking("silent", silent) == ["silent: no words"]
