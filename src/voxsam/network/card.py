"""Card: what a checkpoint says about itself, the JSON metadata of a model file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, computed_field, model_validator

from voxsam.network.calibration import Calibration
from voxsam.network.classes import Classes
from voxsam.network.conditioning import Conditioning
from voxsam.network.sizes import ModelConfig
from voxsam.preprocess import Preprocessing

FORMAT_VERSION = 1


class Card(BaseModel):
    """Name, sizes, preprocessing, supported prompts, and where the weights come from.

    `description` is text for people; its usual keys are "data", "licence", "training", "source". The last three fields
    are filled in by `save_model`: a file can be a delta, which holds only the tuned tensors and names its base by hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["voxsam"] = "voxsam"
    format_version: int = FORMAT_VERSION
    name: str
    system: str = "voxsam"  # the kind of network; voxsam.lab.systems has others
    options: dict[str, JsonValue] = {}  # what such a network is built with besides `config`
    config: ModelConfig
    preprocessing: Preprocessing
    description: dict[str, str] = {}
    conditioning: Conditioning | None = (
        None  # how clicks bind the prediction (voxsam.network.conditioning); None: they do not
    )
    mirrored: bool = False  # an answer is the mean of the logits in a crop and in its mirror image
    calibration: Calibration | None = (
        None  # how sure of a mask it is (voxsam.network.calibration); None: not calibrated
    )
    classes: Classes | None = None  # the kinds of structure it distinguishes; None: whatever is clicked is the tumour
    automatic: bool = False  # trained without clicks, the prompt encoder left out (paper, Sec. 4.3)
    recipe: dict[str, JsonValue] = {}  # the training recipe as it was run
    scores: dict[str, float] = {}  # on the recipe's held-out cases, e.g. {"dice": 0.81}
    trained_on: dict[str, dict[str, str]] = {}  # data set -> case -> content (voxsam.seen); its start model's, too
    frozen_sha256: str | None = None  # of the frozen tensors (voxsam.network.tuning.frozen_sha256)
    delta_of: str | None = None  # a delta: the frozen_sha256 of its base
    base_name: str | None = None  # a delta: the name of its base, for people

    @property
    def seen(self) -> dict[str, dict[str, str]]:
        """`trained_on`; if it is empty, an entry for what the model was trained on, which cannot be looked up."""
        return self.trained_on or {f"what {self.name} was trained on": {}}

    def having_seen(self, more: Mapping[str, Mapping[str, str]]) -> Card:
        """The card of a network that was also trained on these cases."""
        seen = {name: {**self.trained_on.get(name, {}), **more.get(name, {})} for name in {**self.trained_on, **more}}
        return self.model_copy(update={"trained_on": seen})

    @model_validator(mode="before")
    @classmethod
    def _drop_derived(cls, fields: Any) -> Any:
        """Drop `prompts`, which is written for readers with other tools; here it follows from the configuration."""
        if isinstance(fields, dict):
            return {key: value for key, value in fields.items() if key != "prompts"}
        return fields

    @model_validator(mode="after")
    def _same_channels(self) -> Card:
        images, channels = self.preprocessing.channels, self.config.channels
        if images != channels:
            plural = "" if images == 1 else "s"
            raise ValueError(f"{images} image{plural} in preprocessing for a network of {channels} channels")
        return self

    @computed_field
    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that the model takes: all become points, and negative ones need a learned polarity."""
        if self.automatic:
            return ()
        negative = ("negative",) if self.config.polarity else ()
        return ("positive", *negative, "box", "scribble", "hint")
