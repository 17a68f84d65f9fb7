"""The times that a user waits in a session: the first click, later ones, a click that moves the crop, undo."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from voxsam.interactive.session import Session
from voxsam.network.promptable import Promptable
from voxsam.phantoms import Phantom
from voxsam.volume import Volume

SAMPLED = np.arange(-8, 8, 2)  # voxels around the click, on each axis, whose probabilities are compared
CLICKS = 10
MOVES = 0.45  # of the crop's side: a click this far from the first no longer lies well inside its crop


class Clicked:
    """A session that counts its encodings and times work."""

    def __init__(self, network: Promptable, scan: Volume) -> None:
        self.encodings = 0
        self.session = Session(network, scan, follow=False, progress=self._count)

    def _count(self, stage: str, fraction: float) -> None:
        self.encodings += fraction == 0

    def timed(self, work: Callable[[], object], encodes: bool) -> float:
        """Seconds of a piece of work. Raises RuntimeError unless it encoded crops (one for each look) iff `encodes`."""
        before, start = self.encodings, time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        if (self.encodings > before) != encodes:
            raise RuntimeError(f"{self.encodings - before} encodings, expected {'some' if encodes else 'none'}")
        return seconds


def two_clicks(network: Promptable, phantom: Phantom) -> dict[str, object]:
    """Seconds from a click to the mask on the scan: the first click, and the next one, a voxel beside it.

    Includes 512 probabilities around the click, to compare two implementations.
    """
    clicked = Clicked(network, phantom.scan)
    numbers = _first_and_next(clicked, phantom)
    return {**numbers, "sample": _sample(clicked.session, phantom)}


def all_clicks(network: Promptable, phantom: Phantom) -> dict[str, object]:
    """As `two_clicks`, then more clicks up to CLICKS in the same crop, an undo, and a click that moves the crop."""
    clicked = Clicked(network, phantom.scan)
    numbers = _first_and_next(clicked, phantom)
    sample, session = _sample(clicked.session, phantom), clicked.session
    more = [clicked.timed(lambda n=n: session.click(_beside(phantom, n)), encodes=False) for n in range(2, CLICKS)]
    undo = clicked.timed(session.undo, encodes=False)
    away = _far_from(session, phantom)
    return {
        **numbers,
        "each_click_s": [*numbers.values(), *more],
        "ten_clicks_s": sum([*numbers.values(), *more]),
        "undo_s": undo,
        "moving_click_s": clicked.timed(lambda: session.click(away), encodes=True),
        "sample": sample,
    }


def _first_and_next(clicked: Clicked, phantom: Phantom) -> dict[str, float]:
    first = clicked.timed(lambda: clicked.session.click(phantom.click), encodes=True)
    if clicked.session.model.card.preprocessing.spacing_range_mm is not None:
        _look_closer(clicked.session, phantom)
    return {
        "first_click_s": first,
        "next_click_s": clicked.timed(lambda: clicked.session.click(_beside(phantom, 1)), encodes=False),
    }


def _look_closer(session: Session, phantom: Phantom) -> None:
    """Encode the crops at another spacing that later clicks may need, so that these find all crops encoded."""
    for n in range(1, CLICKS):
        session.click(_beside(phantom, n))
    for _ in range(1, CLICKS):
        session.undo()


def _beside(phantom: Phantom, n: int) -> tuple[int, int, int]:
    """The n-th voxel beside the click."""
    i, j, k = phantom.click
    return i + n % 3, j + n // 3 % 3, k + n // 9


def _sample(session: Session, phantom: Phantom) -> list[float]:
    shape = phantom.scan.grid.shape
    around = np.ix_(*[np.clip(at + SAMPLED, 0, n - 1) for at, n in zip(phantom.click, shape, strict=True)])
    return session.probabilities.array[around].ravel().tolist()


def _far_from(session: Session, phantom: Phantom) -> list[float]:
    """A voxel of the scan for which the crop must move, on the axis and side with the most room."""
    model_grid, grid = session.prediction.windows[0].model_grid, phantom.scan.grid
    at = grid.index_in(model_grid, phantom.click)
    room = np.stack([at, np.array(model_grid.shape) - 1 - at])
    side, axis = np.unravel_index(room.argmax(), room.shape)
    at[axis] += (1 if side else -1) * MOVES * session.model.config.crop
    return model_grid.index_in(grid, at).round().clip(0, np.array(grid.shape) - 1).tolist()
