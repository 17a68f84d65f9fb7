"""Fingerprints of scans, whatever file holds them, and whether a model was trained on a scan.

A card lists the `content` of each scan that its network was trained on: a digest of all voxels, which is the same for
any file, format, orientation or compression, and a sketch, which a part of the scan shares in part. A sketch holds the
smallest hashes of 3 x 3 x 2 voxels (bottom-k, Broder 1997): those that lie in a crop are hashes of the crop, too.
A scan that was resampled, or whose values were changed, is recognised only by its name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from voxsam.volume import Volume

HASHES = 48  # in a sketch, of 6 bytes each
SHARED = 2  # this many hashes in common are no coincidence
ONE_IN = 32  # places is hashed; their voxels decide which
VARIED = 9  # distinct values among the 18, at least: padding and the like are the same in every scan
SLAB = 32  # slices hashed at once
TABLE_BITS = 20
MIX = np.uint64(0x9E3779B97F4A7C15)
GENERIC = {"case", "ct", "file", "image", "img", "mr", "patient", "phantom", "scan", "seed", "sub", "subject", "volume"}

Hashes = NDArray[np.uint64]


def content(volume: Volume) -> str:
    """Fingerprint of a scan, `DIGEST` or `DIGEST:SKETCH`: 16 hexadecimal digits, and its sketch, if any, in base 64."""
    found = np.concatenate([np.zeros(0, np.uint64), *map(_least, _hashes(volume))])
    sketch = _least(found).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:].tobytes()
    return f"{digest(volume)}:{base64.b64encode(sketch).decode()}" if sketch else digest(volume)


def digest(volume: Volume) -> str:
    """Hash of the scan's voxels in R, A, S order, 16 hexadecimal digits: the same for equal values of any type."""
    array = volume.reorient("RAS").array
    found, fractions = hashlib.sha256(repr(array.shape).encode()), _has_fractions(array)
    for start in range(0, len(array), SLAB):
        found.update(_bits(array[start : start + SLAB], fractions).data)
    return found.hexdigest()[:16]


class Seen:
    """The scans that a network was trained on according to its card, searchable; `trained_on` is as in a Card."""

    def __init__(self, trained_on: Mapping[str, Mapping[str, str]]) -> None:
        self._names: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        owners, sketches = [], [np.zeros(0, np.uint64)]
        for source, cases in trained_on.items():
            for case, text in cases.items():
                shown = f"{case} of {source}"
                self._names.setdefault(_patient(case), shown)
                first, _, sketch = text.partition(":")
                if first:
                    self._digests.setdefault(first, shown)
                hashes = np.frombuffer(base64.b64decode(sketch), np.uint8).reshape(-1, 6)  # big-endian, of 48 bits
                sketches.append(np.pad(hashes, ((0, 0), (2, 0))).view(">u8").ravel().astype(np.uint64))
                owners += [shown] * len(sketches[-1])
        self._sketches, self._owners = np.concatenate(sketches), np.array(owners)
        # by the low bits of a hash, whether any of them has these: it rules out most others at once
        self._table = np.zeros(1 << TABLE_BITS, np.bool_)
        self._table[self._sketches & np.uint64(len(self._table) - 1)] = True

    def find(self, name: str, scan: Volume) -> str:
        """Say in words how the network was trained on a scan; "" if, as far as can be told, it was not.

        `scan` (i, j, k) is the first channel as its file has it, `name` that of its case or file. Finds the same
        voxels, a part of a training scan or a scan with such a part; failing these, a name that identifies a patient.
        """
        same = self._digests.get(digest(scan)) if self._digests else None
        if same is not None:
            return f"trained on it: {same} has the same voxels"
        part = self._shares(scan) if len(self._sketches) else None
        if part is not None:
            return f"trained on a part of it, or on what it is a part of: {part}"
        named = self._names.get(_patient(name))
        return f"perhaps trained on it: {named} has the same name" if named else ""

    def _shares(self, scan: Volume) -> str | None:
        """The case that has the most hashes in common with a scan, if they are at least SHARED."""
        mask = np.uint64(len(self._table) - 1)
        found = [hashes[self._table[hashes & mask]] for hashes in _hashes(scan)]
        owners = self._owners[np.isin(self._sketches, np.concatenate([np.zeros(0, np.uint64), *found]))]
        names, counts = np.unique(owners, return_counts=True)
        return str(names[counts.argmax()]) if len(counts) and counts.max() >= SHARED else None


