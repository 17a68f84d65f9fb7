"""A running server with a known model, and real clients of the nnInteractive protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import serving
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as RemoteSession

from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.server.settings import Settings
from voxsam.volume import Volume


class Running:
    """A server whose clock may be set ahead."""

    def __init__(self, http: httpx.Client) -> None:
        self.url, self.sessions, self.ahead_s = str(http.base_url).rstrip("/"), http.service.sessions, 0.0
        self.sessions.clock = lambda: time.monotonic() + self.ahead_s

    @contextmanager
    def client(self, image: np.ndarray | None = None, key: str | None = None, **properties) -> Iterator[RemoteSession]:
        """A client; an image (X, Y, Z), if given, is sent, and a buffer of zeros is set."""
        with RemoteSession(self.url, api_key=key, read_timeout=600.0) as client:
            if image is not None:
                client.set_image(image[None], properties)
                client.set_target_buffer(np.zeros(image.shape, np.uint8))
            yield client


@contextmanager
def running(model, **settings) -> Iterator[Running]:
    with serving.running(Settings(**settings), model) as http:
        yield Running(http)


def own_session(model, image: np.ndarray, spacing_mm=(1.0, 1.0, 1.0)) -> Session:
    """VoxSAM's own session on a client's image: axis 0 is slices upwards, 1 rows to the back, 2 columns to the left.

    Written out here, not taken from the server.
    """
    s, p, lt = spacing_mm
    affine = np.array([[0, 0, -lt, 0], [0, -p, 0, 0], [s, 0, 0, 0], [0, 0, 0, 1.0]])
    return Session(model, Volume(image, Grid(image.shape, affine), "CT"), keep_clicked=False)
