"""The folder of a run: its identity, checkpoints written whole, a log that continues, and models.

run.json has the recipe and the data set's fingerprint, so that a run never resumes in another run's folder. What only
sets the length of the run, or only concerns the machine, may change from one start to the next.
"""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from pydantic import ValidationError
from torch import Tensor

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import CheckpointError, InputError, first_fault
from voxsam.lab.data.sampling import SampleStream, fingerprint, validation_samples
from voxsam.lab.data.store import find_description
from voxsam.lab.training.recipe import LENGTHS, Recipe
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.classes import Classes, features_under
from voxsam.network.promptable import Promptable
from voxsam.weights.checkpoint import assemble, load_model, save_model
from voxsam.weights.file import read_pickle

NAME = "run.json"
KEPT = ("last.ckpt", "best.ckpt", "model.safetensors", "best.safetensors")  # would be resumed from or overwritten
MACHINE = {
    *("precision", "recompute", "workers", "devices", "nodes", "strategy", "batch", "accumulate"),
    *("checkpoint_every", "log_every", "validate_every", "pictures"),
}
SHOWN = 60  # characters of a value in a message
Identity = dict[str, Any]


def identity(recipe: Recipe, data: Path | None) -> Identity:
    """The content of run.json: the whole recipe and the fingerprint of the data, None without. Reads no voxels."""
    read = data if recipe.engine is None else None  # an engine reads the data that the split in its code names
    found = {"recipe": recipe.model_dump(mode="json"), "data": None if read is None else fingerprint(read)}
    return json.loads(json.dumps(found))


def check_identity(mine: Identity, out: Path) -> None:
    """Raise InputError, and change nothing, if `out` holds a run of another recipe or another data set.

    A folder without run.json predates it, and is not checked.
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
    """Read run.json; keys missing from a file of an older VoxSAM get their defaults."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(found["recipe"]).model_dump(mode="json")
        return json.loads(json.dumps({"recipe": recipe, "data": found["data"]}))
    except (ValueError, KeyError, TypeError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else error
        given = f"{path} cannot be read ({str(fault).splitlines()[0]})"
        raise InputError(given, "what `voxsam train` wrote there", "choose another folder with -o") from error


def _compared(one: Identity) -> Identity:
    """What has to be the same at every start of a run."""
    recipe = one["recipe"]
    crops = recipe["batch"] * recipe["accumulate"] * recipe["devices"] * recipe["nodes"]
    fields = {key: value for key, value in recipe.items() if key not in LENGTHS | MACHINE}
    counted = next(length for length in ("minutes", "epochs", "steps") if recipe[length] is not None)
    return {**fields, "crops a step": crops, "length": f"counted in {counted}", "data": one["data"]}


def _difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key (dotted) whose value differs, with both values."""
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
    """Writes beside the target and renames: a run killed while writing keeps the previous checkpoint.

    Lightning writes to the system's temporary folder first, which may be on another disk: moving a file from there is
    not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises FileError if the folder or the disk does not take it."""
        assert storage_options is None
        make_folder(Path(path).parent)
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                if "inline_container" not in str(error):  # torch's file writer names itself in its write errors
                    raise
                raise OSError(errno.EIO, "the disk takes no more") from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint without executing code from it. Raises CheckpointError for a file of another kind."""
        return read_pickle(Path(path), A_CHECKPOINT)


class KeepValidation(Checkpoint):
    """Writes a step's last.ckpt again after its validation: a resumed run must know its best score.

    Must come after the callback that keeps the best checkpoint; last.ckpt is written every `every` steps.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning when the training weights are back in place."""
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)


def steps_done(checkpoint: Path) -> int:
    """The number of steps a checkpoint's run had done; 0 if there is none. Raises CheckpointError for another file."""
    if not checkpoint.is_file():
        return 0
    found = read_pickle(checkpoint, A_CHECKPOINT).get("global_step")
    if not isinstance(found, int):
        raise CheckpointError(f"{checkpoint} holds no step", A_CHECKPOINT, "choose another folder with -o")
    return found


