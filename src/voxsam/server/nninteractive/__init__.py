"""The nnInteractive wire protocol: 3D Slicer, napari, MITK and other clients of it work with VoxSAM unchanged.

wire               arrays in and out, as the protocol packs them
image              the client's array as a Volume: spacing, axes
interactions       points, boxes, scribbles, lassos as VoxSAM's prompts
segment            the one object that a client works on: what was prompted, what its buffer shows, undo
capabilities       what the loaded model can do, in the protocol's words
answers            changes and failures as the protocol sends them
client             what every route is given: the client's slot by its lease
*_routes, router   the HTTP routes
"""
