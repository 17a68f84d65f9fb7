"""The wire protocol of nnInteractive's server, for its clients (3D Slicer, napari, Python): docs/nninteractive.md.

wire       arrays as they are sent
inputs     a client's image as a Volume, and its interactions as prompts
routes     all of it as HTTP
"""
