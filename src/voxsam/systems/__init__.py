"""The systems that VoxSAM is compared with; importing this package makes their model files known to `load_model`."""

from voxsam.model.assemble import BUILDERS
from voxsam.model.card import Card
from voxsam.model.promptable import Promptable
from voxsam.systems import peft as peft  # makes its adapters known
from voxsam.systems.networks import BUILT_BY


def _click_unet(card: Card) -> Promptable:
    from voxsam.systems.click_unet import ClickUNet  # here: MONAI's networks take a second to import

    return ClickUNet(card)


BUILDERS["click-unet"] = _click_unet


def _plain_network(card: Card) -> Promptable:
    from voxsam.systems.plain_network import PlainNetwork

    return PlainNetwork(card)


BUILDERS.update(dict.fromkeys(BUILT_BY, _plain_network))
