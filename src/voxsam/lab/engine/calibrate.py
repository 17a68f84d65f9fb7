"""Fit a model's calibration (Dice, volume interval, probability of a lesion) from sessions on known lesions.

`python -m voxsam.lab.engine.calibrate MODEL.safetensors DATA [OUT.json]` paints lesions other than those in tables into
all backgrounds, clicks and corrects these, all sarcomas and lesions_ct in their whole scans, clicks healthy tissue in
every CT scan, fits, and writes the calibration into the model's file. The printed scores are cross-validated by
scan. Scans used for training take part: a few do not show what healthy tissue of another one looks like.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.special import expit
from torch import Tensor, nn

from voxsam.boxes import bounding_box, grown, intersection, whole
from voxsam.interactive.confidence import COUNTS, signals
from voxsam.interactive.predictor import Predictor
from voxsam.io import read_volume
from voxsam.lab.engine.load import Part
from voxsam.lab.engine.painting import BONE, FAT, LUNG, SOFT
from voxsam.lab.engine.scans import ORGAN, Scan
from voxsam.lab.engine.validation import Lesion, backgrounds, painted, sarcomas, upright, whole_ct
from voxsam.lab.evaluation.clicks import Click, correction
from voxsam.network.calibration import MAX_RATIO, OUTPUTS, Calibration, Layer
from voxsam.network.promptable import Promptable
from voxsam.prompts import Point
from voxsam.report.metrics import dice
from voxsam.volume import Volume
from voxsam.weights.checkpoint import load_model
from voxsam.weights.file import METADATA_KEY, new_file, read_model

SEED = 77  # of what is clicked, and of the painted lesions, which are others than those of the validation table
SEEDS: dict[Part, int] = {"validation": SEED, "train": SEED + 1}
PER_BIN = 48  # painted lesions of each range of diameters in each part
CORRECTED = (0, 1, 3)  # numbers of corrective clicks after which a mask is a case
TRIALS = 3  # per real lesion
HEALTHY = {ORGAN: 60, SOFT: 45, LUNG: 25, FAT: 20, BONE: 20}  # clicks on each tissue of a scan without labels
FEWER = {"organs_ct": 0.7, "lesions_ct": 0.5, "sarcoma_ct": 0.12}  # fraction of these in each other scan
APART_MM = 10.0  # of healthy clicks from labelled lesions, at least
ROOM_MM = 160.0  # of the scan kept around a lesion: more than a crop
WIDTH, STEPS, DECAY = 24, 800, 0.01
MEMBERS = 5  # networks to average: a single one warns of 48 to 64 % of healthy clicks, depending on its seed
FOLDS = 6
INTERVAL = 0.8
WARNED = 0.09  # fraction of first clicks in lesions that get a warning


@dataclass(frozen=True, eq=False)
class Case:
    """One mask: its signals and its ground truth. `ratio`: the lesion's volume over the mask's; 0: no lesion."""

    lesion: str
    clicks: int
    signals: NDArray[np.float64]
    dice: float
    ratio: float

    @property
    def scan(self) -> str:
        """The name of its scan, with which that of a lesion begins."""
        return self.lesion.partition(" ")[0]


def lesion_cases(model: Promptable, lesions: Iterator[Lesion]) -> Iterator[Case]:
    """A case for each lesion after one click and each number of CORRECTED clicks."""
    for number, lesion in enumerate(lesions):
        rng = np.random.default_rng([SEED, number])
        scan, truth = _near(lesion)
        predictor = Predictor(model, keep_clicked=True).set_image(scan)
        voxels = np.argwhere(truth)
        clicks: list[Click] = [(tuple(voxels[rng.integers(len(voxels))].tolist()), True)]
        found = None
        for count in range(max(CORRECTED) + 1):
            points = [Point.at_index(scan.grid, at, positive) for at, positive in clicks]
            found = predictor.predict(points, found)
            mask = found.region(keep_clicked=True).on_all(scan).array > 0
            if count in CORRECTED:
                ratio = len(voxels) / max(1, int(mask.sum()))
                seen = signals(found.pieces, found.clicks, predictor.encoded.get(found.pieces[0][0]))
                yield Case(lesion.name, len(clicks), seen, dice(mask, truth), ratio)
            new = correction(mask, truth, scan.grid.spacing_mm, clicks)
            if new is None:
                break
            clicks.append(new)


@dataclass(frozen=True, eq=False)
class Healthy:
    """A scan, its `volume` in SAR order, the mask of healthy voxels, and the fraction of the HEALTHY clicks it gets."""

    scan: Scan
    volume: Volume
    mask: NDArray[np.bool_]
    fraction: float = 1.0


def healthy_scans(folder: Path) -> Iterator[Healthy]:
    """Every CT scan of the shared data: without labels, with organs, with lesions."""
    for part in SEEDS:
        for scan, volume in backgrounds(folder, part):
            yield Healthy(scan, volume, np.ones(volume.array.shape, dtype=bool))
    scan, volume = upright("organs_ct", read_volume(folder / "organs_ct" / "ct.nii.gz"))
    yield Healthy(scan, volume, np.ones(volume.array.shape, dtype=bool), FEWER["organs_ct"])
    for source, found in (("lesions_ct", whole_ct(folder)), ("sarcoma_ct", _all_sarcomas(folder))):
        for case, group in groupby(found, lambda lesion: lesion.name.partition(" ")[0]):
            lesions = list(group)
            scan, volume = upright(case, lesions[0].scan)
            labelled = np.logical_or.reduce([lesion.mask.reorient("SAR").array > 0 for lesion in lesions])
            far = np.asarray(scipy.ndimage.distance_transform_edt(~labelled, volume.grid.spacing_mm)) > APART_MM
            yield Healthy(scan, volume, far, FEWER[source])


def _all_sarcomas(folder: Path) -> Iterator[Lesion]:
    return chain.from_iterable(sarcomas(folder, part) for part in SEEDS)


def healthy_cases(model: Promptable, scans: Iterable[Healthy]) -> Iterator[Case]:
    """A case for each click on healthy tissue, at most as many of each tissue in a scan as HEALTHY says."""
    for number, one in enumerate(scans):
        rng = np.random.default_rng([SEED, 1, number])
        predictor = Predictor(model, keep_clicked=True).set_image(one.volume)
        for kind, count in HEALTHY.items():
            places = rng.permutation(one.scan.places.get(kind, np.zeros((0, 3))))
            indices = np.rint(places / one.volume.grid.spacing_mm - 0.5).astype(int)
            indices = indices.clip(0, np.subtract(one.volume.array.shape, 1))
            for index in indices[one.mask[tuple(indices.T)]][: round(count * one.fraction)]:
                found = predictor.predict(Point.at_index(one.volume.grid, index))
                seen = signals(found.pieces, found.clicks, predictor.encoded.get(found.pieces[0][0]))
                yield Case(f"{one.scan.name} healthy {kind} {index}", 1, seen, 0.0, 0.0)
                predictor.forget_features()


def _near(lesion: Lesion) -> tuple[Volume, NDArray[np.bool_]]:
    """The part of a scan around a lesion that a session may look at, and the lesion's mask there."""
    grid = lesion.scan.grid
    margin = int(np.ceil(ROOM_MM / grid.spacing_mm.min()))
    box = intersection(grown(bounding_box(lesion.mask.array), margin), whole(grid))
    part = grid.crop([along.start for along in box], [along.stop - along.start for along in box])
    scan = Volume(np.ascontiguousarray(lesion.scan.array[box]), part, lesion.scan.modality)
    return scan, lesion.mask.array[box] > 0


