"""An estimate of the memory that a training step takes, made before it starts, and the options that take less.

What a step keeps for its backward pass grows with the voxels of its crops, so it is measured: the network is run
forward on a small crop and on one twice as long, while every tensor that autograd keeps is counted; the difference is
scaled to the recipe's crop and batch. (A network with a fixed crop size is run on one such crop on torch's meta device,
where tensors have sizes but no data.) Weights, gradients, the optimiser's two moments and the averages are added.
docs/training.md compares the estimate with measured peaks.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from voxsam.errors import InputError
from voxsam.lab.training.recipe import Recipe
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable

PROGRAM = 0.65e9  # bytes: Python, torch, Lightning and reordered copies of convolution weights
WORKING = 1.5  # times what is kept: with intermediate gradients and the workspace of convolutions
ERROR = 0.25  # largest fraction by which a measured peak may differ; the last ones differed by 4 % (docs/training.md)
MIXED = 2 / 3  # of what float32 keeps, if most operations are computed in 16 bits
SMALL = 32  # voxels, side of the crop used for measuring
POINTS = 10
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Footprint:
    """Bytes of one network: all parameters, the tuned ones, and what is kept for the backward pass.

    `once` is independent of the number of crops, such as weights in bfloat16; `kept` is per crop; `again` is per crop
    if the encoder's blocks are recomputed.
    """

    parameters: int
    tuned: int
    once: float
    kept: float
    again: float

    @classmethod
    def of(cls, network: Promptable, recipe: Recipe) -> Footprint:
        """Measure it with the recipe's prompts and precision; takes a few seconds for ViT-B."""
        parameters = list(network.parameters())
        sizes = sum(p.nbytes for p in parameters), sum(p.nbytes for p in parameters if p.requires_grad)
        if not network.any_crop:
            exact = recipe.model_copy(update={"precision": "32-true"})  # the only precision on the meta device
            side = recipe.model.crop
            kept = _measure(deepcopy(network).to("meta"), exact, (side, side, side)).total
            kept *= 1 if recipe.precision == "32-true" else MIXED
            return cls(*sizes, once=0, kept=kept, again=kept)
        small = min(recipe.model.crop, max(SMALL, recipe.model.stride * recipe.model.window))
        one, two = (_measure(network, recipe, (times * small, small, small)) for times in (1, 2))
        scale = (recipe.model.crop / small) ** 3
        inside = [longer - block for block, longer in zip(one.inside, two.inside, strict=True)]
        kept, inputs = two.total - one.total, two.inputs - one.inputs
        outside = kept - sum(inside)  # freed before the last block is recomputed
        again = inputs + max(outside, max(inside, default=0))
        return cls(*sizes, max(0, one.total - kept), kept * scale, again * scale)

    def step(self, recipe: Recipe) -> float:
        """Peak bytes of a step on each device, without the program itself."""
        shards = recipe.devices * recipe.nodes if recipe.strategy.startswith("fsdp") else 1
        fixed = self.parameters * (2 if recipe.ema else 1) + 3 * self.tuned
        return fixed / shards + self.once + WORKING * recipe.batch * (self.again if recipe.recompute else self.kept)


def check_memory(network: Promptable, recipe: Recipe, device: torch.device, strict: bool = True) -> str:
    """One line on the memory that the recipe will take and what is available.

    Raises InputError with the options that would help if there is certainly too little, unless `strict` is off.
    """
    footprint = Footprint.of(network, recipe)
    on_cpu = device.type == "cpu"
    processes = recipe.devices if on_cpu else 1
    need = processes * (footprint.step(recipe) + (PROGRAM if on_cpu else 0))
    free = available_bytes(device) + (psutil.Process().memory_info().rss if on_cpu else 0)
    line = f"a step takes about {_gb(need)} (within {ERROR:.0%}) of {_gb(free)}"
    if need * (1 - ERROR) > free and strict:
        raise InputError(
            f"{line}: too little memory", f"{_gb(need)} on this machine", f"take less: {cheaper(footprint, recipe)}"
        )
    return line


