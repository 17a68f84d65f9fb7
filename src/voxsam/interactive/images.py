"""A scan as a model expects it: as many images as it was trained on, standardised where it asks for that."""

from __future__ import annotations

from collections.abc import Sequence

from voxsam.errors import UnsupportedError
from voxsam.io.checks import not_hounsfield
from voxsam.network.promptable import Promptable
from voxsam.preprocess import Intensity, standardised
from voxsam.volume import Volume


def images_for(model: Promptable, images: Sequence[Volume]) -> tuple[tuple[Volume, ...], list[str]]:
    """The images of one patient as the model expects them, in its order of training, and the remarks on them.

    The mask has the grid of the first. An image of a modality that the model was not trained on gets a remark, and is
    standardised to the model's mean and s.d. if the model asks for it. Raises UnsupportedError for a wrong number.
    """
    preprocessing = model.card.preprocessing
    each = [preprocessing.channel(number) for number in range(preprocessing.channels)]
    if len(images) != len(each):
        raise UnsupportedError(
            f"{len(images)} image{'' if len(images) == 1 else 's'} for the model {model.card.name}",
            f"{len(each)} of the same patient ({', '.join(one.modality or 'any' for one in each)})",
            "give them in the order in which the model was trained",
        )
    taken, remarks = [], [remark for image in images for remark in image.remarks]
    for image, wanted in zip(images, each, strict=True):
        other = _other_modality(image, wanted.modality)
        if other:
            what = "; its intensities were standardised" if wanted.standardise_others else ""
            remarks.append(f"{other}{what}; look at the mask with care")
        taken.append(_standardised(image, wanted, bool(other)))
    return tuple(taken), list(dict.fromkeys(remarks))


def _other_modality(image: Volume, known: str) -> str:
    """Why the image is not, or may not be, of the modality a model was trained on; "" if it is."""
    if image.modality and known and image.modality != known:
        return f"the scan is {image.modality}, the model was trained on {known}"
    if known == "CT" and not image.modality and (doubt := not_hounsfield(image.array)):
        return f"the model was trained on CT, and the scan may be none: {doubt}"
    return ""


def _standardised(image: Volume, wanted: Intensity, other: bool) -> Volume:
    if wanted.per_scan:
        return standardised(image)
    if other and wanted.standardise_others:
        return standardised(image, wanted.mean, wanted.sd)
    return image
