"""A recipe's settings of the data engine: the shares of its sources, spacings and intensities."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

Fraction = Annotated[float, Field(ge=0, le=1)]
SOURCES = ("painted", "nodules", "regions", "organs", "sarcomas", "mr")


class EngineSettings(BaseModel):
    """Shares of the samples by their target (they need not add up to 1), and augmentation.

    A lesion's diameter sets the spacing, so that it is a certain number of voxels across, drawn around `voxels_across`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    painted: NonNegativeFloat = 0.62  # lesions painted into backgrounds
    nodules: NonNegativeFloat = 0.15  # real nodules of nodules_lidc in lungs with room
    regions: NonNegativeFloat = 0.08  # stable regions of real scans
    organs: NonNegativeFloat = 0.15  # labels of organs_ct
    sarcomas: NonNegativeFloat = 0.0  # sarcoma_ct
    mr: NonNegativeFloat = 0.0  # lesions of sarcoma_mr and lesions_other, standardised to the model's mean and s.d.
    diameter_mm: tuple[PositiveFloat, PositiveFloat] = (6.0, 150.0)  # of painted lesions, log-uniform
    spacing_mm: tuple[PositiveFloat, PositiveFloat] = (1.0, 4.0)
    voxels_across: PositiveFloat = 24.0  # median length of the target in voxels
    voxels_spread: NonNegativeFloat = 0.35  # s.d. of its logarithm
    any_scale: Fraction = 0.0  # of the crops: any spacing, as in a first look, when the size is not known yet
    neighbours: Fraction = 0.45  # of the painted crops: other similar lesions that are not clicked
    turned: Fraction = 0.5  # of the crops: rotated by up to 20 degrees about each axis
    stretch: NonNegativeFloat = 0.12  # s.d. of the logarithm of each axis's own zoom
    off_centre: Fraction = 0.5  # of the crops: the click lies anywhere in it, as a second click does
    cut: Fraction = 0.15  # of the crops: the scan ends at random margins around the lesion
    contrast: Fraction = 0.25  # of the crops: a random curve, sometimes inverting, maps all intensities, as in MR
    shift_hu: NonNegativeFloat = 25.0
    noise_hu: NonNegativeFloat = 15.0  # largest s.d. of added noise
    blur: Fraction = 0.2  # of the crops: blurred along an axis, as by thick slices

    def shares(self) -> dict[str, float]:
        """The share of each source, normalised to a sum of 1."""
        given = {source: float(getattr(self, source)) for source in SOURCES}
        total = sum(given.values()) or 1.0
        return {source: value / total for source, value in given.items()}
