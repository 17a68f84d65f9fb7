"""The systems that VoxSAM is compared with; importing this package makes their model files known to `load_model`."""

from voxsam.lab.systems import crop_networks, networks
from voxsam.lab.systems import peft as peft  # makes its adapters known
from voxsam.weights.checkpoint import BUILDERS

BUILDERS["click-unet"] = crop_networks.ClickUNet
BUILDERS.update(dict.fromkeys(networks.FILES, crop_networks.AutomaticNetwork))
