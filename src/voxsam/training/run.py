"""Train a model from a recipe: `python -m voxsam.training.run RECIPE --data FOLDER -o OUT`.

Checkpoints of Lightning go to OUT/last.ckpt every hundred steps; started again, training goes on from there, with the
samples that come next. The averaged weights are written to OUT/model.safetensors at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torch.utils.data import Sampler as TorchSampler

from voxsam.data.cases import find_cases
from voxsam.data.sampling import Sampler
from voxsam.data.stream import SampleStream, load_cases, make_phantoms
from voxsam.errors import CheckpointError, FileError
from voxsam.model.card import Card
from voxsam.model.checkpoint import load_model, save_model
from voxsam.model.network import VoxSAMNetwork
from voxsam.training.recipe import Recipe, read_recipe
from voxsam.training.task import SegmentationTask

CHECKPOINT_STEPS = 100


def make_stream(recipe: Recipe, data: Path | None) -> SampleStream:
    """The samples of a recipe: the cases of `data` without the held-out ones, and phantoms.

    Raises FileError for held-out cases that `data` does not have: a misspelt name would be trained on.
    """
    cases = [] if data is None else find_cases(data)
    missing = sorted(set(recipe.held_out) - {case.name for case in cases})
    if cases and missing:
        raise FileError(
            f"{data}: no case {', '.join(missing)}", "all cases that the recipe holds out", "check their names"
        )
    scans = [case for case in cases if case.name not in recipe.held_out]
    sampler = Sampler(recipe.preprocessing, recipe.model.crop, recipe.augmentation, recipe.prompts)
    first_seed = 10_000 * (1 + recipe.seed)
    return SampleStream(
        sampler,
        load_cases(scans),
        make_phantoms(recipe.phantoms, recipe.phantom_shape, recipe.preprocessing.spacing_mm, first_seed),
        recipe.steps * recipe.batch,
        (recipe.phantom_share, recipe.phantom_share_end),
        recipe.seed,
    )


class Onwards(TorchSampler[int]):
    """0, 1, 2, ... `length` - 1, beginning at `first()`: a run that goes on does not see its first samples again."""

    def __init__(self, length: int, first: Callable[[], int]) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length  # of the whole run: Lightning counts the batches before a restart itself

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first(), self.length))


class WriteModel(Callback):
    """Writes the weights (the averaged ones, at the end of training) as a VoxSAM model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning after the averaging callback has put the averaged weights in place."""
        assert isinstance(pl_module, SegmentationTask)
        save_model(pl_module.network, self.path)


def start(network: VoxSAMNetwork, model: str) -> None:
    """Take over the tensors of a trained model; what an extension adds keeps its own beginning.

    Raises CheckpointError for a model of other sizes.
    """
    tensors = load_model(model, "cpu").state_dict()
    own = network.state_dict()
    unfit = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    missing = [name for name in own if name not in tensors and not name.startswith("prompt_encoder.marks.")]
    if unfit or missing:
        raise CheckpointError(
            f"{model} does not fit the recipe's network ({(unfit + missing)[0]})",
            "a model of the same sizes",
            "change `model` or `start_from` in the recipe",
        )
    network.load_state_dict(tensors, strict=False)


def train(recipe: Recipe, data: Path | None, out: Path) -> Path:
    """Run the recipe; returns the path of the model file."""
    lightning.seed_everything(recipe.seed)
    card = Card(
        name=recipe.name,
        config=recipe.model,
        preprocessing=recipe.preprocessing,
        description=recipe.description,
        conditioning=recipe.conditioning,
    )
    network = VoxSAMNetwork(card)
    if recipe.start_from is not None:
        start(network, recipe.start_from)
    stream = make_stream(recipe, data)
    model = out / "model.safetensors"
    callbacks = [
        EMAWeightAveraging(decay=recipe.ema, update_every_n_steps=10),
        ModelCheckpoint(out, "last", every_n_train_steps=CHECKPOINT_STEPS, enable_version_counter=False),
        WriteModel(model),
    ]
    trainer = lightning.Trainer(
        max_steps=recipe.steps,
        max_epochs=1,
        gradient_clip_val=recipe.gradient_clip,
        callbacks=callbacks,
        logger=CSVLogger(out, name="", version="log"),
        log_every_n_steps=10,
        accelerator="auto",
        devices=1,
    )
    order = Onwards(len(stream), lambda: trainer.global_step * recipe.batch)
    loader = DataLoader(stream, batch_size=recipe.batch, sampler=order, num_workers=0)
    last = out / "last.ckpt"
    trainer.fit(SegmentationTask(recipe, network), loader, ckpt_path=str(last) if last.is_file() else None)
    return model


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="folder in MSD / nnU-Net raw layout; without it, phantoms only")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = train(read_recipe(arguments.recipe), arguments.data, arguments.out)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
