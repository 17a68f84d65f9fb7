"""Service: the parts of one running server, made from its settings; what every router is given."""

from __future__ import annotations

from dataclasses import dataclass

from voxsam.kernels.warm_up import warm_up
from voxsam.network.promptable import Promptable
from voxsam.server.archive import Archive
from voxsam.server.desk import Desk
from voxsam.server.device import Device
from voxsam.server.folders import Folders
from voxsam.server.observe import Metrics
from voxsam.server.reading import Reader
from voxsam.server.settings import Settings
from voxsam.server.store import Limits, Store
from voxsam.server.uploads import Uploads
from voxsam.weights import load_model


@dataclass(frozen=True)
class Service:
    """What runs, from the ground up: `device` and `store` serve every protocol, `desk` the page and programs."""

    settings: Settings
    device: Device
    store: Store
    folders: Folders
    archive: Archive
    uploads: Uploads
    desk: Desk
    metrics: Metrics

    @classmethod
    def start(cls, settings: Settings, model: Promptable | None = None) -> Service:
        """Load the model (unless one is given) and begin. Raises InputError for what cannot be used."""
        folders = Folders(settings.folders)
        model = model or load_model(settings.model, settings.device)
        archive = Archive(settings.state)
        warm_up(model)
        device = Device(model)
        store = Store(device, Limits(settings.capacity, settings.memory_bytes, settings.idle_s, settings.alive_s))
        metrics = Metrics(store)
        desk = Desk(store, Reader(settings, folders, archive), archive, metrics.step)
        uploads = Uploads(archive, settings.upload_bytes)
        return cls(settings, device, store, folders, archive, uploads, desk, metrics)

    def close(self) -> None:
        """Release all sessions and stop the device; their works stay saved."""
        self.store.close()
        self.device.close()
        self.archive.close()
