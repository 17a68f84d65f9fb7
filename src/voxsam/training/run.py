"""Train a model from a recipe, with Lightning; a run that was cut off goes on where it stopped.

OUT/last.ckpt is written every `checkpoint_every` steps, OUT/best.ckpt when a validation is the best so far,
OUT/log/metrics.csv and TensorBoard's files all the time, and OUT/model.safetensors at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader
from torch.utils.data import Sampler as TorchSampler

from voxsam.data.phantoms import Scene
from voxsam.data.sampling import Sampler
from voxsam.data.stream import SampleStream, load_cases, make_phantoms, validation_samples
from voxsam.errors import CheckpointError, FileError, UnsupportedError
from voxsam.model.assemble import BUILDERS
from voxsam.model.card import Card
from voxsam.model.checkpoint import load_model, save_model
from voxsam.model.network import VoxSAMNetwork
from voxsam.model.promptable import Promptable
from voxsam.model.tuning import freeze
from voxsam.training.recipe import Recipe
from voxsam.training.task import VALIDATION, SegmentationTask

OPTIONAL = "prompt_encoder.marks."  # tensors of an extension: absent from a model that starts without it


def make_stream(recipe: Recipe, data: Path | None) -> SampleStream:
    """The samples of a recipe: the cases of `data` without the held-out and the validation ones, and phantoms.

    Raises FileError for such cases that `data` does not have: a misspelt name would be trained on.
    """
    aside = {*recipe.held_out, *recipe.validation}
    scans = [] if data is None else load_cases(data, leave_out=aside)
    sampler = Sampler(recipe.preprocessing, recipe.model.crop, recipe.augmentation, recipe.prompts)
    first_seed, scene = 10_000 * (1 + recipe.seed), Scene(recipe.phantom_wide, recipe.phantom_small)
    return SampleStream(
        sampler,
        scans,
        make_phantoms(recipe.phantoms, recipe.phantom_shape, recipe.preprocessing.spacing_mm, first_seed, scene),
        recipe.steps * recipe.batch * recipe.accumulate * recipe.devices * recipe.nodes,
        (recipe.phantom_share, recipe.phantom_share_end),
        recipe.seed,
    )


class Onwards(TorchSampler[int]):
    """0, 1, 2, ... `length` - 1, beginning at `first()`: a run that goes on does not see its first samples again.

    Of `world_size()` processes the one of `rank()` takes every so manieth number: together they take each step's
    samples as one process with as many times the batch does.
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
        return self.length // self.world_size()  # of the whole run: Lightning counts the batches before a restart

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first() + self.rank(), self.length, self.world_size()))


class WriteModel(Callback):
    """Writes the weights (the averaged ones, at the end of training) as a VoxSAM model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning after the averaging callback has put the averaged weights in place."""
        assert isinstance(pl_module, SegmentationTask)
        if trainer.is_global_zero:
            save_model(pl_module.network, self.path)


def start(network: Promptable, model: str) -> None:
    """Take over the tensors of a trained model; what an extension adds keeps its own beginning.

    Raises CheckpointError for a model of other sizes.
    """
    tensors, own = load_model(model, "cpu").state_dict(), network.state_dict()
    unfit = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    missing = [name for name in own if name not in tensors and not name.startswith(OPTIONAL)]
    if unfit or missing:
        raise CheckpointError(
            f"{model} does not fit the recipe's network ({(unfit + missing)[0]})",
            "a model of the same sizes",
            "change `model` or `start_from` in the recipe",
        )
    network.load_state_dict(tensors, strict=False)


def make_network(recipe: Recipe) -> Promptable:
    """The network that the recipe begins with. Raises UnsupportedError for an unknown system, or its adapters alone."""
    if recipe.system not in BUILDERS:
        raise UnsupportedError(f"system {recipe.system}", f"one of {', '.join(BUILDERS)}", "change it in the recipe")
    card = Card(
        name=recipe.name,
        system=recipe.system,
        config=recipe.model,
        preprocessing=recipe.preprocessing,
        description=recipe.description,
        conditioning=recipe.conditioning,
        recipe=recipe.model_dump(mode="json", exclude={"description"}),
    )
    network = BUILDERS[recipe.system](card)
    if recipe.start_from is not None:
        start(network, recipe.start_from)
    if isinstance(network, VoxSAMNetwork):
        network.image_encoder.recompute = recipe.recompute
        return freeze(network) if recipe.tune == "adapters" else network
    if recipe.recompute or recipe.tune == "adapters":
        raise UnsupportedError(f"recompute or adapters of {recipe.system}", "both off", "change them in the recipe")
    return network


def train(recipe: Recipe, data: Path | None, out: Path, **trainer_options: Any) -> Path:
    """Run the recipe; returns the path of the model file. `trainer_options` are Lightning's, for Trainer.

    Raises InputError for data or a start that do not fit.
    """
    lightning.seed_everything(recipe.seed, verbose=False)
    network = make_network(recipe)
    stream = make_stream(recipe, data)
    trainer = _trainer(recipe, out, **trainer_options)
    done = recipe.batch * recipe.accumulate
    order = Onwards(
        len(stream),
        lambda: trainer.global_step * done * trainer.world_size,
        lambda: trainer.global_rank,
        lambda: trainer.world_size,
    )
    loader = DataLoader(stream, batch_size=recipe.batch, sampler=order, num_workers=recipe.workers)
    last = out / "last.ckpt"
    trainer.fit(
        SegmentationTask(recipe, network),
        loader,
        _validation_loader(recipe, data, stream.sampler),
        ckpt_path=str(last) if last.is_file() else None,
        weights_only=False,  # our own file: it also holds the state of callbacks
    )
    return out / "model.safetensors"


def _trainer(recipe: Recipe, out: Path, **options: Any) -> lightning.Trainer:
    callbacks: list[Callback] = [
        EMAWeightAveraging(decay=recipe.ema, update_every_n_steps=10),
        ModelCheckpoint(out, "last", every_n_train_steps=recipe.checkpoint_every, enable_version_counter=False),
        WriteModel(out / "model.safetensors"),
    ]
    if recipe.validation:
        callbacks.append(ModelCheckpoint(out, "best", VALIDATION, mode="max", enable_version_counter=False))
        if recipe.patience is not None:
            callbacks.append(EarlyStopping(VALIDATION, mode="max", patience=recipe.patience))
    settings: dict[str, Any] = {
        "max_steps": recipe.steps,
        "max_epochs": 1,
        "accumulate_grad_batches": recipe.accumulate,
        "gradient_clip_val": recipe.gradient_clip,
        "precision": recipe.precision,
        "callbacks": callbacks,
        "logger": [CSVLogger(out, name="", version="log"), TensorBoardLogger(out, name="", version="log")],
        "log_every_n_steps": recipe.log_every,
        "num_sanity_val_steps": 0,
        "accelerator": "auto",
        "devices": recipe.devices,
        "num_nodes": recipe.nodes,
        "strategy": recipe.strategy,
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # Onwards divides the samples itself, in order
    }
    if recipe.validation:
        settings |= {"val_check_interval": recipe.validate_every * recipe.accumulate, "check_val_every_n_epoch": None}
    return lightning.Trainer(**{**settings, **options})


def _validation_loader(recipe: Recipe, data: Path | None, sampler: Sampler) -> DataLoader | None:
    if not recipe.validation:
        return None
    if data is None:
        raise FileError("validation cases without data", "the folder that holds them", "give --data")
    cases = load_cases(data, only=recipe.validation)
    return DataLoader(validation_samples(sampler, cases, recipe.seed), batch_size=1)  # type: ignore[arg-type]
