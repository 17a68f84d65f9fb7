"""The systems that VoxSAM is compared with; importing this package lets `load_model` read their model files."""

from voxsam.lab.systems import networks
from voxsam.lab.systems import peft as peft  # registers its adapters
from voxsam.weights.checkpoint import BUILDERS

BUILDERS["click-unet"] = networks.ClickUNet
BUILDERS.update(dict.fromkeys(networks.FILES, networks.AutomaticNetwork))
