"""The wire protocol of nnInteractive's server, for its clients (3D Slicer, napari, Python): docs/nninteractive.md.

wire       arrays as they are sent
inputs     a client's image as a Volume, and its interactions as prompts
segment    the one object that a client works on
routes     all of it as HTTP
"""

from __future__ import annotations

from voxsam.protocols.nninteractive.routes import ARRAY_PATHS, router
from voxsam.server.app import Protocol

PROTOCOL = Protocol(router, arrays=ARRAY_PATHS)