def cheaper(footprint: Footprint, recipe: Recipe) -> str:
    """The options that take less memory, each with what a step would then take, without the program itself."""
    options: list[tuple[str, dict[str, object]]] = []
    if not recipe.recompute and footprint.again < footprint.kept:
        options.append(("--recompute true", {"recompute": True}))
    if recipe.batch > 1:
        steps = recipe.batch * recipe.accumulate
        options.append((f"--batch 1 --accumulate {steps}", {"batch": 1, "accumulate": steps}))
    found = [f"{words} ({_gb(footprint.step(recipe.model_copy(update=update)))})" for words, update in options]
    if len(options) == 2:
        both = {**options[0][1], **options[1][1]}
        found.append(f"both ({_gb(footprint.step(recipe.model_copy(update=both)))})")
    if recipe.precision == "32-true" and not recipe.recompute:  # with recomputation it saves only a seventh
        found.append("--precision bf16-mixed (about two thirds)")
    if recipe.corrections and not recipe.automatic:
        found.append("fewer --corrections")
    smaller = recipe.model.crop // 2
    return ", ".join([*found, f"--model.crop {smaller} (an eighth for each crop, and less context)"])


def used_bytes(device: torch.device) -> int:
    """Bytes that this process uses: resident memory, or its peak on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Bytes still available to this process: on the GPU, or on the machine and in its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    try:  # a Linux control group, if this process is in one with a limit
        limit, current = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return min(available, int(limit) - int(current)) if limit.isdigit() else available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error of Python, the GPU or the CPU allocator."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Tally:
    """Counts the bytes of the tensors that autograd keeps, each storage once, less the parameters."""

    def __init__(self, network: nn.Module) -> None:
        self.total = self.inputs = 0
        self.inside: list[int] = []  # bytes kept by each block of the encoder; `inputs`: those of all their inputs
        self._seen = {StorageWeakRef(p.untyped_storage()) for p in network.parameters()}

    def pack(self, tensor: Tensor) -> None:
        """Count a tensor and keep nothing: there is no backward pass, and the graph would be a reference cycle."""
        storage = tensor.untyped_storage()
        seen = StorageWeakRef(storage)  # keeps its identity from being reused, without holding its memory
        if seen not in self._seen:
            self._seen.add(seen)
            self.total += storage.nbytes()

    def enter(self, block: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Called before a block."""
        self.inputs += given[0].nbytes
        self.inside.append(-self.total)

    def leave(self, block: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        """Called after a block."""
        self.inside[-1] += self.total


def _measure(network: Promptable, recipe: Recipe, shape: tuple[int, int, int]) -> _Tally:
    """Run one crop of this shape through the network, without recomputing blocks, and tally what is kept."""
    tally = _Tally(network)
    if not isinstance(network, VoxSAMNetwork):
        _forward(network, recipe, shape, tally)
        return tally
    encoder = network.image_encoder
    before, encoder.recompute = encoder.recompute, False
    hooks = [block.register_forward_pre_hook(tally.enter) for block in encoder.blocks]
    hooks += [block.register_forward_hook(tally.leave) for block in encoder.blocks]
    try:
        _forward(network, recipe, shape, tally)
    finally:
        encoder.recompute = before
        for hook in hooks:
            hook.remove()
    return tally


def _forward(network: Promptable, recipe: Recipe, shape: tuple[int, int, int], tally: _Tally) -> None:
    """Run one crop as a training step with all its corrections does, up to the loss."""
    device = next(network.parameters()).device
    seeded = torch.Generator().manual_seed(0)  # the global random state belongs to the training
    crop = torch.randn(1, recipe.model.channels, *shape, generator=seeded).to(device)
    truth, points = (crop[:, :1] > 1).float(), torch.full((1, POINTS, 3), shape[1] / 2, device=device)
    labels = torch.ones(1, POINTS, dtype=torch.long, device=device)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    mixed = recipe.precision != "32-true"
    autocast = torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(tally.pack, lambda kept: kept):
        features = network.encode(crop)
        static = network.static(features, crop)
        if recipe.automatic:
            criterion(network.decode(features, crop, static=static), truth)
            return
        for _ in range(1 + recipe.corrections):
            prompt_features = network.sample(features, points)
            logits = network.decode(
                features, crop, points, prompt_features=prompt_features, labels=labels, static=static
            )
            criterion(logits, truth)


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