# The fit


def fit(cases: Sequence[Case], seed: int = 0) -> tuple[Calibration, dict[str, float]]:
    """The calibration from all cases, and its scores by cross-validation over scans."""
    x, dice = np.array([case.signals for case in cases]), np.array([case.dice for case in cases])
    ratio = np.array([case.ratio for case in cases])
    log_ratio, lesion = np.log(ratio.clip(1 / MAX_RATIO, MAX_RATIO)), ratio > 0
    first = np.logical_and(lesion, [case.clicks == 1 for case in cases])
    scans = Counter(case.scan for case in cases).most_common()  # dealt out, those with the most cases first
    fold_of = {scan: number % FOLDS for number, (scan, _) in enumerate(scans)}
    folds = np.array([fold_of[case.scan] for case in cases])
    out = np.zeros((len(cases), OUTPUTS))
    for fold in range(FOLDS):
        left = folds == fold
        out[left] = _fitted(x[~left], dice[~left], log_ratio[~left], lesion[~left], seed)(x[left])
    low, high, true = out[lesion, 2:].min(1), out[lesion, 2:].max(1), log_ratio[lesion]
    # How far both ends must move outwards to cover INTERVAL of the cases they were not fitted on (conformal).
    shift = float(np.quantile(np.maximum(low - true, true - high), INTERVAL))
    held = (true >= low - shift) & (true <= high + shift)
    expected, likely = expit(out[:, 0]), expit(out[:, 1])  # Dice, and a lesion
    warn = float(np.quantile(likely[first], WARNED))
    scores = {
        "lesions": float(lesion.sum()),
        "dice": float(dice[lesion].mean()),
        "dice_error": float(np.abs(expected[lesion] - dice[lesion]).mean()),
        "dice_correlation": float(np.corrcoef(expected[lesion], dice[lesion])[0, 1]),
        "interval": float(held.mean()),
        "warned_lesion": float((likely[first] < warn).mean()),
        "warned_healthy": float((likely[~lesion] < warn).mean()) if (~lesion).any() else float("nan"),
    }
    last = _fitted(x, dice, log_ratio, lesion, seed)
    counts = len({case.lesion for case in cases if case.ratio}), int((~lesion).sum()), len(scans)
    return last.calibration(shift, warn, "{} lesions and {} clicks beside lesions in {} scans".format(*counts)), scores


