"""Settings: what a server is told when it starts. The command line fills them in; tests make their own."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr

GIB = 1 << 30
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class Settings(BaseModel):
    """One server. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="The address that it listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free one.")
    key: SecretStr | None = Field(default=None, description="What clients must show; None: everyone is let in.")
    cors: tuple[str, ...] = Field(default=(), description="Other origins whose pages may call, as https://name:port.")

    folders: tuple[Path, ...] = Field(
        default=(), description="Scans in these, and nowhere else, may be opened by path."
    )
    demo: bool = Field(default=True, description="Whether a generated scan is offered.")
    state: Path | None = Field(
        default=None, description="Where uploads and the work lie; None: nothing outlives the server."
    )

    model: str = Field(default="voxsam-tiny", description="A name or a .safetensors file.")
    device: str = Field(default="auto", description="auto, cpu, cuda or mps.")

    capacity: PositiveInt = Field(default=16, description="Sessions that may be open at once.")
    memory_bytes: PositiveInt = Field(default=4 * GIB, description="Of open scans and their features together.")
    upload_bytes: PositiveInt = Field(default=2 * GIB, description="Of one upload, all its files together.")
    most_voxels: PositiveInt = Field(default=1 << 29, description="Of one scan: 512 x 512 x 2048.")
    idle_s: PositiveFloat = Field(default=1800.0, description="A session that nobody used for so long is closed.")
    alive_s: PositiveFloat = Field(default=60.0, description="A session whose client gave no sign of life is closed.")
    body_s: PositiveFloat = Field(default=20.0, description="The longest pause within a request's body.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOCAL_HOSTS
