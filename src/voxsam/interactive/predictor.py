"""Predictor: a scan and prompts in, a mask on the scan's own grid out; it remembers encoded crops, but no clicks.

How a mask is made: the prompts choose crops of the scan, each crop is encoded once, prompt features are sampled at the
clicks, every crop is decoded with all of them, a tumour that reaches the border of its crop is followed into additional
crops, and the probabilities are resampled to the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.boxes import hull, intersection, is_empty, within
from voxsam.errors import InputError, PromptError, UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.confidence import SIGNALS, Confidence, confidence
from voxsam.interactive.crops import (
    THRESHOLD,
    EncodedCrops,
    Piece,
    ReportProgress,
    blend,
    choose_windows,
    connected,
    is_new,
    next_windows,
    parts_of,
    require_numbers,
)
from voxsam.interactive.images import images_for
from voxsam.interactive.scale import MAX_CHANGES, Scale, clicked_extent
from voxsam.io.checks import is_padding
from voxsam.network.classes import features_under
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Slices, Window, paste, paste_box
from voxsam.prompts import Box, MaskHint, Point, Prompt, Scribble, common_box
from voxsam.region import EMPTY, Region
from voxsam.volume import Volume

MAX_CROPS = 12  # of one tumour, those it is followed into included
RUNAWAY = 4  # times its size at the spacing chosen for it: a mask that grows beyond this is no longer a lesion
UNLIKE = "what was clicked does not look like a lesion to this model: look at the mask with care"
AIR_HU = -950.0  # below lung: at most this in the click's voxel and all its neighbours

End = Literal["inside", "open", "ran away"]  # a mask ends inside its crops, at their border, or grew too large
Decode = Callable[..., NDArray[np.float32]]  # (window, whole=True), see `Predictor._look`
Look = tuple[list[Window], Decode]
Pasted = tuple[Slices, NDArray[np.float32]]  # a box of the scan, and the probabilities in it


@dataclass(frozen=True, eq=False)
class Prediction:
    """One object as a model sees it: `mask`, `probabilities`, `remarks`, `confidence`, and what they were made from.

    `confidence` is None if the model was not calibrated, `class_name` if it knows no classes. Only the probabilities in
    crops are stored; scan-sized arrays are made on demand.
    """

    grid: Grid  # of the scan
    header: dict[str, Any] = field(default_factory=dict, repr=False)
    prompts: tuple[Prompt, ...] = ()
    clicks: tuple[Point, ...] = ()  # of the prompts
    windows: tuple[Window, ...] = ()  # chosen for the clicks
    pieces: tuple[Piece, ...] = field(default=(), repr=False)  # in these windows, and in those followed into
    box: Slices | None = None  # of the scan, outside which the mask is 0; None: no limit
    keep_clicked: bool = False  # whether the mask is only its components that hold a positive click
    notes: tuple[str, ...] = ()  # remarks other than those on missed clicks
    confidence: Confidence | None = None
    class_name: str | None = None  # which of the model's classes it looks like

    @property
    def mask(self) -> Volume:
        """uint8 on the scan's grid: 1 where the probability is above 0.5. A new array each time."""
        out, region = np.zeros(self.grid.shape, dtype=np.uint8), self.region(self.keep_clicked)
        out[region.box] = region.inside
        return Volume(out, self.grid, "SEG", self.header, self.remarks)

    def region(self, keep_clicked: bool) -> Region:
        """The voxels above 0.5; with `keep_clicked` only the connected components (through faces) that were clicked.

        If no positive click lies in the mask, all components are kept.
        """
        clicks = [self.grid.voxel_of(click.index_on(self.grid)).tolist() for click in self.clicks if click.positive]
        keep_clicked = keep_clicked and any(map(self._holds, clicks))
        found = EMPTY
        for box in _apart(self.reach):  # a box around distant lesions may not fit in memory
            inside, start = np.zeros([part.stop - part.start for part in box], dtype=bool), [part.start for part in box]
            for reached, values in self.on_scan():
                common = intersection(reached, box)
                inside[within(common, box)] |= values[within(common, reached)] > THRESHOLD
            found |= Region.of(_clicked(inside, np.subtract(clicks, start)) if keep_clicked else inside, start)
        return found

    @property
    def probabilities(self) -> Volume:
        """float32 0..1 on the scan's grid: the probability of being tumour; 0 beyond the crops. A new array."""
        out = np.zeros(self.grid.shape, dtype=np.float32)
        for box, values in map(self._paste, parts_of(self.pieces)):
            np.maximum(out[box], values, out=out[box])
        return Volume(out, self.grid, "", self.header, self.remarks)

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the mask, one line each."""
        return (*self.notes, *missed_remark(self.clicks, self.grid, self._holds))

    @property
    def crops(self) -> int:
        """Number of crops that it was made from."""
        return len(self.pieces)

    @property
    def nbytes(self) -> int:
        """Bytes that the probabilities take."""
        return sum(probability.nbytes for _, probability in self.pieces)

    @cached_property
    def reach(self) -> tuple[Slices, ...]:
        """Boxes of the scan outside which the mask is empty."""
        boxes = (paste_box(window, self.grid) for window, _ in self._parts)
        return tuple(box if self.box is None else intersection(box, self.box) for box in boxes)

    def on_scan(self) -> tuple[Pasted, ...]:
        """The boxes of `reach` with the probabilities in them; where boxes overlap, the highest probability counts.

        Computed on first use, and kept.
        """
        if "pasted" not in self.__dict__:
            self.__dict__["pasted"] = tuple(map(self._paste, self._parts))
        return self.__dict__["pasted"]

    def forget_pasted(self) -> None:
        """Free what `on_scan` keeps; it is computed again when needed."""
        self.__dict__.pop("pasted", None)

    @cached_property
    def _parts(self) -> list[Piece]:
        return parts_of(self.pieces, tumour=True)

    def _holds(self, voxel: Sequence[int]) -> bool:
        i, j, k = (slice(at, at + 1) for at in voxel)
        return any(
            values[within((i, j, k), box)] > THRESHOLD
            for box, values in self.on_scan()
            if not is_empty(intersection((i, j, k), box))
        )

    def _paste(self, piece: Piece) -> Pasted:
        pasted, values = paste(piece[1], piece[0], self.grid)
        reached = pasted if self.box is None else intersection(pasted, self.box)
        return reached, values[within(reached, pasted)]


class Predictor:
    """One model and, after `set_image`, one scan: encoded crops are kept, so that the next click is fast.

    With `follow=False` a mask stays in one crop, as released; otherwise it is followed beyond the border of its crop.
    `progress` is called with a stage's name and the fraction done, 0 to 1. `features_bytes` limits the memory of
    encoded crops; None: 1 GiB, and more for the current object while memory is free. `spacing_mm` is the spacing at
    which a general model looks; None: the lesion's size chooses it (voxsam.interactive.scale). Raises InputError for a
    spacing that the model does not support. With `keep_clicked`, masks keep only components with a positive click.
    """

    def __init__(
        self,
        model: Promptable,
        *,
        follow: bool = True,
        keep_clicked: bool = False,
        progress: ReportProgress | None = None,
        features_bytes: int | None = None,
        spacing_mm: float | None = None,
    ) -> None:
        self.model, self.follow, self.features_limit, self.spacing_mm = model, follow, features_bytes, spacing_mm
        self.keep_clicked = keep_clicked
        _check_spacing(model, spacing_mm)
        self.progress = progress or (lambda stage, fraction: None)
        self._encoded: EncodedCrops | None = None
        self._volume: Volume | None = None
        self._scan_remarks: list[str] = []

    def set_image(self, volume: Volume | Sequence[Volume]) -> Predictor:
        """Set the scan; nothing is encoded yet. Returns the predictor itself.

        A model of several channels (MR sequences) takes a sequence of volumes of one patient, which may lie on
        different grids; the first is the one that is clicked. Raises UnsupportedError for a wrong number of volumes.
        """
        given = (volume,) if isinstance(volume, Volume) else tuple(volume)
        images, self._scan_remarks = images_for(self.model, given)
        made = [image for image, own in zip(images, given, strict=True) if image is not own]
        self.standardised_bytes = sum(image.array.nbytes for image in made)  # beyond the scan itself
        self._encoded = EncodedCrops(self.model, images, self.progress, self.features_limit)
        self._volume = given[0]
        return self

    @property
    def encoded(self) -> EncodedCrops:
        """The encoded crops of the scan. Raises InputError before `set_image`."""
        if self._encoded is None:
            raise InputError("a predictor without an image", "an image", "call set_image(volume) first")
        return self._encoded

    @property
    def volume(self) -> Volume:
        """The scan that is clicked, as it was given; the model may see it standardised."""
        return self._volume if self._volume is not None else self.encoded.images[0]

    def model_grid(self, spacing_mm: Sequence[float] | None = None) -> Grid:
        """The scan's grid at the model's axes and spacing, or at another spacing."""
        return self.model.card.preprocessing.model_grid(self.volume.grid, spacing_mm)

    def forget_features(self) -> None:
        """Free the memory of the encoded crops; they are encoded again when needed."""
        self.encoded.kept.clear()

    def predict(self, prompts: Prompt | Sequence[Prompt], previous: Prediction | None = None) -> Prediction:
        """Segment the object that these prompts, and no others, point at.

        `previous` is the prediction before the latest prompts: crops that still hold all clicks stay where they were,
        and a model that takes a mask gets its probabilities. Raises PromptError for prompts that cannot be used,
        UnsupportedError for what the model cannot do, CheckpointError if the model's prediction is NaN.
        """
        prompts = (prompts,) if isinstance(prompts, Prompt) else tuple(prompts)
        before = previous or Prediction(self.volume.grid)
        clicks = self._clicks(prompts, before)
        self._check(prompts, clicks)
        self.encoded.use(window for window, _ in before.pieces)
        with torch.inference_mode():
            windows, pieces, end = self._segment(clicks, before)
            sure, class_name = self._confidence(pieces, clicks), self._class_name(pieces)
        box = common_box(prompts, clicks, self.volume.grid)
        remarks = [
            *self._scan_remarks,
            *(said for prompt in prompts if isinstance(prompt, MaskHint | Scribble) for said in prompt.volume.remarks),
            *air_remarks(self.volume, clicks),
            *self._crop_remarks(len(windows), len(pieces), end),
            *([UNLIKE] if sure is not None and sure.doubtful else []),
        ]
        if box is None and any(isinstance(prompt, Box) for prompt in prompts):
            remarks.append("a click in the tumour lies outside the box: the box does not limit the mask")
        found = (prompts, clicks, tuple(windows), tuple(pieces), box, self.keep_clicked, tuple(remarks))
        return Prediction(self.volume.grid, self.volume.header, *found, sure, class_name)

    def _clicks(self, prompts: tuple[Prompt, ...], before: Prediction) -> tuple[Point, ...]:
        """The clicks that the prompts become; those of prompts already in `before` are reused."""
        if not prompts:
            raise PromptError("no prompt", "a click, box, scribble or mask hint", "give at least one")
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                given, remedy = f"a prompt of type {type(prompt).__name__}", "use session.click((i, j, k)) for a voxel"
                raise PromptError(given, "a Point, Box, Scribble or MaskHint", remedy)
        known = len(before.prompts) if prompts[: len(before.prompts)] == before.prompts else 0
        new = (point for prompt in prompts[known:] for point in prompt.points(self.volume.grid))
        return (*(before.clicks if known else ()), *new)

    def _check(self, prompts: Sequence[Prompt], clicks: Sequence[Point]) -> None:
        if self.model.card.automatic:
            raise UnsupportedError(
                f"a prompt for the model {self.model.card.name}",
                "no prompt: this model was trained for automatic segmentation",
                "use --auto (voxsam.interactive.automatic), or a model that takes clicks",
            )
        if not any(click.positive for click in clicks):
            raise PromptError("negative clicks only", "at least one click in the tumour", "click the tumour first")
        refuse_polarity(self.model, (click.positive for click in clicks))
        for prompt in prompts:
            if isinstance(prompt, Point) and prompt.positive and is_padding(self.volume, prompt.world_mm):
                place = ",".join(f"{i:g}" for i in prompt.index_on(self.volume.grid))
                given = f"a click at {place}, where the scan has no number (NaN padding)"
                raise PromptError(given, "a click on a voxel with a value", "click the tumour")

    def _segment(self, clicks: Sequence[Point], before: Prediction) -> tuple[list[Window], list[Piece], End]:
        """The windows chosen for the clicks, the pieces there and where the mask was followed, and how it ends.

        A general model looks at several spacings and keeps the one where the mask is surest, and fits.
        """
        scale = Scale.of(self.model.card.preprocessing, self.model.config.crop)
        if scale is None:
            return self._followed(*self._look(self.model_grid(), clicks, before))
        if self.spacing_mm is not None:
            return self._followed(*self._look(self.model_grid((self.spacing_mm,) * 3), clicks, before))
        grid = self.model_grid()
        places_mm = grid.world_to_index([click.world_mm for click in clicks]) * grid.spacing_mm
        looks: dict[float, tuple[Look, float, float]] = {}

        def look(spacing: float) -> None:
            windows, decode = self._look(self.model_grid((spacing,) * 3), clicks, before)
            pieces = [(window, decode(window, whole=False)) for window in windows]
            extent = clicked_extent(pieces, [click.world_mm for click in clicks if click.positive])
            looks[spacing] = (windows, decode), *extent

        missed = before.pieces and not any((probability > THRESHOLD).any() for _, probability in before.pieces)
        current = () if missed else before.windows
        corrected = bool(current) and not all(click.positive for click in clicks)
        for spacing in scale.first(places_mm, current):
            look(spacing)
        chosen = [max(looks, key=lambda spacing: scale.preference(*looks[spacing][1:]))]
        for _ in range(MAX_CHANGES):
            across = looks[chosen[-1]][1]
            wanted = scale.next(chosen[-1], across, places_mm, corrected)
            if wanted not in looks:
                look(wanted)
            if wanted in chosen or (across and not looks[wanted][1]):  # keep a mask that holds the click
                break
            chosen.append(wanted)
        windows, decode = looks[chosen[-1]][0]
        self.encoded.use((*(window for window, _ in before.pieces), *windows))
        return self._followed(windows, decode)

    def _look(self, model_grid: Grid, clicks: Sequence[Point], before: Prediction) -> Look:
        """The windows of a model grid chosen for the clicks, and a function that computes a window's probabilities.

        With `whole=False` it ignores the mirror image that a model with a `mirrored` card sees beside each crop.
        """
        at = model_grid.world_to_index([click.world_mm for click in clicks])
        side = self.model.config.crop
        windows = choose_windows(model_grid, at, side, [w for w in before.windows if w.model_grid == model_grid])
        if len(windows) > 1 and not self.follow:
            span_mm = (np.ptp(at, axis=0) * model_grid.spacing_mm).max()
            raise PromptError(
                f"clicks {span_mm:.0f} mm apart with one crop of {side} voxels",
                "clicks that fit well inside one crop",
                "leave out --no-follow (follow=False), or segment them one by one",
            )
        direct = self._logits(windows, clicks, before.pieces)
        reflected = [(window.mirrored(), probability[..., ::-1]) for window, probability in before.pieces]
        mirror = self._logits([window.mirrored() for window in windows], clicks, reflected)

        def decode(window: Window, whole: bool = True) -> NDArray[np.float32]:
            logits = direct(window)
            if whole and self.model.card.mirrored:
                logits = (logits + mirror(window.mirrored()).flip(-1)) / 2
            probability = torch.sigmoid(logits).cpu().numpy()  # softmax over two classes
            require_numbers(probability, self.model.card.name)
            return probability

        return windows, decode

    def _logits(
        self, windows: Sequence[Window], clicks: Sequence[Point], before: Sequence[Piece]
    ) -> Callable[[Window], Tensor]:
        """A function that computes, once, the logits in a window for clicks whose `windows` these are."""
        places_mm = [click.world_mm for click in clicks]
        sampled = cache(lambda: self._sample(windows, clicks))
        return cache(lambda window: self.encoded.logits(window, places_mm, *sampled(), before))

    def _followed(self, windows: list[Window], decode: Decode) -> tuple[list[Window], list[Piece], End]:
        """The windows, the pieces with those followed into, and how the mask ends; the first alone if it ran away."""
        pieces = [(window, decode(window)) for window in windows]
        first = list(pieces)
        most = RUNAWAY * _voxels(first) if self.model.card.preprocessing.spacing_range_mm else np.inf
        waiting = [new for window, probability in pieces for new in next_windows(window, probability > THRESHOLD)]
        while waiting := [window for window in waiting if is_new(window, [done for done, _ in pieces])]:
            # A model that cannot see clicks outside a crop would guess there.
            if not (self.follow and self.model.far_clicks) or len(pieces) >= MAX_CROPS:
                return windows, pieces, "open"
            window = waiting.pop(0)
            pieces.append((window, connected(decode(window), blend(pieces, window) > THRESHOLD)))
            if _voxels(pieces) > most:
                return windows, first, "ran away"
            waiting += next_windows(window, blend(pieces, window) > THRESHOLD)
        return windows, pieces, "inside"

    def _sample(self, windows: Sequence[Window], clicks: Sequence[Point]) -> tuple[Tensor, Tensor | None]:
        """(1, N, C) each click's prompt features, from the window it is most central in; (1, N) labels or None."""
        at = windows[0].model_grid.world_to_index([click.world_mm for click in clicks])
        middles = np.array([np.add(w.start, np.array(w.shape) / 2 - 0.5) for w in windows])
        home = np.abs(at[:, None] - middles[None]).max(-1).argmin(1)
        sampled = [self.encoded.sample(windows[n], click.world_mm) for n, click in zip(home, clicks, strict=True)]
        prompt_features = torch.cat(sampled, 1)
        if not self.model.config.polarity:
            return prompt_features, None
        labels = [[click.positive for click in clicks]]
        return prompt_features, torch.tensor(labels, dtype=torch.long, device=prompt_features.device)

    def _confidence(self, pieces: Sequence[Piece], clicks: Sequence[Point]) -> Confidence | None:
        calibration = self.model.card.calibration
        if calibration is None or len(calibration.centre) != SIGNALS:  # fitted by another version on other signals
            return None
        window = pieces[0][0]
        volume_ml = _voxels(pieces) * window.model_grid.voxel_volume_ml
        return confidence(calibration, pieces, clicks, self.encoded.get(window), volume_ml)

    def _class_name(self, pieces: Sequence[Piece]) -> str | None:
        """The class that the mask looks like in the crop of the first click."""
        classes = self.model.card.classes
        if classes is None:
            return None
        window, probability = pieces[0]
        tokens = self.encoded.get(window).features[-1][0].float().cpu().numpy()
        return classes.name(features_under(tokens, probability > THRESHOLD))

    def _crop_remarks(self, chosen: int, used: int, end: End) -> list[str]:
        remarks = []
        if chosen > 1:
            remarks.append(f"the clicks lie farther apart than one crop: {chosen} crops were used")
        if used > chosen:
            crops = "one further crop" if used - chosen == 1 else f"{used - chosen} further crops"
            remarks.append(f"the mask reached the border of its crop and was followed into {crops}")
        if end == "ran away":
            remarks.append(
                f"beyond its crop the mask grew more than {RUNAWAY} times larger and was not followed: look with care"
            )
        elif end == "open" and self.follow and self.model.far_clicks:
            remarks.append(f"the mask was not followed beyond {used} crops and may be incomplete")
        elif end == "open":
            remarks.append("the mask reaches the border of its crop and was not followed beyond it")
        return remarks


