"""Train a model from a recipe, with Lightning; an interrupted run resumes where it stopped.

OUT/run.json identifies the run. OUT/last.ckpt is written every `checkpoint_every` steps and when the run is asked to
stop, OUT/best.ckpt when a validation is the best so far, OUT/log/metrics.csv and TensorBoard's files all the time,
OUT/pictures at each validation, and OUT/model.safetensors (with validation also best.safetensors) at the end.

`strategy: fsdp` shards parameters, gradients and moments over the processes (PyTorch's FSDP2). Each block of the image
encoder is gathered for its computation and released afterwards; the rest of the network is one more unit. Scalars
cannot be sharded and are frozen: the gains of the relative positions, which the paper freezes, too. Checkpoints are
single whole files, as in any other run: a run may resume from either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from torch.utils.data import Sampler as TorchSampler

from voxsam.atomic import remove_leftovers
from voxsam.errors import FileError, InputError, UnsupportedError
from voxsam.kernels import keep_float32
from voxsam.kernels.convolution import SmallMapsInFloat32
from voxsam.lab.data.sampling import (
    Sample,
    Sampler,
    SampleStream,
    data_set_name,
    load_cases,
    make_phantoms,
    validation_samples,
)
from voxsam.lab.engine.load import load_sources
from voxsam.lab.engine.stream import EngineStream
from voxsam.lab.training.budget import Budget
from voxsam.lab.training.callbacks import DrawExamples, LiveProgress, StopOnNaN, StopOnSignal, ValidateFirst
from voxsam.lab.training.keep import (
    BEST,
    LAST,
    ContinuedLog,
    KeepValidation,
    WholeCheckpoints,
    WriteModels,
    check_identity,
    identity,
    note_classes,
    steps_done,
    write_identity,
)
from voxsam.lab.training.memory import check_memory
from voxsam.lab.training.recipe import ENDLESS, Recipe
from voxsam.lab.training.start import make_network
from voxsam.lab.training.task import VALIDATION, SegmentationTask
from voxsam.network.network import VoxSAMNetwork
from voxsam.phantoms import Scene

FSDP = "fsdp"
AVERAGE_EVERY = 10  # steps
ENTRIES = ("encode", "sample", "static", "decode", "decode_stages")  # a task calls these methods, not forward


class ShardedTask(SegmentationTask):
    """A task whose network is sharded once Lightning has started the processes."""

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
    """Lightning's weight averaging for sharded parameters: each process averages its own part.

    A checkpoint is the same as in an unsharded run: the averages as "state_dict", the weights beside them.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, update_every_n_steps=AVERAGE_EVERY)
        self.decay = decay

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Do nothing yet: the parameters are not sharded before the strategy is set up."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start with the current weights; a checkpoint is loaded after this."""
        self._averages = self._average_model = _Averages(pl_module, self.decay)  # type: ignore[assignment]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store whole tensors; all processes take part in gathering them."""
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
            for name, tensor in self._averages.tensors.items()
        }
        checkpoint["averaging_state"] = {"n_averaged": self._averages.updates}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore averages and weights: by now the strategy has loaded the averages into the network."""
        self._averages.updates = int(checkpoint["averaging_state"]["n_averaged"])
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                self._averages.tensors[name].copy_(parameter)
                weights = checkpoint["current_model_state"][name]
                if isinstance(parameter, DTensor):
                    own = weights.to(parameter.device)
                    weights = distribute_tensor(own, parameter.device_mesh, parameter.placements)
                parameter.copy_(weights)


class _Averages:
    """What EMAWeightAveraging uses of torch's AveragedModel, on each process's part of the parameters."""

    def __init__(self, task: lightning.LightningModule, decay: float) -> None:
        self.tensors = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
        self.decay, self.updates = decay, 0

    @property
    def module(self) -> _Averages:
        """Stands for AveragedModel's copy of the model."""
        return self

    def parameters(self) -> list[Tensor]:
        """The averages, in the order of the task's parameters."""
        return list(self.tensors.values())

    def buffers(self) -> list[Tensor]:
        """None: the buffers of a network are tables that never change."""
        return []

    @torch.no_grad()
    def update_parameters(self, task: lightning.LightningModule) -> None:
        """average = decay * average + (1 - decay) * weights; at first, the weights."""
        for name, parameter in task.named_parameters():
            average = self.tensors[name]
            average.lerp_(parameter.detach(), 1 - self.decay if self.updates else 1.0)
        self.updates += 1


