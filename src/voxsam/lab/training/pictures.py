"""What the model predicts while it learns: a picture of some examples, drawn at each validation.

A row is an example: three planes through its first click, or the middle of its tumour where none is clicked, the
model's mask, the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voxsam.atomic import atomic_path, make_folder
from voxsam.geometry import Grid
from voxsam.lab.data.sampling import Sample
from voxsam.lab.training.task import SegmentationTask
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

PANEL_INCHES, DPI = 2.6, 100


class DrawExamples(Callback):
    """OUT/pictures/step-000200.png, and the same picture in TensorBoard, of the samples that `examples` makes.

    Drawn while the averaged weights are in place: stands before the callback that averages. Without validation, every
    `every` steps, of the weights as they are.
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
        """Draw now and then, where nothing is validated."""
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
    """(D, H, W): the mask that the first click of a sample gets; more of them would hide what one click does."""
    device = next(task.network.parameters()).device
    crop, points, labels = (torch.from_numpy(sample[key])[None].to(device) for key in ("crop", "points", "labels"))
    first = _first_click(sample)
    with torch.no_grad():
        logits = task.predict(crop, points[:, first : first + 1], labels[:, first : first + 1])
    return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def _first_click(sample: Sample) -> int:
    """The number of the first point that is no padding; 0 where all are, or where there is none."""
    return int((sample["labels"] >= 0).argmax()) if len(sample["labels"]) else 0


def _middle(truth: NDArray[np.uint8]) -> NDArray[np.int_]:
    """(3,): the voxel of the tumour nearest to its centre, or the middle of a crop that has none."""
    voxels = np.argwhere(truth)
    if not len(voxels):
        return np.array(truth.shape) // 2
    return voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()]


def draw(
    samples: Sequence[Sample], masks: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing, title: str
) -> Figure:
    """A row for each sample: axial, coronal, sagittal plane through the click (circle); truth dashed, mask solid.

    Without clicks the planes are those through the middle of the tumour.
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
    """A grid with the axes and spacing of a crop (d, h, w), anywhere in the world."""
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
