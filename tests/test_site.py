"""The documentation's site is complete: every page is in its contents, every public name in its reference."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import voxsam
from voxsam import errors
from voxsam.errors import InputError

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
    if unsaid := raised(one) - said_to_raise(known):
        found.append(f"{name}: what it raises ({', '.join(sorted(unsaid))})")
    return found


def raised(one: Any) -> set[str]:
    """The names of the errors that a function's own lines raise."""
    found = [node.exc for node in ast.walk(parsed(one)) if isinstance(node, ast.Raise) and node.exc is not None]
    return {node.func.id for node in found if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def said_to_raise(words: str) -> set[str]:
    """The errors that a docstring names behind "raises", and all kinds of them; no other word counts."""
    said = set(re.findall(r"[A-Z]\w+", " ".join(re.findall(r"\b[Rr]aises\b[^.]*", words))))
    known = {**vars(builtins), **vars(errors)}
    kinds = [known[name] for name in said if name in known]
    assert all(name in known or not name.endswith("Error") for name in said), f"no error of this name: {said}"
    return {name for name, one in known.items() if any(issubclass_of(one, kind) for kind in kinds)}


def issubclass_of(one: Any, kind: Any) -> bool:
    return inspect.isclass(one) and inspect.isclass(kind) and issubclass(one, kind) and issubclass(one, Exception)


def parsed(one: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, SyntaxError, TypeError):  # made by a decorator
        return ast.Module([], [])


def of_class(name: str, kind: type) -> list[str]:
    words, found = inspect.getdoc(kind) or "", []
    for part, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not part.startswith("_") or part == "__init__"):
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

    def vague(array: NDArray) -> None:
        """(n, 3). It raises what it must, ValueError for instance."""
        raise InputError("a", "b", "c")

    def silent() -> None: ...

    assert lacking("bare", bare) == [
        "bare: an array without its shape",
        "bare: the unit of reach",
        "bare: a unit",
        "bare: what it raises (ValueError)",
    ]
    assert lacking("vague", vague) == ["vague: what it raises (InputError)"]
    assert lacking("told", told) == [] and lacking("silent", silent) == ["silent: no words"]
