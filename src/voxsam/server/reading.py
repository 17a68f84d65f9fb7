"""Reader: the scan of a source, read within the server's limits."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from voxsam.errors import InputError
from voxsam.io import NIFTI_SUFFIXES, guarded, read_volume
from voxsam.io.checks import at_most
from voxsam.server.archive import Archive
from voxsam.server.errors import NotThere
from voxsam.server.folders import SCAN_SUFFIXES, Folders
from voxsam.server.settings import Settings
from voxsam.server.sources import DemoSource, FolderSource, Source
from voxsam.server.uploads import sent_name
from voxsam.volume import Volume

DEMO_NAME, SENT_SERIES = "generated scan", "DICOM series"


class Reader:
    """Reads scans of every kind of source."""

    def __init__(self, settings: Settings, folders: Folders, archive: Archive) -> None:
        self.settings, self.folders, self.archive = settings, folders, archive

    def read(self, source: Source) -> Volume:
        """The scan. Raises InputError: for what is no scan, is not there, lies outside, or is too large."""
        if isinstance(source, DemoSource):
            return self._demo
        path, most = self._path(source), self.settings.most_voxels
        try:
            if path.name.lower().endswith(NIFTI_SUFFIXES):  # read in Python, every length checked first
                with at_most(most):
                    return read_volume(path)
            memory_bytes, scratch = self.settings.memory_bytes, self.archive.scratch
            return guarded.read_volume(path, memory_bytes=memory_bytes, max_voxels=most, temporary=scratch)
        except InputError as error:
            if isinstance(source, FolderSource) or path.name not in error.given:
                raise
            given = error.given.replace(path.name, "the upload" if path.is_dir() else sent_name(path))
            raise type(error)(given, error.expected, error.remedy) from error

    def name(self, source: Source) -> str:
        """What to call the scan if the client does not say."""
        if isinstance(source, DemoSource):
            return DEMO_NAME
        path = self._path(source)
        return path.name if isinstance(source, FolderSource) else SENT_SERIES if path.is_dir() else sent_name(path)

    @cached_property
    def _demo(self) -> Volume:
        if not self.settings.demo:
            raise NotThere("the demo scan", "an upload or a served folder", "this server offers no demo scan")
        from voxsam.phantoms.demo_scan import demo_phantom

        return demo_phantom().scan

    def _path(self, source: Any) -> Path:
        if isinstance(source, FolderSource):
            return self.folders.find_scan(source.folder, source.path)
        folder = self.archive.upload_folder(source.upload)
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]  # not what is still coming
        alone = len(files) == 1 and files[0].name.lower().endswith(SCAN_SUFFIXES)
        return files[0] if alone else folder