def make_stream(recipe: Recipe, data: Path | None) -> SampleStream | EngineStream:
    """The samples of a recipe: the cases of `data` except held-out and validation cases, and phantoms.

    With a data engine they are drawn from its own sources. The length is that of the whole run. Raises FileError for
    held-out or validation cases that `data` does not have (with a misspelt name they would be trained on) and for a
    data engine without data, InputError for one with `epochs`.
    """
    if recipe.engine is not None:
        if data is None:
            raise FileError("a data engine without data", "a folder like the shared data", "give --data")
        if recipe.epochs is not None:
            given = "epochs of a data engine"
            raise InputError(given, "steps or minutes: its samples never end", "set `steps` in the recipe")
        sources = load_sources(data, recipe.engine, recipe.preprocessing)
        length = (recipe.steps or ENDLESS) * recipe.crops_per_step
        return EngineStream(sources, recipe.engine, recipe.preprocessing, recipe.model.crop, length, recipe.seed)
    aside = {*recipe.held_out, *recipe.validation}
    scans = [] if data is None else load_cases(data, leave_out=aside, preprocessing=recipe.preprocessing)
    sampler = Sampler(recipe.preprocessing, recipe.model.crop, recipe.augmentation, recipe.prompts)
    scene = Scene(recipe.phantom_wide, recipe.phantom_small)
    steps = recipe.planned(len(scans) or recipe.phantoms).steps
    assert steps is not None
    return SampleStream(
        sampler,
        scans,
        make_phantoms(
            recipe.phantoms, recipe.phantom_shape, recipe.preprocessing.spacing_mm, first_seed(recipe), scene
        ),
        steps * recipe.crops_per_step,
        (recipe.phantom_fraction, recipe.phantom_fraction_end),
        recipe.seed,
        passes=recipe.epochs is not None,
    )


def make_validation(recipe: Recipe, data: Path | None, stream: SampleStream | EngineStream) -> list[Sample]:
    """One sample of each validation case. Raises FileError for cases that do not exist.

    A data engine has none: its models are scored lesion by lesion afterwards (docs/training.md).
    """
    if not recipe.validation:
        return []
    if data is None:
        raise FileError("validation cases without data", "the folder that holds them", "give --data")
    assert isinstance(stream, SampleStream), "validation cases of a data engine"
    cases = load_cases(data, only=recipe.validation, preprocessing=recipe.preprocessing)
    return validation_samples(stream.sampler, cases, recipe.seed)


def trained_on(
    recipe: Recipe, data: Path | None, stream: SampleStream | EngineStream
) -> Mapping[str, Mapping[str, str]]:
    """What a card lists about a run: training and validation cases by data set, and the seeds of its phantoms."""
    if isinstance(stream, EngineStream):
        return stream.sources.seen
    found: dict[str, dict[str, str]] = {}
    if data is not None:
        chosen = load_cases(data, only=recipe.validation) if recipe.validation else []
        found[data_set_name(data)] = {case.name: case.content for case in (*stream.scans, *chosen)}
    if stream.phantoms:
        found["phantoms"] = {f"seed {first_seed(recipe) + n}": "" for n in range(len(stream.phantoms))}
    return found


def first_seed(recipe: Recipe) -> int:
    """The first seed of the phantoms that a recipe trains on."""
    return 10_000 * (1 + recipe.seed)


