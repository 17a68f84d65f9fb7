"""The systems that VoxSAM is compared with; importing this package makes their model files known to `load_model`."""

from voxsam.lab.systems import networks
from voxsam.lab.systems import peft as peft  # makes its adapters known
from voxsam.weights.checkpoint import BUILDERS

BUILDERS["click-unet"] = networks.ClickUNet
BUILDERS.update(dict.fromkeys(networks.FILES, networks.AutomaticNetwork))
