"""Which scan a reader works on next, and which one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voxsam.project.records import READER

if TYPE_CHECKING:
    from voxsam.project.folder import Project


def upcoming(project: Project, reader: str = READER, after: str | None = None) -> list[str]:
    """What `Project.next` would give, one after another: what this reader has begun, then what is to do after `after`.

    Where a model has looked first: the one that it is least sure of first, and then what it has not seen. Nothing is
    taken.
    """
    scans = project.scans
    open_ones = [scan for scan in scans if project.state(scan) in ("to do", "in work")]
    names = [scan.name for scan in scans]
    begun = [scan.name for scan in open_ones if scan.state == "in work" and scan.reader == reader]
    free = [scan.name for scan in open_ones if scan.state == "to do"]
    first = names.index(project.scan(after).name) + 1 if after is not None else 0
    turn = {name: (n - first) % max(1, len(names)) for n, name in enumerate(names)}
    looked = bool(project.settings.first_look)
    sure = {scan.name: 1.0 if scan.sure is None or not looked else scan.sure for scan in scans}
    order = sorted(free, key=lambda name: (sure[name], turn[name]))
    return [*(name for name in begun if name != after), *order]


def says(project: Project) -> str:
    """The order of the work in words."""
    model = project.settings.first_look
    return f"the scan that {model} is least sure of first" if model else "as listed"


def previous(project: Project, reader: str = READER, before: str | None = None) -> str | None:
    """The scan that this reader has done or skipped last, or the one before `before`. None: there is none."""
    scans = project.scans
    found = [(scan.since, scan.name) for scan in scans if (scan.state, scan.reader) == ("skipped", reader)]
    for scan in scans:
        if reading := project.readings(scan.name).get(reader):
            found.append((reading.finished, scan.name))
    names = [name for _, name in sorted(found)]
    earlier = names[: names.index(before)] if before in names else names
    return earlier[-1] if earlier else None