class Onwards(TorchSampler[int]):
    """0, 1, 2, ... `length` - 1, starting at `first()`: a resumed run does not see its first samples again.

    Of `world_size()` processes, that of `rank()` takes every `world_size()`-th number: each step takes the same samples
    as with one process and a batch that many times as large.
    """

    def __init__(
        self,
        length: int,
        first: Callable[[], int],
        rank: Callable[[], int] = lambda: 0,
        world_size: Callable[[], int] = lambda: 1,
    ) -> None:
        self.length, self.first, self.rank, self.world_size = length, first, rank, world_size

    def __len__(self) -> int:
        return self.length // self.world_size()  # of the whole run: Lightning counts batches before a restart, too

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first() + self.rank(), self.length, self.world_size()))


def _loader(recipe: Recipe, stream: SampleStream | EngineStream, trainer: lightning.Trainer) -> DataLoader:
    """Batches of the stream from the trainer's step on, made by `recipe.workers` processes."""
    order = Onwards(
        len(stream),
        lambda: trainer.global_step * recipe.batch * recipe.accumulate * trainer.world_size,
        lambda: trainer.global_rank,
        lambda: trainer.world_size,
    )
    workers = recipe.workers
    return DataLoader(stream, recipe.batch, sampler=order, num_workers=workers, persistent_workers=workers > 0)


def train(
    recipe: Recipe,
    data: Path | None,
    out: Path,
    *,
    log: Callable[[str], None] = lambda line: None,
    strict: bool = True,
    stream: EngineStream | None = None,
    callbacks: Sequence[Callback] = (),
    pause: float | None = None,
    **trainer_options: Any,
) -> Path:
    """Run the recipe and return the path of the model file. `trainer_options` are passed to Lightning's Trainer.

    `stream` replaces the samples of `data`; `callbacks` come before those that average and keep weights. `log` gets one
    line on the memory that a step will take; with `strict` the run is refused if there is too little. A recipe in
    minutes may `pause` after fewer of them: it then validates, and leaves a checkpoint but no model. Raises InputError
    for data or a start that do not fit, a folder that holds another run, too little memory, and what this machine
    cannot do; Stopped after a signal to stop.
    """
    mine = identity(recipe, data)
    check_identity(mine, out)
    for folder in (out, out / "pictures"):
        remove_leftovers(folder)
    lightning.seed_everything(recipe.seed, verbose=False)
    samples = make_stream(recipe, data) if stream is None else stream
    recipe = recipe.planned(0 if isinstance(samples, EngineStream) else len(samples.scans) or recipe.phantoms)
    network = make_network(recipe)
    network.card = network.card.having_seen(trained_on(recipe, data, samples))
    validation = make_validation(recipe, data, samples)
    examples = DrawExamples(
        lambda: validation[: recipe.pictures] or [samples[number] for number in range(recipe.pictures)],
        out / "pictures",
        None if validation else recipe.validate_every,
    )
    last = out / f"{LAST}.ckpt"
    budget = None if recipe.minutes is None else Budget(recipe.minutes, pause, last, recipe.workers > 0)
    listed = _callbacks(recipe, out, [*callbacks, *([examples] if recipe.pictures else [])])
    if budget is not None:
        listed = [budget, *(one for one in listed if pause is None or not isinstance(one, WriteModels))]
    trainer = _trainer(recipe, out, listed, **trainer_options)
    device = trainer.strategy.root_device
    if recipe.precision == "16-mixed" and device.type == "cpu":
        raise UnsupportedError("precision 16-mixed on a CPU", "bf16-mixed or 32-true", "change `precision`")
    if recipe.precision == "32-true":
        keep_float32(device)
    log(check_memory(network, recipe, device, strict))
    if trainer.is_global_zero:
        write_identity(mine, out)
    task = ShardedTask if recipe.strategy == FSDP else SegmentationTask
    with SmallMapsInFloat32() if recipe.precision == "bf16-mixed" and device.type == "cpu" else nullcontext():
        trainer.fit(
            task(recipe, network) if budget is None else task(recipe, network, budget.fraction),
            _loader(recipe, samples, trainer),
            DataLoader(validation, batch_size=1) if validation else None,  # type: ignore[arg-type]
            ckpt_path=str(last) if last.is_file() else None,
            weights_only=True,
        )
    if isinstance(samples, SampleStream) and trainer.is_global_zero:
        note_classes(data, out, samples, recipe.seed)
    trainer.strategy.barrier()
    return out / "model.safetensors"


