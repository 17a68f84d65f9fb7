"""What a segment is called, how it is coloured and what it is: for DICOM-SEG, RTSTRUCT, reports and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxsam.errors import ImageError

LONGEST_NAME = 64  # characters of a segment's or ROI's name (VR LO)
# RGB, of objects 1, 2, ...: to be told apart by colour-blind people, too, on a dark picture.
COLOURS = ((255, 90, 95), (105, 255, 240), (255, 255, 30), (180, 75, 255), (60, 150, 180), (225, 150, 15))

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Code:
    """A concept of a coding scheme, as DICOM writes it (PS3.3 8.8): value, scheme and meaning."""

    value: str
    scheme: str
    meaning: str


# Categories of segments (PS3.16 CID 7150).
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")

NEOPLASM = Code("108369006", "SCT", "Neoplasm")
# What the page offers, each with its category; the codes of PS3.16 CID 7159, 7151 and 7166.
TYPES = {
    NEOPLASM: ABNORMAL,
    Code("372087000", "SCT", "Neoplasm, Primary"): ABNORMAL,
    Code("14799000", "SCT", "Neoplasm, Secondary"): ABNORMAL,
    Code("59441001", "SCT", "Lymph Node"): ANATOMICAL,
    Code("27925004", "SCT", "Nodule"): ABNORMAL,
    Code("367643001", "SCT", "Cyst"): ABNORMAL,
    Code("6574001", "SCT", "Necrosis"): ABNORMAL,
    Code("79654002", "SCT", "Edema"): ABNORMAL,
    Code("50960005", "SCT", "Hemorrhage"): ABNORMAL,
    Code("52988006", "SCT", "Lesion"): ABNORMAL,
    Code("91772007", "SCT", "Organ"): ANATOMICAL,
}


@dataclass(frozen=True)
class SegmentInfo:
    """A segment's name, colour (RGB) and type, and what is to be said of it in words."""

    name: str
    colour: Colour
    type: Code = NEOPLASM
    description: str = ""
    visible: bool = True  # in viewers; what is hidden is written all the same

    @property
    def category(self) -> Code:
        """That of the type; of one that is not in TYPES, an abnormal structure."""
        return TYPES.get(self.type, ABNORMAL)


def default_colour(number: int) -> Colour:
    """Of object `number`, from 1 on."""
    return COLOURS[(number - 1) % len(COLOURS)]


def in_hex(colour: Colour) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def segment_infos(count: int, names: Sequence[str] = ()) -> list[SegmentInfo]:
    """One for each of `count` labels, called as `names` say. Raises ImageError for names of another number or form."""
    names = names or (["Tumour"] if count == 1 else [f"Tumour {number}" for number in range(1, count + 1)])
    if len(names) != count:
        raise ImageError(f"{len(names)} names for a mask of {count} objects", "a name for each object", "add or remove")
    wrong = [name for name in names if not is_name(name)]
    if wrong:
        expected = f"1 to {LONGEST_NAME} characters without a backslash"
        raise ImageError(f"the name {wrong[0][:80]!r}", expected, "shorten it")
    return [SegmentInfo(name, default_colour(number)) for number, name in enumerate(names, 1)]


def is_name(name: str) -> bool:
    """Whether DICOM can call a segment so."""
    return len(name.strip()) > 0 and len(name) <= LONGEST_NAME and "\\" not in name and name.isprintable()
