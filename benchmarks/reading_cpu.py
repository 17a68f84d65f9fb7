"""Processor seconds to read files: `python -m benchmarks.reading_cpu FILE_OR_FOLDER ...`; the least of a few runs.

Child processes count, waiting for the disk does not, so a busy machine gives the same figure. With PYTHONPATH=OTHER/src
it measures another commit.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from voxsam.io import read_volume

REPEATS = 7


def processor_s() -> float:
    """Processor seconds used by this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(path: Path, repeats: int = REPEATS) -> float:
    """The least processor seconds of `repeats` reads, after an uncounted one that imports what reading needs."""
    read_volume(path)
    times = []
    for _ in range(repeats):
        start = processor_s()
        read_volume(path)
        times.append(processor_s() - start)
    return min(times)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{measure(Path(name)):8.3f} s  {Path(name).name}", flush=True)
