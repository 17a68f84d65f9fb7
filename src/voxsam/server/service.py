"""Service: the parts of one running server, made from its settings; what every router is given."""

from __future__ import annotations

from dataclasses import dataclass

from voxsam.model import load_model
from voxsam.model.promptable import Promptable
from voxsam.server.device import Device
from voxsam.server.settings import Settings
from voxsam.server.store import Limits, Store


@dataclass(frozen=True)
class Service:
    """Settings, device and store."""

    settings: Settings
    device: Device
    store: Store

    @classmethod
    def start(cls, settings: Settings, model: Promptable | None = None) -> Service:
        """Load the model (unless one is given) and begin. Raises InputError for what cannot be used."""
        import voxsam.systems  # noqa: F401, their model files are known, too

        device = Device(model or load_model(settings.model, settings.device))
        limits = Limits(settings.capacity, settings.memory_bytes, settings.idle_s, settings.alive_s)
        return cls(settings, device, Store(device, limits))

    def close(self) -> None:
        """Release all sessions and stop the device."""
        self.store.close()
        self.device.close()
