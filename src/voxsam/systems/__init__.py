"""The systems that VoxSAM is compared with; importing this package makes their model files known to `load_model`."""

from voxsam.model.assemble import BUILDERS
from voxsam.systems.click_unet import ClickUNet

BUILDERS[ClickUNet.system] = ClickUNet
