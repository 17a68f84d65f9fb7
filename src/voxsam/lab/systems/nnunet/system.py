"""nnU-Net as a compared system: its stages one after the other, each only if it is not finished yet."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import UnsupportedError, VoxSAMError
from voxsam.kernels.device import choose_device
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.systems import System
from voxsam.lab.systems.compared import EXTRA, About, ComparedSystem, Job, Log, register
from voxsam.lab.systems.nnunet import stages
from voxsam.lab.systems.nnunet.run import DATASET, Folders, NnUNetSettings
from voxsam.lab.systems.nnunet.settings import OPTIONS, settings_of

PACKAGES = {  # of nnU-Net: names to import, and to install without their dependencies, which end in torchvision
    "nnunetv2": "nnunetv2",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "acvl_utils": "acvl-utils",
    "batchgenerators": "batchgenerators",
    "batchgeneratorsv2": "batchgeneratorsv2",
}
INSTALL = f"{EXTRA}, then pip install --no-deps {' '.join(PACKAGES.values())}"


@register("nnunet")
class NnUNet(ComparedSystem):
    """The whole of nnU-Net v2, not its network alone."""

    name = "nnunet"
    about = About(
        title="nnU-Net",
        paper="Isensee et al., nnU-Net, Nature Methods 2021",
        source="https://github.com/MIC-DKFZ/nnUNet",
        licence="Apache-2.0",
        library="nnunetv2",
        differences="it chooses spacing, patch, batch and network by its own rules, and trains with its own loss, "
        "augmentation and schedule; of a common recipe it takes the number of steps and the seed; it is trained on one "
        "fold, VoxSAM's split, where its authors train five and average them; it reads all scans turned to RAS; its "
        "closing validation and post-processing are left out",
        install=INSTALL,
        note="it plans, augments and trains in its own way, with its own batch, for as many steps",
    )
    options = OPTIONS

    def check(self, job: Job) -> None:
        """As for every system; and nnunetv2 and the options."""
        super().check(job)
        for module, package in PACKAGES.items():
            if find_spec(module) is None:
                raise UnsupportedError(f"nnU-Net without {package}", "all of its packages", INSTALL)
        settings_of(job)

    def train(self, job: Job, log: Log) -> None:
        """Export, prepare, train in job.out/nnunet; a finished stage is not repeated, a training goes on.

        Raises VoxSAMError with the last line of the log of a stage that fails.
        """
        folders, settings = _folders(job), _settings(job)
        make_folder(folders.out)
        with atomic_path(folders.settings) as temporary:
            temporary.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
        from voxsam.lab.systems.nnunet.export import export

        log("nnU-Net: the data set in its layout")
        export(open_store(job.data), folders.raw / DATASET)
        if folders.plans is None:
            log(f"nnU-Net: planning and preprocessing, log in {folders.out / 'prepare.log'}")
            _run("prepare", folders, settings)
        if not folders.checkpoint(settings).is_file():
            amount = f"{settings.epochs} epochs of {settings.iterations} iterations"
            log(f"nnU-Net: training, {amount}, log in {folders.out / 'train.log'}")
            _run("train", folders, settings)

    def load(self, job: Job) -> System:
        """nnU-Net's predictor with the final weights."""
        from voxsam.lab.systems.nnunet.predict import NnUNetSystem, load_predictor

        settings, folders = _settings(job), _folders(job)
        predictor = load_predictor(folders.model(settings), choose_device(job.device), settings.mirroring)
        return NnUNetSystem(predictor, self.about.title, self.tuned_parameters(job))

    def tuned_parameters(self, job: Job) -> int | None:
        """All of the network, with the heads of its deep supervision; None before nnU-Net has planned it."""
        folders, settings = _folders(job), _settings(job)
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


def _settings(job: Job) -> NnUNetSettings:
    return settings_of(job, str(choose_device(job.device)))


def _run(stage: str, folders: Folders, settings: NnUNetSettings) -> None:
    """One stage in a process of its own; what it prints goes to its log, after that of earlier attempts."""
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
