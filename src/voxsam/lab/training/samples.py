"""What a recipe trains on and is validated with: the stream of samples, and the order in which a run takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch.utils.data import DataLoader
from torch.utils.data import Sampler as TorchSampler

from voxsam.errors import FileError
from voxsam.lab.data.sampling import Sample, Sampler
from voxsam.lab.data.stream import SampleStream, load_cases, make_phantoms, validation_samples
from voxsam.lab.training.recipe import Recipe
from voxsam.phantoms.phantoms import Scene


def make_stream(recipe: Recipe, data: Path | None) -> SampleStream:
    """The samples of a recipe: the cases of `data` without the held-out and the validation ones, and phantoms.

    Its length is that of the whole run. Raises FileError for such cases that `data` does not have: a misspelt name
    would be trained on.
    """
    aside = {*recipe.held_out, *recipe.validation}
    scans = [] if data is None else load_cases(data, leave_out=aside)
    sampler = Sampler(recipe.preprocessing, recipe.model.crop, recipe.augmentation, recipe.prompts)
    first_seed, scene = 10_000 * (1 + recipe.seed), Scene(recipe.phantom_wide, recipe.phantom_small)
    steps = recipe.planned(len(scans) or recipe.phantoms).steps
    assert steps is not None
    return SampleStream(
        sampler,
        scans,
        make_phantoms(recipe.phantoms, recipe.phantom_shape, recipe.preprocessing.spacing_mm, first_seed, scene),
        steps * recipe.crops_per_step,
        (recipe.phantom_fraction, recipe.phantom_fraction_end),
        recipe.seed,
        passes=recipe.epochs is not None,
    )


def make_validation(recipe: Recipe, data: Path | None, sampler: Sampler) -> list[Sample]:
    """One sample of each validation case. Raises FileError for cases that are not there."""
    if not recipe.validation:
        return []
    if data is None:
        raise FileError("validation cases without data", "the folder that holds them", "give --data")
    return validation_samples(sampler, load_cases(data, only=recipe.validation), recipe.seed)


def make_loader(recipe: Recipe, stream: SampleStream, order: TorchSampler[int]) -> DataLoader:
    """Batches of the stream in an order, made by as many processes as the recipe wants."""
    busy = recipe.workers > 0
    return DataLoader(stream, recipe.batch, sampler=order, num_workers=recipe.workers, persistent_workers=busy)


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
