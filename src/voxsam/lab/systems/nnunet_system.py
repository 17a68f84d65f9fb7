"""nnU-Net (nnunetv2 itself) as a compared system: export of the raw data set, its stages, and its predictor."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from pydantic import ValidationError

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import InputError, UnsupportedError, VoxSAMError, first_fault
from voxsam.io import write_mask, write_volume
from voxsam.kernels import choose_device
from voxsam.lab.data.layouts import choose_cases, find_labelled
from voxsam.lab.data.parallel import available_cores
from voxsam.lab.data.store import PreparedData, open_store
from voxsam.lab.evaluation.protocol import read_case
from voxsam.lab.evaluation.systems import Images, Opened, OpenedScan, System, turned_back
from voxsam.lab.systems import nnunet_stages as stages
from voxsam.lab.systems.compared import EXTRA, About, ComparedSystem, Job, Log, Trained, register, train_within
from voxsam.lab.systems.nnunet_stages import DATASET, Folders, NnUNetSettings
from voxsam.lab.training import Curve
from voxsam.lab.training.recipe import ENDLESS
from voxsam.prompts import Point
from voxsam.volume import Volume

SAME_AFFINE = 1e-3  # mm: two readings of one header
READER = "NibabelIOWithReorient"  # reorients every file to RAS, so that orientations may be mixed


def export(store: PreparedData, folder: Path) -> None:
    """Write the raw data set into `folder`, dataset.json last, so that an incomplete one is started again.

    The label is the tumour (1) alone. A .nii.gz image that nnU-Net reads as VoxSAM does is linked, all others are
    rewritten, each channel to its own file. Raises what reading the sources raises.
    """
    if (folder / "dataset.json").is_file():
        return
    for part in ("imagesTr", "labelsTr"):
        make_folder(folder / part)
    train, validation = store.split["train"], store.split["validation"]
    found, _ = find_labelled(store.folder)
    for case in choose_cases(found, [*train, *validation]):
        images, tumour = read_case(case)
        for number, image in enumerate(images):
            target = folder / "imagesTr" / f"{case.name}_{number:04d}.nii.gz"
            if len(case.images) != len(images) or not _linked(case.images[number], image, target):
                write_volume(image, target)
        label = Volume(tumour.astype(np.uint8), images[0].grid, "SEG")
        write_mask(label, folder / "labelsTr" / f"{case.name}.nii.gz")
    # nnU-Net needs validation cases, but only monitors them: it keeps the last checkpoint in any case.
    _write(folder / "splits_final.json", [{"train": list(train), "val": list(validation or train)}])
    # By these names it normalises: "CT" by the data set's statistics, other channels by the scan's own.
    kinds = zip(store.description.preprocessing, store.description.channels, strict=True)
    names = ["CT" if kind.modality == "CT" else name for kind, name in kinds]
    description = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(train) + len(validation),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": READER,
    }
    _write(folder / "dataset.json", description)


def _linked(source: Path, image: Volume, target: Path) -> bool:
    """Link the file, if nibabel, nnU-Net's reader, finds the same grid in it; return whether it was linked."""
    if not source.name.endswith(".nii.gz"):
        return False
    header: Any = nib.load(source)  # type: ignore[attr-defined]
    same = header.shape == image.grid.shape and np.allclose(header.affine, image.grid.affine, atol=SAME_AFFINE)
    if same:
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(source.resolve())
    return bool(same)