def listed(trained_on: Mapping[str, Mapping[str, str]]) -> str:
    """Describe what a card lists: each source and its number of cases."""
    counts = {source: len(cases) for source, cases in trained_on.items()}
    parts = (f"{source} ({n} case{'s' * (n != 1)})" if n else f"{source} (not listed)" for source, n in counts.items())
    return ", ".join(parts)


def _has_fractions(array: NDArray) -> bool:
    return array.dtype.kind == "f" and any(not np.array_equal(np.rint(part), part) for part in _slabs(array, SLAB))


def _bits(array: NDArray, fractions: bool) -> NDArray[np.uint32]:
    """Bits of the values as int32, or as float32 if there are fractions (+ 0 turns -0 into 0)."""
    values = array.astype("<f4") + np.float32(0) if fractions else array.astype("<i4")
    return np.ascontiguousarray(values).view("<u4")


def _hashes(volume: Volume) -> Iterator[Hashes]:
    """48-bit hashes of neighbourhoods, slab by slab, at places chosen by two of their voxels: a crop has the same."""
    array = volume.reorient("RAS").array
    fractions = _has_fractions(array)
    for part in _slabs(array, SLAB + 1):
        values = _bits(part, fractions)
        i, j, k = (n - m for n, m in zip(values.shape, (2, 2, 1), strict=True))
        if min(i, j, k) < 1:
            continue
        mixed = values * np.uint32(2654435761)
        drawn = mixed[:i, :j, :k] + (mixed[1 : i + 1, :j, :k] >> np.uint32(7))
        drawn *= np.uint32(3266489917)
        places = np.flatnonzero(drawn < np.uint32(2**32 // ONE_IN))
        start = np.ravel_multi_index(np.unravel_index(places, drawn.shape), values.shape)
        steps = [(a * values.shape[1] + b) * values.shape[2] + c for a in range(3) for b in range(3) for c in (0, 1)]
        flat = values.reshape(-1)
        start = start[flat[start] != flat[start + steps[6]]]  # mostly padding
        around = np.stack([flat[start + step] for step in steps])
        ordered = np.sort(around, axis=0)
        around = around[:, (ordered[1:] != ordered[:-1]).sum(axis=0) + 1 >= VARIED]
        found = np.zeros(around.shape[1], np.uint64)
        for row in around:
            found = (found ^ row) * MIX
            found ^= found >> np.uint64(29)
        yield found >> np.uint64(16)


def _slabs(array: NDArray, thickness: int) -> Iterator[NDArray]:
    """Slabs of an array along its last axis, which start SLAB apart."""
    for start in range(0, array.shape[2], SLAB):
        yield array[:, :, start : start + thickness]


def _least(hashes: Hashes) -> Hashes:
    return np.unique(hashes)[:HASHES]


def _patient(name: str) -> str:
    """The part of a name that identifies a patient: its words up to the first number, and that number.

    A generic name, which any data set may have, is kept whole: `case_0001` matches only the same name.
    """
    words = re.findall(r"[a-z]+|\d+", name.lower().removesuffix("_0000"))
    numbers = [n for n, word in enumerate(words) if word.isdigit()]
    if not numbers or not set(words[: numbers[0]]) - GENERIC:
        return name
    return " ".join([*words[: numbers[0]], str(int(words[numbers[0]]))])