def _trainer(recipe: Recipe, out: Path, callbacks: list[Callback], **options: Any) -> lightning.Trainer:
    last = out / f"{LAST}.ckpt"
    first_step = steps_done(last)
    strategy: str | Strategy = recipe.strategy
    if strategy == FSDP:
        processes = recipe.devices * recipe.nodes
        strategy = ModelParallelStrategy(processes, tensor_parallel_size=1, save_distributed_checkpoint=False)
    settings: dict[str, Any] = {
        "max_steps": recipe.steps,
        "max_epochs": -1,  # a finished run that is given more steps starts another of Lightning's epochs
        "accumulate_grad_batches": recipe.accumulate,
        "precision": recipe.precision,
        "callbacks": callbacks,
        "logger": [
            ContinuedLog(out, first_step),
            TensorBoardLogger(out, name="", version="log", purge_step=first_step or None),
        ],
        "log_every_n_steps": recipe.log_every,
        "num_sanity_val_steps": 0,
        "accelerator": "auto",
        "devices": recipe.devices,
        "num_nodes": recipe.nodes,
        "strategy": strategy,
        "plugins": [WholeCheckpoints()],
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # Onwards itself divides the samples among processes, in order
    }
    if recipe.validation:
        assert recipe.validate_every is not None
        settings |= {"val_check_interval": recipe.validate_every * recipe.accumulate, "check_val_every_n_epoch": None}
    try:
        return lightning.Trainer(**{**settings, **options})
    except (ValueError, MisconfigurationException) as error:
        given = f"devices {recipe.devices}, nodes {recipe.nodes}, strategy {recipe.strategy}"
        reason = str(error).splitlines()[0]
        raise UnsupportedError(given, f"what this machine has ({reason})", "change them") from error


def _callbacks(recipe: Recipe, out: Path, more: list[Callback]) -> list[Callback]:
    """The callbacks, ordered so that pictures show the averaged weights and checkpoints hold their step's averages."""
    last = ModelCheckpoint(out, LAST, every_n_train_steps=recipe.checkpoint_every, enable_version_counter=False)
    averaging: list[Callback] = []
    if recipe.ema and recipe.strategy == FSDP:
        averaging = [ShardedAverages(recipe.ema)]
    elif recipe.ema:
        averaging = [EMAWeightAveraging(decay=recipe.ema, update_every_n_steps=AVERAGE_EVERY)]
    callbacks: list[Callback] = [
        LiveProgress(recipe.batch * recipe.devices * recipe.nodes),
        *more,
        *averaging,
        last,
        WriteModels(out, recipe.blend),
        StopOnNaN(out / f"{LAST}.ckpt"),
        StopOnSignal(out / f"{LAST}.ckpt"),
    ]
    if recipe.validation:
        callbacks.append(ValidateFirst())
        callbacks.append(ModelCheckpoint(out, BEST, VALIDATION, mode="max", enable_version_counter=False))
        if recipe.patience is not None:
            callbacks.append(EarlyStopping(VALIDATION, mode="max", patience=recipe.patience))
        assert recipe.checkpoint_every is not None
        callbacks.append(KeepValidation(out / f"{LAST}.ckpt", recipe.checkpoint_every))
    return callbacks