def _apart(boxes: Iterable[Slices]) -> list[Slices]:
    """Boxes that share no component: overlapping ones are merged into their hull."""
    found: list[Slices] = []
    for box in (box for box in boxes if not is_empty(box)):
        near = [other for other in found if not is_empty(intersection(box, other))]
        found = [*(other for other in found if other not in near), hull((box, *near))]
    return found


def _clicked(inside: NDArray[np.bool_], clicks: NDArray[np.int_]) -> NDArray[np.bool_]:
    """The connected components (through faces) that hold any of the clicks (n, 3), which may lie outside the array."""
    labels, _ = scipy.ndimage.label(inside)  # type: ignore[misc]
    within_it = clicks[((clicks >= 0) & (clicks < inside.shape)).all(1)]
    return np.isin(labels, np.setdiff1d(labels[tuple(within_it.T)], [0]))


def _voxels(pieces: Sequence[Piece]) -> int:
    """Number of model grid voxels in the mask."""
    return sum(int((probability > THRESHOLD).sum()) for _, probability in parts_of(pieces, tumour=True))


def keeps_clicked(model: Promptable) -> bool:
    """Whether masks keep only the clicked components by default.

    They do not for models without negative clicks, such as the released ones: these reproduce their authors' numbers.
    """
    return bool(model.config.polarity)


