"""The protocols of other programs' clients, served alongside the server's own API: docs/viewers.md.

nninteractive   SlicerNNInteractive, napari-nninteractive, nninteractive-client
monailabel      3D Slicer's MONAI Label module, MITK's tool, OHIF's panel, MONAILabelClient
itksnap         ITK-SNAP's deep learning extension (itksnap-dls)
"""

from __future__ import annotations

from voxsam.protocols import itksnap, monailabel, nninteractive

PROTOCOLS = (nninteractive.PROTOCOL, monailabel.PROTOCOL, itksnap.PROTOCOL)