class ContinuedLog(CSVLogger):
    """OUT/log/metrics.csv; a run resumed after `first_step` steps keeps the rows of the earlier steps.

    Every row is written to disk at once, so that a killed run leaves its whole curve.
    """

    def __init__(self, out: Path, first_step: int) -> None:
        super().__init__(out, name="", version="log", flush_logs_every_n_steps=1)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, which starts by deleting the file: its rows are read first and handed back to it."""
        if self._experiment is None:
            path, rows = Path(self.log_dir) / "metrics.csv", []
            if path.is_file():
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
            kept = [row for row in rows if int(row["step"]) < self.first_step]
            assert CSVLogger.experiment.fget is not None
            CSVLogger.experiment.fget(self).metrics.extend(kept)
        return self._experiment


class WriteModels(Callback):
    """Writes OUT/model.safetensors at the end of training, and OUT/best.safetensors from the best checkpoint, if any.

    Both hold the averaged weights if the recipe averages. Must come after the callback that averages. `blend` is the
    fraction of the initial weights in a weighted mean with the trained ones, which keeps what the initial model was
    good at (Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022).
    """

    def __init__(self, out: Path, blend: float = 0.0) -> None:
        self.out, self.blend = out, blend
        self._start: dict[str, Tensor] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Called by Lightning before a checkpoint is loaded: the tensors are the recipe's initial ones."""
        if self.blend:
            self._start = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning after the averaging callback has put the averaged weights in place."""
        assert isinstance(pl_module, SegmentationTask)
        state = trainer.strategy.lightning_module_state_dict()  # sharded tensors come whole, on the first process
        if trainer.is_global_zero:
            self._write(pl_module.network, state, self.out / "model.safetensors")
            best = self.out / f"{BEST}.ckpt"
            if best.is_file():
                state = read_pickle(best, A_CHECKPOINT)["state_dict"]
                self._write(pl_module.network, state, self.out / "best.safetensors")
        trainer.strategy.barrier()  # every process finds the files when training returns

    def _write(self, network: Promptable, state: Mapping[str, Tensor], path: Path) -> None:
        """Write a task's tensors as a model. Raises CheckpointError for NaN or infinity: the run has diverged."""
        if self.blend:
            state = {name: torch.lerp(x.cpu(), self._start[name].cpu(), self.blend) for name, x in state.items()}
        tensors = {name.removeprefix(PREFIX): x.cpu() for name, x in state.items() if name.startswith(PREFIX)}
        save_model(assemble(network.card, tensors, f"the network for {path}"), path)


CROPS = 4  # per structure, from which a model learns to tell its classes apart


def note_classes(data: Path | None, run: Path, stream: SampleStream, seed: int) -> None:
    """Record in the models of a run how to tell the classes of its store `data` apart, if it has any."""
    description = None if data is None else find_description(data)
    for name in ("model", BEST) if description is not None and description.classes else ():
        path = run / f"{name}.safetensors"
        if path.is_file():
            model = load_model(path, "cpu")
            if classes := _classes(model, description.classes, stream, seed):  # type: ignore[union-attr]
                model.card = model.card.model_copy(update={"classes": classes})
                save_model(model, path)


def _classes(model: Promptable, names: Mapping[int, str], stream: SampleStream, seed: int) -> Classes | None:
    """Fit the classes to the encoder's last features under each structure's label, in crops around its voxels.

    A class without a structure is left out; None if fewer than two remain.
    """
    found: dict[int, list[np.ndarray]] = {}
    for turn in range(CROPS):
        samples = validation_samples(stream.sampler, stream.scans, seed + turn)
        for case, sample in zip(stream.scans, samples, strict=True):
            if case.target is None:
                continue
            with torch.inference_mode():
                features = model.encode(torch.from_numpy(sample["crop"][None]))
            under = features_under(features[-1][0].float().numpy(), sample["label"][0])
            found.setdefault(case.target, []).append(under)
    labels = sorted(found)
    return Classes.fit([names[n] for n in labels], labels, [np.stack(found[n]) for n in labels]) if labels[1:] else None