def refuse_polarity(model: Promptable, positive: Iterable[bool], of: str = "") -> None:
    """Raises UnsupportedError for a negative click (`of` what, in words) if the model takes none."""
    if not model.config.polarity and not all(positive):
        raise UnsupportedError(
            f"a negative click{of} for the model {model.card.name}",
            "positive clicks: this model was trained without polarity",
            "leave it out, or use a model that lists negative clicks in `voxsam info`",
        )


def _check_spacing(model: Promptable, spacing_mm: float | None) -> None:
    ends = model.card.preprocessing.spacing_range_mm
    if spacing_mm is None or (ends is not None and ends[0] <= spacing_mm <= ends[1]):
        return
    own = ", ".join(f"{s:g}" for s in model.card.preprocessing.spacing_mm)
    expected = f"its own, {own} mm" if ends is None else f"{ends[0]:g} to {ends[1]:g} mm"
    raise InputError(f"a spacing of {spacing_mm:g} mm for the model {model.card.name}", expected, "leave it out")


def missed_remark(clicks: Sequence[Point], grid: Grid, holds: Callable[[Sequence[int]], bool]) -> list[str]:
    """A remark on the positive clicks that a mask does not hold, if there are any."""
    places = [click.index_on(grid) for click in clicks if click.positive]
    missed = [place for place in places if not holds(grid.voxel_of(place).tolist())]
    listed = "; ".join(",".join(f"{i:g}" for i in index) for index in missed)
    return [f"not in the mask, though clicked as tumour: {listed}; look at the result with care"] * bool(missed)


def air_remarks(scan: Volume, clicks: Sequence[Point]) -> list[str]:
    """A remark for each positive click with nothing but air around it (CT), or in the empty margin of an MR scan."""
    remarks = []
    for click in (click for click in clicks if click.positive):
        at = scan.grid.voxel_of(click.index_on(scan.grid))
        near = scan.array[tuple(slice(max(0, v - 1), v + 2) for v in at.tolist())]
        place = ",".join(map(str, at.tolist()))
        if scan.modality == "CT" and float(near.max()) <= AIR_HU:
            remarks.append(f"the click at {place} lies in air ({float(np.median(near)):.0f} HU): is it in the tumour?")
        elif scan.modality == "MR" and not near.any():
            remarks.append(f"the click at {place} lies outside the patient: all is 0 there; is it in the tumour?")
    return remarks
