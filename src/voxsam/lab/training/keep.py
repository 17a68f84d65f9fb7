"""What a run's folder holds: whose run it is, whole checkpoints, a log that goes on, and models.

run.json has the recipe and the data set's fingerprint, so that a folder continues no other run. What decides only the
length of a run, or only what its machine does, may change from one start to the next.
"""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from pydantic import ValidationError
from torch import Tensor

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import CheckpointError, InputError
from voxsam.lab.data.sampling import fingerprint
from voxsam.lab.training.recipe import LENGTHS, Recipe
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.card import Card
from voxsam.weights.checkpoint import assemble, save_model
from voxsam.weights.file import read_pickle

NAME = "run.json"
KEPT = ("last.ckpt", "best.ckpt", "model.safetensors", "best.safetensors")  # what would go on, or be written over
MACHINE = {
    *("precision", "recompute", "workers", "devices", "nodes", "strategy", "batch", "accumulate"),
    *("checkpoint_every", "log_every", "validate_every", "pictures"),
}
SHOWN = 60  # characters of a value in a message
Identity = dict[str, Any]


def identity(recipe: Recipe, data: Path | None) -> Identity:
    """What run.json holds: the whole recipe, and the fingerprint of the data, None without. Reads no voxel."""
    read = data if recipe.engine is None else None  # an engine reads what the split in its code names
    found = {"recipe": recipe.model_dump(mode="json"), "data": None if read is None else fingerprint(read)}
    return json.loads(json.dumps(found))


def check_identity(mine: Identity, out: Path) -> None:
    """Raises InputError, and changes nothing, if `out` holds a run of another recipe or another data set.

    A folder that has no run.json was begun before there was one, and is not checked.
    """
    path = out / NAME
    if not path.is_file() or not any((out / name).exists() for name in KEPT):
        return
    difference = _difference(_compared(_read(path)), _compared(mine))
    if difference is not None:
        key, before, now = difference
        given = f"{out} holds another run: its {key} is {_shown(before)}, and now {_shown(now)}"
        expected = "the same recipe and data, but for steps, epochs, minutes and what the machine decides"
        raise InputError(given, expected, "choose another folder with -o, or give what the run began with")


def write_identity(mine: Identity, out: Path) -> None:
    """Write run.json, whole or not at all."""
    make_folder(out)
    with atomic_path(out / NAME) as temporary:
        temporary.write_text(json.dumps(mine, indent=1), encoding="utf-8")


def _read(path: Path) -> Identity:
    """Of a file by an older VoxSAM the keys that came later have their defaults."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(found["recipe"]).model_dump(mode="json")
        return json.loads(json.dumps({"recipe": recipe, "data": found["data"]}))
    except (ValueError, KeyError, TypeError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        given = f"{path} cannot be read ({str(fault).splitlines()[0]})"
        raise InputError(given, "what `voxsam train` wrote there", "choose another folder with -o") from error


def _compared(one: Identity) -> Identity:
    """What has to be the same in every start of a run."""
    recipe = one["recipe"]
    crops = recipe["batch"] * recipe["accumulate"] * recipe["devices"] * recipe["nodes"]
    fields = {key: value for key, value in recipe.items() if key not in LENGTHS | MACHINE}
    counted = next(length for length in ("minutes", "epochs", "steps") if recipe[length] is not None)
    return {**fields, "crops a step": crops, "length": f"counted in {counted}", "data": one["data"]}


def _difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, dotted, whose value differs, with both values."""
    if before == now:
        return None
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return key, before, now
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return _difference(before.get(names[0]), now.get(names[0]), f"{key}.{names[0]}".lstrip("."))


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


