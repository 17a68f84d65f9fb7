"""Images that clients request masks of: opened at the first request, kept with their encoded crops for later ones.

The protocol is stateless: every request brings all clicks, so clients that request the same image share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from voxsam.errors import PromptError
from voxsam.geometry import Grid
from voxsam.interactive.predictor import Predictor
from voxsam.network.promptable import Promptable
from voxsam.prompts import Box, Point, Prompt
from voxsam.server.errors import Full
from voxsam.server.messages import MAX_PROMPTS, Source
from voxsam.server.service import Service
from voxsam.server.sessions import OpenSession
from voxsam.volume import Volume

Index = tuple[float, float, float]
Points = Annotated[list[Index], Field(max_length=MAX_PROMPTS)]


class Params(BaseModel):
    """The parameters of a request: clicks as voxel indices (i, j, k), and how the mask is to be written.

    `roi`: (i0, i1, j0, j1, k0, k1), the voxels that the mask must stay within. Other keys are ignored.
    """

    foreground: Points = []
    background: Points = []
    roi: tuple[float, float, float, float, float, float] | tuple[()] = ()
    result_extension: str = ".nii.gz"
    result_compress: bool = True

    def prompts(self, grid: Grid) -> list[Prompt]:
        """The prompts for a predictor; none without a click on the tumour. Raises PromptError."""
        found: list[Prompt] = [Point.at_index(grid, index) for index in self.foreground]
        found += [Point.at_index(grid, index, positive=False) for index in self.background]
        if self.roi:
            ends = np.reshape(self.roi, (3, 2)).clip(0, np.array(grid.shape)[:, None] - 1)
            if not self.foreground:
                raise PromptError("a region without a click", "clicks in it", "click the tumour, too")
            inside = Point.at_index(grid, self.foreground[0]).world_mm
            box = Box.at_index(grid, ends[:, 0].tolist(), ends[:, 1].tolist())
            found.append(Box(box.corner_mm, box.opposite_mm, inside))
        return found if self.foreground else []


class Segmenter:
    """Makes the masks of one image; used on the worker's thread only."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def features_bytes(self) -> int:
        """Memory of the encoded crops."""
        return self.predictor.encoded.nbytes

    @property
    def predictions_bytes(self) -> int:
        """Nothing is kept between requests but a standardised image, if the model sees one."""
        return self.predictor.standardised_bytes

    def forget_features(self) -> None:
        """Free the encoded crops."""
        self.predictor.forget_features()

    def mask(self, prompts: Sequence[Prompt]) -> Volume:
        """The mask of all prompts, on the image's grid; an empty one without any."""
        if prompts:
            return self.predictor.predict(prompts).mask
        volume = self.predictor.volume
        return Volume(np.zeros(volume.grid.shape, dtype=np.uint8), volume.grid, "SEG", volume.header)


class Image(OpenSession):
    """An open image. Its clients send no heartbeats: it ends when it has not been used for `idle_s`."""

    kind = "an image of MONAI Label's clients"

    def make(self, model: Promptable, volume: Volume, undo_bytes: int) -> Segmenter:
        """Make the image's segmenter."""
        return Segmenter(Predictor(model, progress=self.report).set_image(volume))

    @property
    def lease_s(self) -> float:
        """Seconds until the image is closed if it is not used."""
        return max(0.0, self.used + self.sessions.limits.idle_s - self.sessions.clock())


class Images:
    """Opens images, one at a time, and finds those that are open."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._opening = asyncio.Lock()

    async def find(self, name: str) -> Image | None:
        """An image that is open, or None."""
        async with self._opening:
            return self.service.sessions.find(Image, name)

    async def open(self, name: str, source: Source) -> Image:
        """The image of a source under a name, read if it is not open. If the server is full, other images that nobody
        waits for are closed first. Raises InputError.
        """
        sessions = self.service.sessions
        async with self._opening:
            while True:
                try:
                    return sessions.find(Image, name) or await self._read(name, source)
                except Full:
                    others = [image for image in sessions.open if isinstance(image, Image) and not image.pending]
                    if not others:
                        raise
                    sessions.release(min(others, key=lambda image: image.used).id)

    async def _read(self, name: str, source: Source) -> Image:
        image = self.service.sessions.claim(Image, name)
        try:
            with image.held():
                async with self.service.saved.reading:
                    scan = await asyncio.to_thread(self.service.saved.reader.read, source)
                image.open(scan.volume, scan.part)
        except BaseException:
            self.service.sessions.release(name)
            raise
        return image
