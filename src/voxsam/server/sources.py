"""Where a scan comes from: the generated one, a served folder, or an upload; and how it is read within limits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DemoSource(_Source):
    """The generated scan of `voxsam demo`."""

    demo: Literal[True]


class FolderSource(_Source):
    """A file or a DICOM folder in a served folder."""

    folder: str = Field(max_length=16, description="The id of a folder in /api/info.", examples=["0"])
    path: str = Field(max_length=4096, description="As listed by /api/files.", examples=["patient1/ct.nii.gz"])


class UploadSource(_Source):
    """Files that were sent to /api/uploads."""

    upload: str = Field(max_length=64, description="The id that /api/uploads gave.")


Source = DemoSource | FolderSource | UploadSource
