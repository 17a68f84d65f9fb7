"""The systems that VoxSAM is compared with; importing this package makes their model files known to `load_model`."""

from voxsam.lab.systems import peft as peft  # makes its adapters known
from voxsam.lab.systems.networks import BUILT_BY
from voxsam.network.card import Card
from voxsam.network.promptable import Promptable
from voxsam.weights.assemble import BUILDERS


def _click_unet(card: Card) -> Promptable:
    from voxsam.lab.systems.click_unet import ClickUNet  # here: MONAI's networks take a second to import

    return ClickUNet(card)


BUILDERS["click-unet"] = _click_unet


def _plain_network(card: Card) -> Promptable:
    from voxsam.lab.systems.plain_network import PlainNetwork

    return PlainNetwork(card)


BUILDERS.update(dict.fromkeys(BUILT_BY, _plain_network))
