"""Settings: what a server is started with. The command line fills them in; tests make their own."""

from __future__ import annotations

import ipaddress
import socket
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, field_validator

from voxsam.errors import InputError

GIB = 1 << 30


class Settings(BaseModel):
    """One server. Sizes in bytes, times in seconds. Raises InputError for a key that no request could send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="The address that it listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free one.")
    key: SecretStr | None = Field(default=None, description="What clients must show; None: everyone is let in.")
    cors: tuple[str, ...] = Field(default=(), description="Other origins whose pages may call, as https://name:port.")
    hosts: tuple[str, ...] = Field(default=(), description="Names, beside this machine's own, that it is called by.")

    folders: tuple[Path, ...] = Field(
        default=(), description="Scans in these, and nowhere else, may be opened by path."
    )
    demo: bool = Field(default=True, description="Whether a generated scan is offered.")
    state: Path | None = Field(
        default=None, description="Where uploads and the work lie; None: nothing outlives the server."
    )

    project: Path | None = Field(
        default=None, description="The project whose scans are worked through; its model answers."
    )
    learn_minutes: PositiveFloat = Field(default=20.0, description="That a learning of the project may take.")
    learn_command: tuple[str, ...] = Field(
        default=(), description="What learns, followed by the project and the minutes; (): this VoxSAM, as a process."
    )

    web: Path | None = Field(
        default=None, description="The page with its engine in the browser, as `make web` builds it: served at /local/."
    )

    model: str = Field(default="voxsam-tiny", description="A name or a .safetensors file.")
    device: str = Field(default="auto", description="auto, cpu, cuda or mps.")

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(1.0, 1.0, 1.0), description="Of images along x, y, z, where a client does not say it (ITK-SNAP)."
    )

    capacity: PositiveInt = Field(default=16, description="Sessions that may be open at once.")
    memory_bytes: PositiveInt = Field(
        default=4 * GIB, description="Of requests being read, open scans, their masks, steps and features together."
    )
    upload_bytes: PositiveInt = Field(default=2 * GIB, description="Of one upload, all its files together.")
    max_voxels: PositiveInt = Field(default=1 << 29, description="Of one scan: 512 x 512 x 2048.")
    idle_s: PositiveFloat = Field(default=1800.0, description="A session that nobody used for so long is closed.")
    alive_s: PositiveFloat = Field(default=60.0, description="A session whose client gave no sign of life is closed.")
    head_s: PositiveFloat = Field(default=5.0, description="The longest that a request's head may take.")
    body_s: PositiveFloat = Field(default=20.0, description="The longest pause within a request's body.")
    read_s: PositiveFloat = Field(default=120.0, description="The longest that reading a scan may take.")

    @field_validator("key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        word = key.get_secret_value()
        if not word or not word.isascii() or not word.isprintable() or word != word.strip():
            given = "a key with spaces at its ends, or with characters beyond ASCII" if word.strip() else "an empty key"
            raise InputError(given, "letters, digits and signs of ASCII", "make one with: openssl rand -hex 16")
        return key

    @field_validator("web")
    @classmethod
    def _check_web(cls, web: Path | None) -> Path | None:
        if web is not None and not (web / "service-worker.js").is_file():
            raise InputError(f"--web {web}", "the folder that `make web` builds", "build it, or name dist/web")
        return web

    @cached_property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server: by the addresses `host` resolves to, not by its spelling."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)
