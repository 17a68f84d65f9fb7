"""Turn command-line words into prompts on a scan: `120,88,45` into a click, `i0,j0,k0,i1,j1,k1` into a box."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from voxsam.errors import FileError, InputError, PromptError

if TYPE_CHECKING:
    from voxsam.prompts import Prompt
    from voxsam.volume import Volume

Numbers = tuple[float, ...]
# Anything else that int() and float() accept is a typo: 1_0, digits of other scripts, nan.
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
Number = TypeVar("Number", int, float)

# How many numbers an option takes, of which type, what they are, and an example.
VOXEL = (3, int, "three whole numbers 'I,J,K', the voxel's index", "120,88,45")
PLACE = (3, float, "three numbers 'X,Y,Z', millimetres (RAS+)", "-42.5,10,118")
CORNERS = (6, int, "six whole numbers 'I0,J0,K0,I1,J1,K1', two opposite corners", "100,70,40,140,110,60")


class PromptWords:
    """All prompts of a command line, their numbers parsed but not yet placed on a scan.

    Raises PromptError for a wrong number of numbers, or anything else.
    """

    def __init__(
        self,
        click: Sequence[str],
        negative: Sequence[str],
        click_mm: Sequence[str],
        negative_mm: Sequence[str],
        box: Sequence[str],
        scribbles: Sequence[Path],
        hints: Sequence[Path],
    ) -> None:
        self.clicks = [(_numbers("--click", word, *VOXEL), True) for word in click]
        self.clicks += [(_numbers("--negative", word, *VOXEL), False) for word in negative]
        self.clicks_mm = [(_numbers("--click-mm", word, *PLACE), True) for word in click_mm]
        self.clicks_mm += [(_numbers("--negative-mm", word, *PLACE), False) for word in negative_mm]
        self.boxes = [_numbers("--box", word, *CORNERS) for word in box]
        self.scribbles, self.hints = scribbles, hints

    def __bool__(self) -> bool:
        return bool(self.clicks or self.clicks_mm or self.boxes or self.scribbles or self.hints)

    def on(self, scan: Volume) -> list[Prompt]:
        """The prompts on a scan; reads the scribbles and hints. Raises PromptError if one lies outside it."""
        from voxsam.interactive.segment import placed

        boxes = [(numbers[:3], numbers[3:]) for numbers in self.boxes]
        return placed(scan, self.clicks, self.clicks_mm, boxes, self.scribbles, self.hints)


def whole_numbers(option: str, words: str, example: str) -> tuple[int, ...]:
    """Parse `1,3,10`. Raises InputError, naming the option, for anything but whole numbers in the digits 0 to 9."""
    numbers = _parsed(words, int)
    if not numbers:
        raise InputError(f"{option} {words!r}", "whole numbers", f"write for example {option} {example}")
    return numbers


def three_lengths(option: str, words: str, instead: str = "") -> tuple[float, float, float]:
    """Parse three numbers above 0, separated by commas. Raises InputError, naming the option, for anything else."""
    numbers = _parsed(words, float)
    if len(numbers) != 3 or min(numbers) <= 0:
        remedy = f"write for example {option} 1,1,1"
        raise InputError(f"{option} {words!r}", f"{instead}three lengths in mm above 0", remedy)
    return numbers


def given_path(word: str) -> Path:
    """The path that a word names. Raises FileError for an empty word, which pathlib takes for the current folder."""
    if not word.strip():
        raise FileError("an empty path", "a file or folder", "name it; the current folder is `.`")
    return Path(word)


def _parsed(words: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers, separated by commas; none if anything else is among them, or one too large for a float."""
    pattern, found = WHOLE if kind is int else DECIMAL, words.split(",")
    if not all(pattern.fullmatch(word.strip()) for word in found):
        return ()
    try:
        numbers = tuple(map(kind, found))
        return numbers if all(map(math.isfinite, numbers)) else ()
    except (ValueError, OverflowError):  # more digits than int() takes, or than a float holds
        return ()


def _numbers(
    option: str, words: str, count: int, kind: type[int] | type[float], expected: str, example: str
) -> Numbers:
    numbers = _parsed(words, kind)
    if len(numbers) != count:
        raise PromptError(f"{option} {words!r}", expected, f"write for example {option} {example}, without blanks")
    return numbers
