"""The protocols of other programs' clients, served alongside the server's own API: docs/viewers.md.

nninteractive   SlicerNNInteractive, napari-nninteractive, nninteractive-client
monailabel      3D Slicer's MONAI Label module, MITK's tool, OHIF's panel, MONAILabelClient
itksnap         ITK-SNAP's deep learning extension (itksnap-dls)
segment         what they share: the one object that a client works on, and the client's session
"""

from __future__ import annotations

from voxsam.protocols import itksnap
from voxsam.protocols.monailabel import routes as monailabel
from voxsam.protocols.nninteractive import routes as nninteractive

PROTOCOLS = (nninteractive.PROTOCOL, monailabel.PROTOCOL, itksnap.PROTOCOL)