def _write(path: Path, contents: Sequence | dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


TINY: dict[str, Any] = {  # goes through all stages in a minute and a half on one core
    "patch": (32, 32, 32),
    "batch": 2,
    "features": 8,
    "epochs": 4,
    "iterations": 25,
    "processes": 0,
    "mirroring": False,
}
OPTIONS: Mapping[str, str] = {
    "tiny": "true: small patches, a narrow network, 100 iterations, to show all stages on a laptop",
    "configuration": "3d_fullres (default), 2d or 3d_lowres",
    "planner": "ExperimentPlanner (default), or nnUNetPlannerResEncM, -L, -XL: the residual encoders",
    "epochs": "of nnU-Net; default: the recipe's steps divided by the iterations, or 1000",
    "iterations": "of an epoch; default 250",
    "spacing_mm": "of 3d_fullres along S, A, R; default: nnU-Net's own choice",
    "patch": "at most so many voxels along S, A, R; default: what nnU-Net's memory target allows",
    "batch": "default: nnU-Net's own choice",
    "features": "width of the first stage; default 32",
    "processes": "that make crops, and that preprocess; 0: the training process itself; default: the cores, at most 8",
    "learning_rate": "at the beginning; default 0.01",
    "mirroring": "false: no mirrored passes when predicting, eight times as fast; default true",
}


def settings_of(job: Job) -> NnUNetSettings:
    """The settings of a job: its options over those of `tiny`, and the length that its budget or recipe gives.

    Raises InputError for an invalid option.
    """
    options = dict(job.options)
    fields: dict[str, Any] = {"processes": available_cores(), **(TINY if options.pop("tiny", False) else {})}
    steps = steps_of(job)
    if job.budget is not None:
        fields["minutes"] = job.budget.own_minutes
        options["epochs"] = ENDLESS
    elif steps is not None and "epochs" not in {**fields, **options}:
        fields["iterations"] = min(int(options.get("iterations", 250)), steps)
        fields["epochs"] = math.ceil(steps / fields["iterations"])
    fields |= {**options, "seed": job.seed, "device": str(choose_device(job.device))}
    try:
        return NnUNetSettings(**fields)
    except ValidationError as error:
        given = f"the option {first_fault(error, 'combination')}"
        raise InputError(given, "the options of nnunet", "change the plan") from error


def steps_of(job: Job) -> int | None:
    """The steps of the common loop: the recipe's, or those of its epochs; None if it has neither."""
    recipe = job.recipe
    if recipe.get("steps"):
        return int(recipe["steps"])
    if not recipe.get("epochs"):
        return None
    crops = int(recipe.get("batch", 2)) * int(recipe.get("accumulate", 1)) * int(recipe.get("devices", 1))
    return int(recipe["epochs"]) * math.ceil(len(open_store(job.data).split["train"]) / crops)


AXES = "SAR"  # of the array that nnU-Net gets from a file reoriented to RAS


class NnUNetSystem:
    """A trained nnU-Net, without clicks; `predictor` is nnunetv2's nnUNetPredictor, initialised."""

    takes_clicks = takes_negative = False

    def __init__(self, predictor: Any, name: str, parameters: int | None) -> None:
        self.predictor, self.name, self.parameters = predictor, name, parameters

    def open(self, volume: Images) -> Opened:
        """The scan with all its channels, kept until it is segmented."""
        return OpenedScan(partial(self._segment, (volume,) if isinstance(volume, Volume) else tuple(volume)))

    def _segment(self, images: Sequence[Volume], points: Sequence[Point]) -> Volume:
        assert not points
        channels = [image.reorient(AXES) for image in images]
        array = np.stack([np.asarray(channel.array, dtype=np.float32) for channel in channels])
        grid = channels[0].grid
        with redirect_stdout(io.StringIO()):  # nnU-Net prints its progress
            labels = self.predictor.predict_single_npy_array(array, {"spacing": grid.spacing_mm.tolist()})
        return turned_back(Volume((np.asarray(labels) == 1).astype(np.uint8), grid, "SEG"), images[0].grid)


PACKAGES = {  # nnU-Net's modules and packages; installed without dependencies, which would pull in torchvision
    "nnunetv2": "nnunetv2",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "acvl_utils": "acvl-utils",
    "batchgenerators": "batchgenerators",
    "batchgeneratorsv2": "batchgeneratorsv2",
}
INSTALL = f"{EXTRA}, then pip install --no-deps {' '.join(PACKAGES.values())}"


@register("nnunet")
class NnUNet(ComparedSystem):
    """The whole of nnU-Net v2, not only its network."""

    name = "nnunet"
    about = About(
        title="nnU-Net",
        paper="Isensee et al., nnU-Net, Nature Methods 2021",
        source="https://github.com/MIC-DKFZ/nnUNet",
        licence="Apache-2.0",
        library="nnunetv2",
        differences="it chooses spacing, patch, batch and network by its own rules, and trains with its own loss, "
        "augmentation and schedule; of a common recipe it takes the number of steps (or the budget's minutes) and the "
        "seed; it is trained on one fold, VoxSAM's split, where its authors train five and average them; it reads all "
        "scans turned to RAS; its closing validation and post-processing are left out",
        install=INSTALL,
        note="it plans, augments and trains in its own way, with its own batch, for as many steps or minutes",
    )
    options = OPTIONS

    def check(self, job: Job) -> None:
        """Check as for every system, and that nnU-Net's packages are installed and its options valid."""
        super().check(job)
        for module, package in PACKAGES.items():
            if find_spec(module) is None:
                raise UnsupportedError(f"nnU-Net without {package}", "all of its packages", INSTALL)
        settings_of(job)

    def train(self, job: Job, log: Log) -> Trained | None:
        """Export, prepare and train in job.out/nnunet; finished stages are not repeated, a training is resumed.

        A budget covers only the trainings; each ends after the epoch in which its minutes run out.

        Raises VoxSAMError with the last line of the log if a stage fails.
        """
        folders, settings = _folders(job), settings_of(job)
        make_folder(folders.out)
        log("nnU-Net: the data set in its layout")
        export(open_store(job.data), folders.raw / DATASET)
        if folders.plans is None:
            log(f"nnU-Net: planning and preprocessing, log in {folders.out / 'prepare.log'}")
            _run("prepare", folders, settings)
        if job.budget is not None:

            def run(rate: float, pause: float | None) -> Curve:
                changed = {"learning_rate": rate, "results": f"results-{rate:g}", "pause": pause}
                own = settings.model_copy(update=changed)
                curve, end = folders.curve(own), pause or own.minutes
                assert end is not None
                if not curve or curve[-1][0] < end or (pause is None and not folders.checkpoint(own).is_file()):
                    log(f"nnU-Net: learning rate {rate:g} to minute {end:g}, log in {folders.out / 'train.log'}")
                    make_folder(folders.out / own.results)
                    _run("train", folders, own)
                return folders.curve(own)

            return train_within(job.budget, settings.learning_rate, job.out, run)
        if not folders.checkpoint(settings).is_file():
            amount = f"{settings.epochs} epochs of {settings.iterations} iterations"
            log(f"nnU-Net: training, {amount}, log in {folders.out / 'train.log'}")
            _run("train", folders, settings)
        return None

    def load(self, job: Job) -> System:
        """nnU-Net's predictor with the final weights."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        folders, settings = _folders(job), settings_of(job)
        if job.budget is not None:
            found = next(folders.out.glob("results-*/*/*/fold_0/checkpoint_final.pth"))
            settings = settings.model_copy(update={"results": found.relative_to(folders.out).parts[0]})
        device = torch.device(settings.device)
        with redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(
                use_mirroring=settings.mirroring,
                perform_everything_on_device=device.type == "cuda",
                device=device,
                allow_tqdm=False,
            )
            model = str(folders.model(settings))
            predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
        return NnUNetSystem(predictor, self.about.title, self.tuned_parameters(job))

    def tuned_parameters(self, job: Job) -> int | None:
        """All parameters of the network, including the deep supervision heads; None before nnU-Net has planned it."""
        folders, settings = _folders(job), settings_of(job)
        if folders.plans is None:
            return None
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        folder = folders.preprocessed / DATASET
        plans = json.loads((folder / f"{folders.plans}.json").read_text(encoding="utf-8"))
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        network = plans["configurations"][settings.configuration]["architecture"]
        built = get_network_from_plans(
            network["network_class_name"],
            network["arch_kwargs"],
            network["_kw_requires_import"],
            len(description["channel_names"]),
            len(description["labels"]),
            deep_supervision=True,
        )
        return sum(p.numel() for p in built.parameters())


def _folders(job: Job) -> Folders:
    return Folders(job.out / "nnunet")


def _run(stage: str, folders: Folders, settings: NnUNetSettings) -> None:
    """Run one stage in its own process, which reads its settings from a file; its output is appended to its log."""
    with atomic_path(folders.settings) as temporary:
        temporary.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    path = folders.out / f"{stage}.log"
    with open(path, "a", encoding="utf-8") as log:
        command = [sys.executable, "-P", stages.__file__, stage, str(folders.out)]
        done = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=folders.environment(stage, settings),
        )
    if done.returncode:
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"exit status {done.returncode}"
        if done.returncode < 0:
            last = f"ended by signal {-done.returncode}, most likely for its memory"
        raise VoxSAMError(f"nnU-Net's stage {stage} failed: {last} (log: {path})")
