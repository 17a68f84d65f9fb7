"""The report of a segmentation, as JSON for programs and as one self-contained HTML page for people.

It holds what the caller gives, the geometry of the scan, and for a DICOM scan its patient, study and series."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from voxsam import __version__
from voxsam.atomic import atomic_path
from voxsam.boxes import bounding_box, labels_of
from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io.segments import SegmentInfo
from voxsam.region import Region
from voxsam.report.metrics import Diameter, dice, measure
from voxsam.volume import Volume

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
    """Lines of text as an HTML list; nothing for none."""
    return "<ul>\n" + "".join(f"<li>{escape(item)}</li>\n" for item in items) + "</ul>\n" if items else ""


STYLE = """:root { color-scheme: dark }
body { margin: 0; background: #0b0e13; color: #e8edf4; font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1200px; margin: 0 auto; padding: 24px }
h1 { font-size: 24px; margin: 0 0 16px }
img { width: 100%; height: auto; border-radius: 8px; display: block }
table { border-collapse: collapse; margin-top: 24px; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid #232b38 }
th { color: #a3afc0; font-weight: normal; width: 16em }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
ul { padding-left: 1.2em }
footer { color: #a3afc0; margin-top: 24px; font-size: 14px }
@media print { :root { color-scheme: light } body { background: #fff; color: #000 } th, footer { color: #444 } }
"""
ALT = "Axial, coronal and sagittal planes with the mask's contour, and a 3D view of the mask"


SAID_OF_DICOM = {  # what identifies a scan in a report: PS3.3 C.7.1.1, C.7.2.1, C.7.3.1
    "patient": {"name": "PatientName", "id": "PatientID"},
    "study": {"uid": "StudyInstanceUID", "date": "StudyDate", "description": "StudyDescription"},
    "series": {"uid": "SeriesInstanceUID", "number": "SeriesNumber", "description": "SeriesDescription"},
}


@dataclass(frozen=True, eq=False)
class ReportedObject:
    """An object of a session: its voxels, its name, and what made it. Clicks are (index, positive)."""

    number: int
    region: Region
    info: SegmentInfo
    clicks: Sequence[tuple[Sequence[float], bool]] = ()
    edited: bool = False  # by hand, or loaded
    confidence: Mapping[str, Any] | None = None  # expected Dice and an interval of the volume, from a calibrated model
    class_name: str | None = None  # from a model with classes


def report_dict(
    *,
    scan: Volume,
    scan_name: str,
    mask: Volume,
    model: str,
    clicks: Sequence[tuple[Sequence[float], bool]] = (),
    seconds: Mapping[str, float] | None = None,
    messages: Sequence[str] = (),
    truth: Volume | None = None,
    objects: Sequence[ReportedObject] | None = None,
    confidence: Mapping[str, Any] | None = None,
    class_name: str | None = None,
) -> dict[str, Any]:
    """The facts of one segmentation, in JSON types only.

    `clicks` are (index (i, j, k), positive); `seconds` says how long each step took; of a path in `scan_name` only the
    last part is kept. With a `truth`, "dice" compares it with the whole mask. `objects` say more than the labels of
    the mask, and may share voxels. `confidence` and `class_name` are those of a mask of one object.
    """
    if objects is None:
        box = bounding_box(mask.array)
        part, start = mask.array[box], [along.start for along in box]
        regions = {label: Region.of(part == label, start) for label in labels_of(mask)}
        found = [_measured(label, region, mask.grid) for label, region in regions.items()]
    else:
        found = [_object(each, scan.grid) for each in objects]
    whose: dict[str, dict[str, str]] = {}
    if source := scan.header.get("dicom"):
        for kind, words in SAID_OF_DICOM.items():
            whose[kind] = {word: str(source.common.get(keyword) or "") for word, keyword in words.items()}
    report: dict[str, Any] = {
        "voxsam": __version__,
        "scan": {
            "name": Path(scan_name).name,
            "shape": list(scan.grid.shape),
            "spacing_mm": [round(float(s), 6) for s in scan.grid.spacing_mm],
            "axes": scan.grid.axes,
            "modality": scan.modality,
        },
        **whose,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "clicks": _clicks(clicks),
        "confidence": dict(confidence) if confidence else None,
        "class": class_name,
        "objects": found,
        "seconds": {step: round(float(time), 4) for step, time in (seconds or {}).items()},
        "messages": list(messages),
    }
    if truth is not None:
        report["dice"] = dice(mask.array, truth.array)
    return report


def facts_for_people(report: Mapping[str, Any]) -> dict[str, str | float]:
    """The rows of the HTML table, from the result of `report_dict`; messages are left to the page."""
    scan = report["scan"]
    facts: dict[str, str | float] = {
        "Scan": scan["name"],
        "Voxels": " × ".join(map(str, scan["shape"])),
        "Spacing": " × ".join(f"{s:.4g}" for s in scan["spacing_mm"]) + f" mm, axes {scan['axes']}",
        "Model": report["model"],
        "Clicks": "; ".join(_click_text(click) for click in report["clicks"]) or "none",
    }
    for kind, words in SAID_OF_DICOM.items():
        said = [report.get(kind, {}).get(word) for word in words if word != "uid"]
        if any(said):
            facts[kind.capitalize()] = ", ".join(str(word) for word in said if word)
    facts["Date"] = report["date"]
    several = len(report["objects"]) > 1
    for found in report["objects"]:
        number = f" {found['label']}" if several else ""
        if "name" in found:
            edited = ", edited by hand" if found["edited"] else ""
            facts[f"Object{number}"] = f"{found['name']} ({found['type']['meaning']}){edited}"
            if several:
                facts[f"Clicks{number}"] = "; ".join(map(_click_text, found["clicks"])) or "none"
        facts[f"Volume{number}"] = f"{found['volume_ml']:,.1f} mL ({found['voxels']:,} voxels)"
        facts[f"Longest axial diameter{number}"] = f"{found['longest_axial_diameter_mm']:.1f} mm"
        if found["perpendicular"]:
            facts[f"Perpendicular{number}"] = f"{found['perpendicular']['mm']:.1f} mm"
        if kind := found.get("class") or report.get("class"):
            facts[f"Class{number}"] = kind
        if sure := found.get("confidence") or report["confidence"]:
            low, high = sure["volume_ml"]
            facts[f"Expected{number}"] = f"Dice {sure['dice']:.2f}, volume {low:,.3g} to {high:,.3g} mL (80 %)"
    if not report["objects"]:
        facts["Volume"] = "0 mL: the mask is empty"
    if "dice" in report:
        facts["Dice"] = f"{report['dice']:.3f}"
    facts.update({f"Time, {step}": f"{time:.3g} s" for step, time in report["seconds"].items()})
    return facts


def write_report_json(path: str | os.PathLike[str], report: Mapping[str, Any]) -> None:
    """Write the report as JSON, whole or not at all. Raises FileError if it cannot be written."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_report_html(
    path: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str | float],
    picture: Path,
    messages: Sequence[str] = (),
) -> None:
    """Write one page with the PNG `picture` inside it, a table of `facts`, and messages; it loads nothing else.

    All text is escaped. Raises FileError if the picture is not a readable PNG, or if the page cannot be written.
    """
    texts = {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in facts.items()}
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in texts.items())
    table = "<table>\n" + "\n".join(rows) + "\n</table>"
    write_page(path, title, STYLE, f"{image(picture, ALT)}\n{table}\n{bullets(messages)}")


def _object(found: ReportedObject, grid: Grid) -> dict[str, Any]:
    kind = found.info.type
    return {
        **_measured(found.number, found.region, grid),
        "name": found.info.name,
        "type": {"value": kind.value, "scheme": kind.scheme, "meaning": kind.meaning},
        "clicks": _clicks(found.clicks),
        "edited": found.edited,
        "confidence": dict(found.confidence) if found.confidence else None,
        "class": found.class_name,
    }


def _measured(label: int, region: Region, grid: Grid) -> dict[str, Any]:
    size = measure(region, grid)
    return {
        "label": label,
        "voxels": size.voxels,
        "volume_ml": round(size.volume_ml, 6),
        "longest_axial_diameter_mm": round(size.longest.length_mm, 3) if size.longest else 0.0,
        "longest": _line(size.longest),
        "perpendicular": _line(size.perpendicular),
    }


def _line(diameter: Diameter | None) -> dict[str, Any] | None:
    """A diameter in mm, and its ends as indices of the scan."""
    if diameter is None:
        return None
    return {"mm": round(diameter.length_mm, 3), "ends": diameter.ends.round(3).tolist()}


def _clicks(clicks: Sequence[tuple[Sequence[float], bool]]) -> list[dict[str, Any]]:
    """The clicks in JSON types; whole numbers are ints, so that JSON shows an index as it was typed."""
    return [
        {"index": [int(at) if float(at).is_integer() else float(at) for at in index], "positive": bool(positive)}
        for index, positive in clicks
    ]


def _click_text(click: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, click['index']))}) {'positive' if click['positive'] else 'negative'}"
