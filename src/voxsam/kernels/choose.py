"""The fastest of several ways to the same numbers, measured on the machine that will use it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LOG = logging.getLogger("voxsam.weights")
REPEATS = 5
Way = Callable[[], Tensor]


def fastest(ways: Mapping[str, Way], tolerance: float, of: str = "") -> str:
    """The name of the way that takes the least time, of those that answer as the first one does.

    A way that raises, or differs from the first by more than `tolerance` of its largest value, is not taken: so
    what a driver or a compiler does not master costs speed and never a mask. Why it was not taken goes to the log
    "voxsam.weights", as information, under the name `of` what it is a way of. The first way's own errors are raised.
    """
    (first, plain), *others = ways.items()
    answer = plain()
    seconds = {first: _seconds(plain)}
    for name, way in others:
        try:
            if _close(way(), answer, tolerance):
                seconds[name] = _seconds(way)
            else:
                LOG.info("%s: %s is not taken, its answer is another than that of %s", of, name, first)
        except Exception as error:  # whatever it is, the first way works
            LOG.info("%s: %s is not taken, it failed", of, name, exc_info=error)
    LOG.info("%s: seconds %s", of, seconds)
    return min(seconds, key=seconds.__getitem__)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """False for another shape, and for NaN."""
    if found.shape != expected.shape:
        return False
    return bool((found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max())


def _seconds(way: Way) -> float:
    """The least of a few runs, until the device has finished."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = way()
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        best = min(best, time.perf_counter() - start)
    return best