LAST, BEST = "last", "best"  # the checkpoints OUT/last.ckpt and OUT/best.ckpt
PREFIX = "network."  # of the network's tensors in a checkpoint
A_CHECKPOINT = "a checkpoint of `voxsam train`"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target and renames: a run that is killed while it writes keeps the checkpoint before.

    Lightning's own way passes through the system's folder for temporary files, which may be another disk, from where
    a file is not moved in one go.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises FileError if the folder or the disk does not take it."""
        assert storage_options is None
        make_folder(Path(path).parent)
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                if "inline_container" not in str(error):  # the place of torch's own writer, for what it could not write
                    raise
                raise OSError(errno.EIO, "the disk takes no more") from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Executes nothing of the file, which may be anybody's. Raises CheckpointError for one of another kind."""
        return read_pickle(Path(path), A_CHECKPOINT)


class KeepValidation(Checkpoint):
    """Writes a step's last.ckpt again after its validation: a run that goes on must know how good its best one was.

    Stands after the checkpoint of the best validation; `every` steps there is a last one.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning when the weights of training are in place again."""
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)


def steps_done(checkpoint: Path) -> int:
    """How many steps a checkpoint's run had done; 0 without one. Raises CheckpointError for a file of another kind."""
    if not checkpoint.is_file():
        return 0
    found = read_pickle(checkpoint, A_CHECKPOINT).get("global_step")
    if not isinstance(found, int):
        raise CheckpointError(f"{checkpoint} holds no step", A_CHECKPOINT, "choose another folder with -o")
    return found


class ContinuedLog(CSVLogger):
    """OUT/log/metrics.csv; a run that goes on after `first_step` steps keeps the rows of the steps before.

    Every row is on disk at once, so that a killed run leaves its whole curve.
    """

    def __init__(self, out: Path, first_step: int) -> None:
        super().__init__(out, name="", version="log", flush_logs_every_n_steps=1)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, which begins by deleting the file: its rows are read before and given back to it."""
        if self._experiment is None:
            kept = _rows_before(Path(self.log_dir) / "metrics.csv", self.first_step)
            assert CSVLogger.experiment.fget is not None
            CSVLogger.experiment.fget(self).metrics.extend(kept)
        return self._experiment


def _rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
    return [row for row in rows if int(row["step"]) < step]


class WriteModels(Callback):
    """At the end of training: OUT/model.safetensors, and OUT/best.safetensors from the best checkpoint, if any.

    Both hold the averaged weights, where a recipe averages. Stands after the callback that averages. `blend` is the
    fraction of the weights that training began with: their mean keeps what the start was good at (Wortsman et al.,
    Robust Fine-Tuning of Zero-Shot Models, CVPR 2022).
    """

    def __init__(self, out: Path, blend: float = 0.0) -> None:
        self.out, self.blend = out, blend
        self._start: dict[str, Tensor] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Called by Lightning before a checkpoint is taken up: the tensors are those that the recipe begins with."""
        if self.blend:
            self._start = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning after the averaging callback has put the averaged weights in place."""
        assert isinstance(pl_module, SegmentationTask)
        state = trainer.strategy.lightning_module_state_dict()  # of sharded tensors: whole, and on the first process
        if trainer.is_global_zero:
            write_model(pl_module.network.card, self._blended(state), self.out / "model.safetensors")
            best = self.out / f"{BEST}.ckpt"
            if best.is_file():
                state = read_pickle(best, A_CHECKPOINT)["state_dict"]
                write_model(pl_module.network.card, self._blended(state), self.out / "best.safetensors")
        trainer.strategy.barrier()  # whoever returns from training finds the files

    def _blended(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not self.blend:
            return state
        return {name: torch.lerp(tensor.cpu(), self._start[name].cpu(), self.blend) for name, tensor in state.items()}


def write_model(card: Card, state: Mapping[str, Tensor], path: Path) -> None:
    """A task's tensors as a VoxSAM model. Raises CheckpointError if some are no numbers: the run has diverged."""
    tensors = {name.removeprefix(PREFIX): tensor.cpu() for name, tensor in state.items() if name.startswith(PREFIX)}
    save_model(assemble(card, tensors, f"the network for {path}"), path)
