"""A running server with a model that is known, and real clients of the nnInteractive protocol for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import uvicorn
from known_model import KnownModel
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as RemoteSession

from voxsam.geometry import Grid
from voxsam.server.app import make_app
from voxsam.server.settings import Settings
from voxsam.session import Session
from voxsam.volume import Volume

START_S = 20  # longest wait for a server that starts


class Running:
    """A server of this process on a free port of this machine; `clock` may be set forward."""

    def __init__(self, model, **settings) -> None:
        self.app = make_app(Settings(**settings), model)
        self.store = self.app.state.service.store
        self.ahead_s = 0.0
        self.store.clock = lambda: time.monotonic() + self.ahead_s
        self._server = uvicorn.Server(uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)

    @contextmanager
    def client(self, image: np.ndarray | None = None, key: str | None = None, **properties) -> Iterator[RemoteSession]:
        """A client; with an image (X, Y, Z) it is sent, and a buffer of zeros is set."""
        with RemoteSession(self.url, api_key=key) as client:
            if image is not None:
                client.set_image(image[None], properties)
                client.set_target_buffer(np.zeros(image.shape, np.uint8))
            yield client


@contextmanager
def running(model, **settings) -> Iterator[Running]:
    server = Running(model, **settings)
    try:
        yield server
    finally:
        server.stop()


class CardedModel(KnownModel):
    """A KnownModel with all of a card that a server reads."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        polarity = ("negative",) if self.config.polarity else ()
        prompts = ("positive", *polarity, "box", "scribble", "hint")
        known = {**vars(self.card), "config": self.config, "prompts": prompts, "description": {"licence": "CC0-1.0"}}
        self.card = SimpleNamespace(**known)


def own_session(model, image: np.ndarray, spacing_mm=(1.0, 1.0, 1.0)) -> Session:
    """VoxSAM's own session on a client's image: axis 0 is slices upwards, 1 rows to the back, 2 columns to the left.

    Written out here, not taken from the server.
    """
    s, p, lt = spacing_mm
    affine = np.array([[0, 0, -lt, 0], [0, -p, 0, 0], [s, 0, 0, 0], [0, 0, 0, 1.0]])
    return Session(model, Volume(image, Grid(image.shape, affine), "CT"))
