"""What a run shows and how it stops: progress, pictures of examples, Ctrl-C and SIGTERM.

Each row of a picture is an example: three planes through its first click (without clicks, the middle of its tumour)
with the model's mask and the ground truth. After Ctrl-C the current step is finished and a checkpoint written, from
which the run can resume.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from voxsam.atomic import atomic_path, make_folder
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.lab.data.sampling import Sample
from voxsam.lab.training import Stopped
from voxsam.lab.training.budget import MINUTES
from voxsam.lab.training.memory import used_bytes
from voxsam.lab.training.recipe import ENDLESS
from voxsam.lab.training.task import VALIDATION, SegmentationTask
from voxsam.preprocess import Preprocessing
from voxsam.report.metrics import dice
from voxsam.report.panels import (
    BACKGROUND,
    FAINT,
    INK,
    OBJECT_COLOURS,
    PLANE_AXES,
    POSITIVE,
    TRUTH,
    Plane,
    three_planes,
)
from voxsam.volume import Volume

RECENT = 50  # batches over which the rate is measured
LINE_EVERY_S = 30.0  # without a terminal
SHOWN = ("loss", "dice", VALIDATION)


class LiveProgress(TQDMProgressBar):
    """A progress bar that also logs "samples/s" (of all processes) and "memory GB" (of this one)."""

    def __init__(self, crops_per_batch: int) -> None:
        super().__init__(leave=True)
        self.crops_per_batch = crops_per_batch  # of all processes
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self._line = 0.0
        self._terminal = sys.stderr.isatty()

    def init_train_tqdm(self) -> Tqdm:
        """The bar, on stderr like all progress."""
        return self._bar("training")

    def init_validation_tqdm(self) -> Tqdm:
        """A second bar while validating, gone afterwards."""
        return self._bar("validation", leave=False)

    def _bar(self, what: str, leave: bool = True) -> Tqdm:
        hidden = self.is_disabled or not self._terminal
        return Tqdm(
            desc=what, disable=hidden, leave=leave, dynamic_ncols=True, file=sys.stderr, bar_format=self.BAR_FORMAT
        )

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Label the bar "training": Lightning's single epoch is the whole run."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *rest: Any, **named: Any
    ) -> None:
        """Measure, log and show."""
        now = time.perf_counter()
        self._ends.append(now)
        if len(self._ends) > 1:
            rate = (len(self._ends) - 1) * self.crops_per_batch / (self._ends[-1] - self._ends[0])
            pl_module.log("samples/s", rate)
        pl_module.log("memory GB", used_bytes(pl_module.device) / 1e9)
        super().on_train_batch_end(trainer, pl_module, *rest, **named)
        if not self._terminal and not self.is_disabled and now - self._line >= LINE_EVERY_S:
            self._line = now
            steps = f"step {trainer.global_step}"
            steps += f" of {trainer.max_steps}" if trainer.max_steps < ENDLESS else ""  # else minutes end it
            shown = ", ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            sys.stderr.write(f"{steps}: {shown}\n")
            sys.stderr.flush()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restart the rate: the time of a validation is not that of samples."""
        self._ends.clear()
        super().on_validation_start(trainer, pl_module)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """What the bar shows, as text."""
        logged = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
        shown = {name: f"{float(logged[name]):.3f}" for name in SHOWN if name in logged}
        if "samples/s" in logged:
            shown["samples/s"] = f"{float(logged['samples/s']):.3g}"
        shown["memory"] = f"{float(logged.get('memory GB', 0)):.2f} GB"
        return shown


class ValidateFirst(Callback):
    """Validates before the first step, logged as step 0: the score of the initial weights."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by Lightning when all data is ready; a resumed run has already done it."""
        if trainer.global_step:
            return
        assert isinstance(pl_module, SegmentationTask)
        pl_module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            batches = (trainer.strategy.batch_to_device(batch) for batch in trainer.val_dataloaders)  # type: ignore[union-attr]
            scores = torch.stack([pl_module.first_dice(batch) for batch in batches])
        pl_module.train()
        score = float(trainer.strategy.reduce(scores.mean(), reduce_op="mean"))
        for logger in trainer.loggers:
            logger.log_metrics({VALIDATION: score, MINUTES: 0.0}, step=0)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Raises Stopped after the step in which a signal came; a second signal raises KeyboardInterrupt at once.

    Must come after the callback that averages weights, so that the checkpoint has the step's averages.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.asked, self._stops = checkpoint, False, False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Install the signal handlers; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """Write a checkpoint if asked to stop, after the same step in all processes."""
        whole = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if whole and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.save_checkpoint(self.checkpoint)
            self._stops = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object, **__: object) -> None:
        """Stop before the next step: the last one is logged only after its end."""
        if self._stops:
            raise Stopped(trainer.global_step, self.checkpoint)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class StopOnNaN(Callback):
    """Raises InputError before a step whose gradients are NaN or infinite: they never reach weights or checkpoints.

    In 16-mixed, whose scaler skips steps with overflowing gradients, the loss is checked instead.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self._losses = checkpoint, torch.zeros(())

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Any) -> None:
        """Add up the losses of a step, of which there are several with gradient accumulation."""
        self._losses = self._losses.to(loss.device) + loss.detach()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called by Lightning with unscaled gradients, in all processes."""
        size, self._losses = self._losses, torch.zeros(())
        if trainer.precision != "16-mixed":
            size = torch.nn.utils.get_total_norm(p.grad for p in pl_module.parameters() if p.grad is not None)
            size = size.full_tensor() if isinstance(size, DTensor) else size
        if trainer.strategy.reduce_boolean_decision(not bool(size.isfinite()), all=False):
            kept = f"the same command goes on from {self.checkpoint}" if self.checkpoint.is_file() else "begin again"
            raise InputError(
                f"step {trainer.global_step + 1} of a training whose loss or gradients are no numbers ({float(size)})",
                "finite ones",
                f"{kept}: with --precision 32-true, if it is not, or with a lower --learning_rate in another folder",
            )


