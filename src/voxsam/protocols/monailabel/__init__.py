"""The protocol of MONAI Label's server, for 3D Slicer's MONAI Label module, MITK, OHIF, MONAILabelClient.

datastore   images by their ids (served folders, uploads) and the labels that clients save
images      an image that is open, and what segments it
routes      all of it as HTTP
"""

from __future__ import annotations

from voxsam.protocols.monailabel.routes import FILE_PATHS, PUBLIC_PATHS, router
from voxsam.server.app import Protocol

PROTOCOL = Protocol(router, files=FILE_PATHS, public=PUBLIC_PATHS)
