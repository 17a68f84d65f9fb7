"""The Lightning task: crops, with or without clicks, in, the paper's loss out; errors are corrected by clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from voxsam.lab.training.recipe import Recipe
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import NEGATIVE, PADDING, POSITIVE
from voxsam.network.promptable import Promptable

DEEPEST = 0.5  # probability of clicking the deepest voxel of the wrong region; else any of its voxels


def corrections(
    mask_BDHW: Tensor, truth_BDHW: Tensor, rngs: Sequence[np.random.Generator], negatives: bool = True
) -> tuple[Tensor, Tensor]:
    """(B, 1, 3) points and (B, 1) labels: a click in the largest connected region where a mask is wrong.

    Positive where tumour was missed, negative on false tumour; without `negatives` only the former. Padding if nothing
    is wrong. Each crop has its own generator, so that its clicks do not depend on its batch.
    """
    masks, truths = mask_BDHW.bool().cpu().numpy(), truth_BDHW.bool().cpu().numpy()
    found = [_correct(mask, truth, rng, negatives) for mask, truth, rng in zip(masks, truths, rngs, strict=True)]
    points = torch.tensor(np.array([point for point, _ in found]), dtype=torch.float32)[:, None]
    labels = torch.tensor([[label] for _, label in found])
    return points.to(mask_BDHW.device), labels.to(mask_BDHW.device)


def _correct(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], rng: np.random.Generator, negatives: bool
) -> tuple[NDArray[np.int_], int]:
    largest, label = np.zeros((0, 3), dtype=int), PADDING
    kinds = [(truth & ~mask, POSITIVE), (mask & ~truth, NEGATIVE)] if negatives else [(truth & ~mask, POSITIVE)]
    for wrong, kind in kinds:
        parts, count = ndimage.label(wrong)  # type: ignore[misc]
        if count:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            if sizes.max() > len(largest):
                largest, label = np.argwhere(parts == sizes.argmax()), kind
    if not len(largest):
        return np.zeros(3, dtype=int), PADDING
    if rng.random() >= DEEPEST:
        return largest[rng.integers(len(largest))], label
    low, high = largest.min(0), largest.max(0)
    region = np.zeros(high - low + 3, dtype=bool)
    region[tuple((largest - low + 1).T)] = True
    depth = np.asarray(ndimage.distance_transform_edt(region))
    return np.array(np.unravel_index(depth.argmax(), region.shape)) + low - 1, label


VALIDATION = "validation dice"
COARSE = 0.3  # loss weight of the mask decoder's logits, if a refinement head follows
OUTSIDE = 1e4  # voxels: a point moved by this is outside any crop


def schedule(step: int, recipe: Recipe, elapsed: float = 0.0) -> float:
    """The factor of the learning rate at a step: linear warm-up, constant, linear decay to `final_factor`.

    With `epochs` the rate is constant within an epoch, as in the released code. With `minutes` it decays with
    `elapsed`, the fraction of them that has passed. `recipe` must be a planned one.
    """
    assert recipe.steps is not None
    if recipe.epochs is not None:
        step -= step % (recipe.steps // recipe.epochs)
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    if recipe.minutes is not None:
        left = (1 - elapsed) / recipe.decay if recipe.decay else 1.0
    return rise * (recipe.final_factor + (1 - recipe.final_factor) * min(1.0, max(0.0, left)))


class SegmentationTask(lightning.LightningModule):
    """Loss 0.5 Dice + 0.5 cross-entropy over softmax, background excluded from Dice (docs/released.md, "Training").

    The crop is encoded once. In a fraction of the steps the model's mask is then corrected by simulated clicks, one by
    one, and the loss is averaged over the predictions. With `prompts: none` there are no clicks at all.
    """

    def __init__(self, recipe: Recipe, network: Promptable, elapsed: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.recipe, self.network, self.elapsed = recipe, network, elapsed
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, lambda_dice=0.5, lambda_ce=0.5)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The loss of a batch of samples (voxsam.lab.data.sampling.Sampler.draw, stacked)."""
        losses, weights, scores, truth = [], [], [], batch["label"]
        for logits, coarse in self._clicked(batch):
            losses.append(self.loss(logits.float(), truth))
            weights.append(1.0)
            if coarse is not None:
                losses.append(COARSE * self.loss(coarse.float(), truth))
                weights.append(COARSE)
            scores.append(_dice(_mask_of(logits.detach()), truth[:, 0]))
        loss = torch.stack(losses).sum() / sum(weights)
        self.log_dict({"loss": loss.detach(), "dice": scores[0]}, prog_bar=True, sync_dist=True)
        if len(scores) > 1:
            self.log("dice corrected", scores[-1], sync_dist=True)
        return loss

    def _clicked(self, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The logits after the first clicks, and in some steps after each further click, which corrects the last mask.

        With a refinement head each comes with the mask decoder's logits, and only the first and the last are trained
        on (Sofiiuk et al., Reviving Iterative Training with Mask Guidance, 2021). An automatic network has the image
        alone, and one prediction.
        """
        if self.recipe.automatic:
            yield self.predict(batch["crop"], batch["points"], batch["labels"]), None
            return
        rng = np.random.default_rng([self.recipe.seed, self.global_step])  # the same in every process
        users = [np.random.default_rng([self.recipe.seed, 1, int(number)]) for number in batch["number"]]
        network, truth = self.network, batch["label"][:, 0]
        refined = network if isinstance(network, VoxSAMNetwork) and network.refinement is not None else None
        features = network.encode(batch["crop"])
        static = network.static(features, batch["crop"])
        points, labels = batch["points"], batch["labels"]
        corrected = self.recipe.corrections > 0 and rng.random() < self.recipe.corrected
        more = int(rng.integers(1, self.recipe.corrections + 1)) if corrected else 0
        marked = rng.random() >= self.recipe.unmarked
        goes_on, previous = rng.random() < self.recipe.previous, None
        for number in range(1 + more):
            prompt_features = network.sample(features, points)
            places = points if marked else points - OUTSIDE  # DDP wants all parameters to take part in every step
            given = {"prompt_features": prompt_features, "labels": labels, "static": static}
            if refined is None:
                logits = network.decode(features, batch["crop"], places, **given)
                yield logits, None
            else:
                learnt = number in (0, more)
                with torch.set_grad_enabled(learnt and torch.is_grad_enabled()):
                    coarse, _, logits = refined.decode_stages(
                        features, batch["crop"], places, previous=previous, **given
                    )
                if learnt:
                    yield logits, coarse
                previous = (logits[:, 1:] - logits[:, :1]).detach() if goes_on else None
            if number < more:
                new = corrections(_mask_of(logits.detach()), truth, users, network.config.polarity)
                points, labels = torch.cat([points, new[0]], 1), torch.cat([labels, new[1]], 1)

    def predict(self, crops: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """The network's logits, computed step by step: a sharded network gathers its tensors for one step at a time.

        An automatic network ignores the clicks.
        """
        features = self.network.encode(crops)
        static = self.network.static(features, crops)
        if self.recipe.automatic:
            return self.network.decode(features, crops, static=static)
        prompt_features = self.network.sample(features, points)
        return self.network.decode(
            features, crops, points, prompt_features=prompt_features, labels=labels, static=static
        )

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Log the Dice after the first clicks as VALIDATION, averaged over the crops."""
        dice = self.first_dice(batch)
        self.log(VALIDATION, dice, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(batch["crop"]))

    def first_dice(self, batch: dict[str, Tensor]) -> Tensor:
        """Dice () of a batch's masks after its first clicks."""
        logits = self.predict(batch["crop"], batch["points"], batch["labels"])
        return _dice(_mask_of(logits), batch["label"][:, 0])

    def configure_optimizers(self) -> Any:
        """AdamW with `schedule`; vectors (biases and norms) are decayed only if the recipe says so."""
        decayed = [p for p in self.network.parameters() if p.requires_grad and p.ndim >= 2]
        rest = [p for p in self.network.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed}, {"params": rest, **({} if self.recipe.decay_vectors else {"weight_decay": 0.0})}]
        optimiser = torch.optim.AdamW(
            groups, lr=self.recipe.learning_rate, betas=self.recipe.betas, weight_decay=self.recipe.weight_decay
        )
        factor = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, self.recipe, self.elapsed()))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        """Called by Lightning before each step, on unscaled gradients: clip their norm, as a whole or by part."""
        if self.recipe.gradient_clip:
            for part in self.network.children() if self.recipe.clip == "parts" else [self.network]:
                torch.nn.utils.clip_grad_norm_(part.parameters(), self.recipe.gradient_clip)


def _mask_of(logits_B2DHW: Tensor) -> Tensor:
    """(B, D, H, W) 1 where tumour is likelier than background: faster than argmax over the two classes."""
    return (logits_B2DHW[:, 1] > logits_B2DHW[:, 0]).long()


def _dice(mask: Tensor, truth: Tensor) -> Tensor:
    """Dice over a whole batch; 0 for an empty truth."""
    return 2 * (mask * truth).sum() / (mask.sum() + truth.sum()).clamp(min=1)