PANEL_INCHES, DPI = 2.6, 100


class DrawExamples(Callback):
    """Draws the samples that `examples` makes to OUT/pictures/step-000200.png and so on, and to TensorBoard.

    Drawn with the averaged weights in place: must come before the callback that averages. Without validation it draws
    every `every` steps, with the weights as they are.
    """

    def __init__(self, examples: Callable[[], Sequence[Sample]], folder: Path, every: int | None) -> None:
        self.make, self.folder, self.every = examples, folder, every
        self._examples: Sequence[Sample] | None = None
        self._drawn = -1

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw after a validation."""
        self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """Draw every `every` steps if there is no validation."""
        if self.every is not None and trainer.global_step % self.every == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, SegmentationTask)
        if trainer.global_step == self._drawn:
            return
        self._drawn = trainer.global_step
        if self._examples is None:
            self._examples = self.make()
        masks = [predict(task, sample) for sample in self._examples]  # in all processes: tensors may be sharded
        if not trainer.is_global_zero:
            return
        figure = draw(self._examples, masks, task.network.card.preprocessing, f"step {trainer.global_step}")
        make_folder(self.folder)
        with atomic_path(self.folder / f"step-{trainer.global_step:06d}.png") as path:
            figure.savefig(path, facecolor=BACKGROUND, format="png")
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("examples", picture, trainer.global_step, dataformats="HWC")


def predict(task: SegmentationTask, sample: Sample) -> NDArray[np.uint8]:
    """The mask (D, H, W) for the first click of a sample alone: more would hide what one click does."""
    device = next(task.network.parameters()).device
    crop, points, labels = (torch.from_numpy(sample[key])[None].to(device) for key in ("crop", "points", "labels"))
    first = _first_click(sample)
    with torch.no_grad():
        logits = task.predict(crop, points[:, first : first + 1], labels[:, first : first + 1])
    return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def _first_click(sample: Sample) -> int:
    """The index of the first point that is not padding; 0 if all are padding or there are none."""
    return int((sample["labels"] >= 0).argmax()) if len(sample["labels"]) else 0


def _middle(truth: NDArray[np.uint8]) -> NDArray[np.int_]:
    """(3,) the tumour voxel nearest to the tumour's centre, or the centre of a crop without tumour."""
    voxels = np.argwhere(truth)
    if not len(voxels):
        return np.array(truth.shape) // 2
    return voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()]


def draw(
    samples: Sequence[Sample], masks: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing, title: str
) -> Figure:
    """A row for each sample: axial, coronal and sagittal plane through the click (circle); truth dashed, mask solid.

    Without clicks the planes go through the middle of the tumour.
    """
    rows = len(samples)
    figure = Figure(figsize=(3 * PANEL_INCHES, rows * PANEL_INCHES + 0.5), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(PLANE_AXES), squeeze=False)
    top = 1 - 0.45 / (rows * PANEL_INCHES + 0.5)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.02, hspace=0.12)
    shown = "the mask of the click" if any(len(sample["points"]) for sample in samples) else "the mask"
    figure.suptitle(f"{title}; dashed: the truth, solid: {shown}", color=INK, fontsize=10, y=0.995)
    for row, sample, mask in zip(panels, samples, masks, strict=True):
        grid = crop_grid(preprocessing, mask.shape)
        truth = sample["label"][0].astype(np.uint8)
        click = sample["points"][_first_click(sample)] if len(sample["points"]) else None
        centre = _middle(truth) if click is None else click
        volumes = [Volume(array, grid) for array in (sample["crop"][0], truth, mask)]
        limits = [(bound - preprocessing.mean) / preprocessing.sd for bound in preprocessing.clip]
        for axes, plane in zip(row, three_planes(grid, centre), strict=True):
            _panel(axes, plane, volumes, limits, click)
        score = f"Dice {dice(mask > 0, truth > 0):.2f}" if truth.any() else f"no tumour; {int(mask.sum())} voxels"
        row[0].set_title(score, color=FAINT, fontsize=8, loc="left", pad=2)
    return figure


def crop_grid(preprocessing: Preprocessing, shape: Sequence[int]) -> Grid:
    """A grid with the axes and spacing of a crop (d, h, w), at an arbitrary position."""
    return (
        Grid.from_spacing((1, 1, 1), (1, 1, 1))
        .reorient(preprocessing.axes)
        .respace(preprocessing.spacing_mm)
        .crop((0, 0, 0), shape)
    )


def _panel(axes, plane: Plane, volumes: Sequence[Volume], limits: Sequence[float], click: NDArray | None) -> None:  # noqa: ANN001
    width, height = plane.size_mm
    image, truth, mask = (plane.read(volume) for volume in volumes)
    box = (0.0, width, height, 0.0)
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], extent=box, interpolation="nearest")
    x = (np.arange(image.shape[1]) + 0.5) * width / image.shape[1]
    y = (np.arange(image.shape[0]) + 0.5) * height / image.shape[0]
    for shown, colour, style in ((mask, OBJECT_COLOURS[0], "solid"), (truth, TRUTH, "dashed")):
        if 0 < shown.sum() < shown.size:
            axes.contour(x, y, shown, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=style)
    if click is not None:
        place, _ = plane.place_mm(volumes[0].grid, click)
        axes.plot(*place, "o", markersize=6, markerfacecolor="none", markeredgecolor=POSITIVE, markeredgewidth=1.5)
    axes.set_axis_off()
