"""The adapters that VoxSAM's own is compared with (paper, Table 2, and beyond); importing this makes them known."""

from __future__ import annotations

from torch import nn

from voxsam.lab.systems.peft.bottlenecks import Houlsby, ProTuning, STAdapter, STAdapterTwice
from voxsam.lab.systems.peft.low_rank import MASAM, Factors, LoRA
from voxsam.lab.systems.peft.med import MedAdapter
from voxsam.network.adapters import ADAPTERS, AdapterKind, BlockHook
from voxsam.network.sizes import ModelConfig

RANKS = {"lora": 8, "samed": 4, "masam": 32}  # where a configuration names none


def rank_of(config: ModelConfig) -> int:
    """The rank of a low-rank adapter."""
    return config.adapter_rank or RANKS[config.adapter]


def _low_rank(config: ModelConfig, block: int, shared: nn.Module | None) -> BlockHook:
    return LoRA(config.width, rank_of(config))


def _masam(config: ModelConfig, block: int, shared: nn.Module | None) -> BlockHook:
    assert isinstance(shared, Factors)
    return MASAM(config, rank_of(config), shared)


ADAPTERS.update(
    houlsby=AdapterKind(lambda config, block, shared: Houlsby(config)),
    protuning=AdapterKind(lambda config, block, shared: ProTuning(config)),
    st=AdapterKind(lambda config, block, shared: (STAdapterTwice if config.adapter_twice else STAdapter)(config)),
    med=AdapterKind(lambda config, block, shared: MedAdapter(config, block)),
    lora=AdapterKind(_low_rank, norms=False),
    samed=AdapterKind(_low_rank, norms=False),
    masam=AdapterKind(_masam, lambda config: Factors(config.width, rank_of(config)), norms=False),
)
