"""Turn command-line words into prompts on a scan: `120,88,45` into a click, `i0,j0,k0,i1,j1,k1` into a box."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from voxsam.errors import FileError, InputError, PromptError

if TYPE_CHECKING:
    from voxsam.prompts import Prompt
    from voxsam.volume import Volume

Numbers = tuple[float, ...]
# Anything else that int() and float() accept is a typo: 1_0, digits of other scripts, nan.
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class PromptWords:
    """All prompts of a command line, their numbers parsed but not yet placed on a scan."""

    clicks: tuple[tuple[Numbers, bool], ...]  # voxel indices, and whether positive
    clicks_mm: tuple[tuple[Numbers, bool], ...]  # RAS+ mm
    boxes: tuple[Numbers, ...]
    scribbles: tuple[Path, ...]
    hints: tuple[Path, ...]

    @classmethod
    def read(
        cls,
        click: Sequence[str],
        negative: Sequence[str],
        click_mm: Sequence[str],
        negative_mm: Sequence[str],
        box: Sequence[str],
        scribble: Sequence[Path],
        hint: Sequence[Path],
    ) -> PromptWords:
        """Parse the words of each option. Raises PromptError for a wrong number of numbers, or anything else."""
        clicks = [(voxel("--click", w), True) for w in click] + [(voxel("--negative", w), False) for w in negative]
        in_mm = [(place_mm("--click-mm", w), True) for w in click_mm]
        in_mm += [(place_mm("--negative-mm", w), False) for w in negative_mm]
        boxes = tuple(corners("--box", w) for w in box)
        return cls(tuple(clicks), tuple(in_mm), boxes, tuple(scribble), tuple(hint))

    def __bool__(self) -> bool:
        return bool(self.clicks or self.clicks_mm or self.boxes or self.scribbles or self.hints)

    def on(self, scan: Volume) -> list[Prompt]:
        """The prompts on a scan; reads the scribbles and hints. Raises PromptError if one lies outside it."""
        from voxsam.interactive.segment import placed

        boxes = [(numbers[:3], numbers[3:]) for numbers in self.boxes]
        return placed(scan, self.clicks, self.clicks_mm, boxes, self.scribbles, self.hints)


def voxel(option: str, word: str) -> Numbers:
    """Parse `I,J,K`, whole numbers."""
    return _numbers(option, word, 3, True, "three whole numbers 'I,J,K', the voxel's index", "120,88,45")


def place_mm(option: str, word: str) -> Numbers:
    """Parse `X,Y,Z`, RAS+ mm."""
    return _numbers(option, word, 3, False, "three numbers 'X,Y,Z', millimetres (RAS+)", "-42.5,10,118")


def corners(option: str, word: str) -> Numbers:
    """Parse `I0,J0,K0,I1,J1,K1`, whole numbers: the two corners of a box, both included."""
    what = "six whole numbers 'I0,J0,K0,I1,J1,K1', two opposite corners"
    return _numbers(option, word, 6, True, what, "100,70,40,140,110,60")


def whole_numbers(option: str, words: str, example: str) -> tuple[int, ...]:
    """Parse `1,3,10`. Raises InputError, naming the option, for anything but whole numbers in the digits 0 to 9."""
    try:
        return _whole(words)
    except ValueError as error:
        raise InputError(f"{option} {words!r}", "whole numbers", f"write for example {option} {example}") from error


def decimals(words: str) -> Numbers:
    """Parse `0.5,-2,1e3`. Raises ValueError for anything but decimal numbers in the digits 0 to 9."""
    return tuple(float(_matched(word, DECIMAL)) for word in words.split(","))


def three_lengths(option: str, words: str, instead: str = "") -> tuple[float, float, float]:
    """Parse three numbers above 0, separated by commas. Raises InputError, naming the option, for anything else."""
    try:
        numbers = decimals(words)
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(n) and n > 0 for n in numbers):
        remedy = f"write for example {option} 1,1,1"
        raise InputError(f"{option} {words!r}", f"{instead}three lengths in mm above 0", remedy)
    return numbers


def given_path(word: str) -> Path:
    """The path that a word names. Raises FileError for an empty word, which pathlib takes for the current folder."""
    if not word.strip():
        raise FileError("an empty path", "a file or folder", "name it; the current folder is `.`")
    return Path(word)


def _whole(words: str) -> tuple[int, ...]:
    return tuple(int(_matched(word, WHOLE)) for word in words.split(","))


def _matched(word: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(word.strip()):
        raise ValueError(word)
    return word


def _numbers(option: str, words: str, count: int, whole: bool, expected: str, example: str) -> Numbers:
    try:
        numbers = _whole(words) if whole else decimals(words)
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise PromptError(f"{option} {words!r}", expected, f"write for example {option} {example}, without blanks")
    return numbers
