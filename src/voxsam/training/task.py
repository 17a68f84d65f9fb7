"""The Lightning task: one crop with clicks in, the paper's loss out."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from voxsam.model.network import VoxSAMNetwork
from voxsam.training.recipe import Recipe


def schedule(step: int, recipe: Recipe) -> float:
    """The learning rate's factor at a step: linear warm-up, constant, linear decay to 0."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return rise * min(1.0, max(0.0, left))


class SegmentationTask(lightning.LightningModule):
    """Loss 0.5 Dice + 0.5 cross-entropy over softmax, background left out of Dice (docs/released.md, "Training")."""

    def __init__(self, recipe: Recipe, network: VoxSAMNetwork) -> None:
        super().__init__()
        self.recipe, self.network = recipe, network
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, lambda_dice=0.5, lambda_ce=0.5)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """One batch of samples (voxsam.data.sampling.Sampler.draw, stacked) -> the loss."""
        logits = self.network(batch["crop"], batch["points"], batch["labels"])
        loss = self.loss(logits, batch["label"])
        with torch.no_grad():
            mask, truth = logits.argmax(1, keepdim=True).float(), batch["label"]
            dice = 2 * (mask * truth).sum() / (mask.sum() + truth.sum()).clamp(min=1)
        self.log_dict({"loss": loss.detach(), "dice": dice}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; vectors (biases and norms) are not decayed. The learning rate follows `schedule`."""
        decayed = [p for p in self.network.parameters() if p.requires_grad and p.ndim >= 2]
        rest = [p for p in self.network.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)
        factor = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, self.recipe))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": factor, "interval": "step"}}