class _Fitted:
    def __init__(self, network: nn.Sequential, centre: NDArray[np.float64], spread: NDArray[np.float64]) -> None:
        self.network, self.centre, self.spread = network, centre, spread

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            return self.network(_tensor((x - self.centre) / self.spread)).double().numpy()

    def calibration(self, shift: float, warn: float, fitted_on: str) -> Calibration:
        affine = [one for one in self.network if isinstance(one, nn.Linear)]
        layers = []
        for one in affine:
            bias = one.bias.detach().double().numpy().copy()
            if one is affine[-1]:
                bias[2:] += (-shift, shift)
            rows = one.weight.detach().double().numpy()
            layers.append(Layer(weights=tuple(map(_rounded, rows)), bias=_rounded(bias)))
        return Calibration(
            centre=_rounded(self.centre),
            spread=_rounded(self.spread),
            layers=tuple(layers),
            warn_below=round(warn, 5),
            fitted_on=fitted_on,
        )


def _fitted(
    x: NDArray[np.float64],
    dice: NDArray[np.float64],
    log_ratio: NDArray[np.float64],
    lesion: NDArray[np.bool_],
    seed: int,
) -> _Fitted:
    drawn = as_often_clicked(x, lesion, seed)
    centre, spread = drawn.mean(0), drawn.std(0) + 1e-3
    members = []
    for number in range(seed * MEMBERS, (seed + 1) * MEMBERS):
        given = _tensor((as_often_clicked(x, lesion, number) - centre) / spread)
        members.append(_trained(given, dice, log_ratio, lesion, number))
    return _Fitted(_mean_of(members), centre, spread)


def _trained(
    given: Tensor,
    dice: NDArray[np.float64],
    log_ratio: NDArray[np.float64],
    lesion: NDArray[np.bool_],
    seed: int,
) -> nn.Sequential:
    """Train one network on the standardised signals."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(given.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUTPUTS))
    is_lesion = torch.from_numpy(lesion)
    true_dice, ratio = _tensor(dice)[is_lesion], _tensor(log_ratio)[is_lesion]
    weight = torch.where(is_lesion, 0.5 / max(1, lesion.sum()), 0.5 / max(1, (~lesion).sum()))
    optimiser = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=DECAY / 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        out = network(given)
        said = out[is_lesion]
        loss = F.binary_cross_entropy_with_logits(said[:, 0], true_dice)
        loss = (
            loss + (F.binary_cross_entropy_with_logits(out[:, 1], is_lesion.float(), reduction="none") * weight).sum()
        )
        for column, quantile in ((2, (1 - INTERVAL) / 2), (3, (1 + INTERVAL) / 2)):
            off = ratio - said[:, column]
            loss = loss + torch.maximum(quantile * off, (quantile - 1) * off).mean()  # pinball loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _mean_of(members: Sequence[nn.Sequential]) -> nn.Sequential:
    """One network whose output is the mean of theirs, with their hidden units side by side."""
    enter, leave = zip(*([one for one in member if isinstance(one, nn.Linear)] for member in members), strict=True)
    first = nn.Linear(enter[0].in_features, WIDTH * len(members))
    last = nn.Linear(WIDTH * len(members), OUTPUTS)
    with torch.no_grad():
        first.weight.copy_(torch.cat([one.weight for one in enter]))
        first.bias.copy_(torch.cat([one.bias for one in enter]))
        last.weight.copy_(torch.cat([one.weight for one in leave], 1) / len(members))
        last.bias.copy_(torch.stack([one.bias for one in leave]).mean(0))
    return nn.Sequential(first, nn.Tanh(), last)


def as_often_clicked(x: NDArray[np.float64], lesion: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """Give healthy clicks the click counts of lesions, so that the number of clicks does not reveal a lesion."""
    x, drawn = x.copy(), np.random.default_rng(seed)
    if lesion.any():
        x[~lesion, COUNTS] = x[lesion][drawn.integers(lesion.sum(), size=(~lesion).sum()), COUNTS]
    return x


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def main(source: str, data: str, out: str | None = None) -> None:
    """Fit, print the cross-validated scores, and write the calibration into the file."""
    model, folder = load_model(source, "cpu"), Path(data)
    real = (lesion for lesion in chain(_all_sarcomas(folder), whole_ct(folder)) for _ in range(TRIALS))
    lesions = chain(*(painted(folder, seed, PER_BIN, part) for part, seed in SEEDS.items()), real)
    cases = [*lesion_cases(model, lesions), *healthy_cases(model, healthy_scans(folder))]
    if out is not None:
        rows = [{**case.__dict__, "signals": case.signals.tolist()} for case in cases]
        Path(out).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    calibration, scores = fit(cases)
    sys.stdout.write(json.dumps(scores, indent=1) + "\n")
    card, tensors = read_model(Path(source))
    card = card.model_copy(update={"calibration": calibration})
    with new_file(Path(source)) as temporary:  # tensors unchanged, whatever their precision
        save_file(tensors, temporary, {METADATA_KEY: card.model_dump_json()})


if __name__ == "__main__":
    main(*sys.argv[1:])
