"""Served folders: their contents are listed; anything outside, by dots, links or absolute paths, is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from voxsam.errors import FileError
from voxsam.geometry import Grid
from voxsam.io import write_volume
from voxsam.server.errors import Forbidden, Full, NotThere
from voxsam.server.folders import Folders
from voxsam.server.messages import FolderSource
from voxsam.server.scans import Reader
from voxsam.server.sessions import Memory
from voxsam.server.settings import Settings
from voxsam.server.store import Store
from voxsam.volume import Volume


@pytest.fixture
def tree(tmp_path) -> Path:
    """A served folder `in`, and `out` beside it."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "b", inside / "series", outside):
        folder.mkdir(parents=True)
    for file in (inside / "z.nii.gz", inside / "b" / "a.NRRD", outside / "secret.nii.gz", inside / ".hidden.nii"):
        file.write_bytes(b"12345")
    (inside / "notes.txt").write_text("no scan")
    (inside / "series" / "1").write_bytes(bytes(128) + b"DICM")
    (inside / "b" / "good").symlink_to(inside / "z.nii.gz")
    (inside / "bad.nii.gz").symlink_to(outside / "secret.nii.gz")
    (inside / "badfolder").symlink_to(outside)
    (inside / "ring").symlink_to(inside / "ring")
    return inside


def test_folders_come_first_and_only_scans_are_listed(tree):
    folders = Folders((tree,))
    assert [(f.id, f.name) for f in folders.listed] == [("0", "in")]
    entries = [(e.name, e.kind, e.path, e.bytes) for e in folders.entries("0", "")]
    assert entries == [
        ("b", "folder", "b", 0),
        ("series", "series", "series", 0),
        ("z.nii.gz", "scan", "z.nii.gz", 5),
    ]
    assert [e.path for e in folders.entries("0", "b")] == ["b/a.NRRD"]


def test_links_work_as_long_as_they_stay_inside(tree):
    assert Folders((tree,)).find("0", "b/good") == tree / "z.nii.gz"


@pytest.mark.parametrize(
    "path",
    ["..", "../out/secret.nii.gz", "b/../../out/secret.nii.gz", "bad.nii.gz", "badfolder", "badfolder/secret.nii.gz"]
    + ["/etc/passwd", "b\\..\\..\\out", "b\0", "b/..", "//etc"],
)
def test_whatever_leads_outside_is_forbidden(tree, path):
    with pytest.raises(Forbidden, match="a path outside the served folders"):
        Folders((tree,)).find("0", path)


@pytest.mark.parametrize("path", ["nothing", "b/nothing/more", "ring", "x" * 5000, "z.nii.gz/x"])
def test_what_is_not_there_is_not_found(tree, path):
    with pytest.raises(NotThere):
        Folders((tree,)).find("0", path)


def test_a_folder_that_may_not_be_read_is_refused_in_words(tree, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(NotThere, match="^a folder that cannot be read; expected one that the server may read; choose"):
        Folders((tree,)).entries("0", "b")


def test_a_folder_that_is_not_served_is_not_found(tree):
    for number in ("1", "", "in", "-1"):
        with pytest.raises(NotThere, match="a folder that is not served"):
            Folders((tree,)).find(number, "")


def test_a_series_with_a_file_from_outside_is_forbidden(tree):
    folders = Folders((tree,))
    assert folders.find_scan("0", "series") == tree / "series"
    os.symlink(tree.parent / "out" / "secret.nii.gz", tree / "series" / "2")
    with pytest.raises(Forbidden):
        folders.find_scan("0", "series")


def test_a_folder_that_does_not_exist_is_reported_at_the_start(tmp_path):
    with pytest.raises(FileError, match="expected a folder of scans"):
        Folders((tmp_path / "no",))


def test_a_scan_counts_twice_while_its_reader_sends_it(tmp_path):
    (tmp_path / "in").mkdir()
    array = np.random.default_rng(3).integers(-1000, 1000, (256, 256, 160)).astype(np.int16)
    write_volume(Volume(array, Grid.from_spacing(array.shape, (1, 1, 2)), "CT"), tmp_path / "in" / "ct.nrrd")
    store = Store(tmp_path / "state")
    try:
        settings = Settings(folders=(tmp_path / "in",))

        def read(nbytes: int) -> int:
            memory = Memory(nbytes)
            reader = Reader(settings, Folders(settings.folders, store.scratch), store, memory)
            reader.read(FolderSource(folder="0", path="ct.nrrd"))
            return memory.taken

        assert read(4 * array.nbytes) == array.nbytes
        assert read(3 * array.nbytes // 2) == array.nbytes
        with pytest.raises(Full, match="MiB beside .* that are taken; expected at most 26 MiB together"):
            read(4 * array.nbytes // 3)
    finally:
        store.close()
