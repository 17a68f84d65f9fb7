"""Names, colours and types of segments, for DICOM-SEG, RTSTRUCT, reports and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxsam.errors import ImageError

LONGEST_NAME = 64  # characters of a segment's or ROI's name (VR LO)
# RGB of objects 1, 2, ...: distinguishable on a dark image, also by colour-blind readers.
COLOURS = ((255, 90, 95), (105, 255, 240), (255, 255, 30), (180, 75, 255), (60, 150, 180), (225, 150, 15))

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Code:
    """A coded concept as in DICOM (PS3.3 8.8): value, scheme and meaning."""

    value: str
    scheme: str
    meaning: str


# Categories of segments (PS3.16 CID 7150).
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")

NEOPLASM = Code("108369006", "SCT", "Neoplasm")
# The types that the page offers, each with its category; codes of PS3.16 CID 7159, 7151 and 7166.
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
    """A segment's name, colour (RGB), type and free-text description."""

    name: str
    colour: Colour
    type: Code = NEOPLASM
    description: str = ""
    visible: bool = True  # in viewers; hidden segments are still written

    @property
    def category(self) -> Code:
        """The category of the type; ABNORMAL for a type that is not in TYPES."""
        return TYPES.get(self.type, ABNORMAL)


def default_colour(number: int) -> Colour:
    """The default colour of object `number`, counted from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def in_hex(colour: Colour) -> str:
    """The colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def segment_infos(count: int, names: Sequence[str] = ()) -> list[SegmentInfo]:
    """The infos of `count` labels, named by `names`. Raises ImageError for too few, too many or invalid names."""
    names = names or (["Tumour"] if count == 1 else [f"Tumour {number}" for number in range(1, count + 1)])
    if len(names) != count:
        raise ImageError(f"{len(names)} names for a mask of {count} objects", "a name for each object", "add or remove")
    wrong = [name for name in names if not is_name(name)]
    if wrong:
        expected = f"1 to {LONGEST_NAME} characters without a backslash"
        raise ImageError(f"the name {wrong[0][:80]!r}", expected, "shorten it")
    return [SegmentInfo(name, default_colour(number)) for number, name in enumerate(names, 1)]


def is_name(name: str) -> bool:
    """Whether DICOM allows this as a segment's name."""
    return len(name.strip()) > 0 and len(name) <= LONGEST_NAME and "\\" not in name and name.isprintable()
