"""`strategy: fsdp`: parameters, gradients and moments divided among the processes (PyTorch's FSDP2).

Each block of the image encoder is gathered when it computes and given back afterwards; the rest of the network is one
more unit. Single numbers cannot be divided and are frozen: the gains of the relative positions, which the paper
freezes, too. Checkpoints are single whole files, as those of any other run: one of them may go on as the other.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from voxsam.lab.training.recipe import Recipe
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.network import VoxSAMNetwork

FSDP = "fsdp"
AVERAGE_EVERY = 10  # steps
ENTRIES = ("encode", "sample", "static", "decode", "decode_stages")  # a task calls these of a network, not its forward


def choose_strategy(recipe: Recipe) -> str | Strategy:
    """Lightning's strategy of that name, or FSDP2 over all processes."""
    if recipe.strategy != FSDP:
        return recipe.strategy
    return ModelParallelStrategy(
        data_parallel_size=recipe.devices * recipe.nodes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def averaging(recipe: Recipe) -> list[Callback]:
    """The callback that averages the weights, if the recipe wants averages."""
    if not recipe.ema:
        return []
    if recipe.strategy == FSDP:
        return [ShardedAverages(recipe.ema)]
    return [EMAWeightAveraging(decay=recipe.ema, update_every_n_steps=AVERAGE_EVERY)]


class ShardedTask(SegmentationTask):
    """A task whose network is divided among the processes when Lightning has started them."""

    def configure_model(self) -> None:
        """Called by Lightning; a second call does nothing."""
        if any(isinstance(parameter, DTensor) for parameter in self.network.parameters()):
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        scalars = {parameter for parameter in self.network.parameters() if parameter.ndim == 0}
        for parameter in scalars:
            parameter.requires_grad_(False)
        if isinstance(self.network, VoxSAMNetwork):
            for block in self.network.image_encoder.blocks:
                fully_shard(block, mesh=mesh, ignored_params=scalars)
        fully_shard(self.network, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        for name in ENTRIES:
            register_fsdp_forward_method(self.network, name)


class ShardedAverages(EMAWeightAveraging):
    """Lightning's averages, for parameters that are divided: each process averages its own part.

    A checkpoint holds what it holds in an undivided run: the averages as "state_dict", the weights beside them.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, update_every_n_steps=AVERAGE_EVERY)
        self.decay = decay

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Nothing yet: the parameters are not divided before the strategy is set up."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin with the weights as they are; a checkpoint is read after this."""
        self._average_model = _Averages(pl_module, self.decay)  # type: ignore[assignment]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Whole tensors; all processes take part in putting them together."""
        averages = self._averages.whole()
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = averages
        checkpoint["averaging_state"] = {"n_averaged": self._averages.updates}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The strategy has read the averages into the network by now: they go where they belong."""
        self._averages.updates = int(checkpoint["averaging_state"]["n_averaged"])
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                self._averages.tensors[name].copy_(parameter)
                parameter.copy_(_divided(checkpoint["current_model_state"][name], parameter))

    @property
    def _averages(self) -> _Averages:
        assert isinstance(self._average_model, _Averages)
        return self._average_model


class _Averages:
    """What EMAWeightAveraging asks of torch's AveragedModel, on each process's part of the parameters."""

    def __init__(self, task: lightning.LightningModule, decay: float) -> None:
        self.tensors = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
        self.decay, self.updates = decay, 0

    @property
    def module(self) -> _Averages:
        """AveragedModel's copy of the model."""
        return self

    def parameters(self) -> list[Tensor]:
        """In the order of the task's."""
        return list(self.tensors.values())

    def buffers(self) -> list[Tensor]:
        """Those of a network are tables that never change."""
        return []

    @torch.no_grad()
    def update_parameters(self, task: lightning.LightningModule) -> None:
        """average = decay * average + (1 - decay) * weights; the first time, the weights."""
        for name, parameter in task.named_parameters():
            average = self.tensors[name]
            average.lerp_(parameter.detach(), 1 - self.decay if self.updates else 1.0)
        self.updates += 1

    def whole(self) -> dict[str, Tensor]:
        """Undivided, on the CPU."""
        return {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
            for name, tensor in self.tensors.items()
        }


def _divided(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor divided as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
