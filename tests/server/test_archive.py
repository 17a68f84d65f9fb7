"""The state folder: works and uploads come back, go when they should, and are for their owner alone."""

from __future__ import annotations

import os
import stat
import time

import pytest

from voxsam.errors import FileError
from voxsam.server.archive import Archive, Work
from voxsam.server.errors import NotThere
from voxsam.server.sources import DemoSource, UploadSource

NAME = "a" * 24


def work(name=NAME, source=None):
    return Work(id=name, name="ct", model="stub", source=source or DemoSource(demo=True))


def age(path, days):
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_a_work_comes_back_as_it_was_saved(tmp_path):
    archive = Archive(tmp_path / "state")
    archive.save(work())
    archive.close()
    assert Archive(tmp_path / "state").load(NAME) == work()
    for folder in (archive.folder, archive.works, archive.uploads, archive.scratch):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../../../etc/passwd", "..", "", "a/b/c/d/e/f", "b" * 24, "x" * 300, "nul\0nul\0nul"])
def test_no_other_name_finds_a_file(tmp_path, name):
    archive = Archive(tmp_path)
    archive.save(work())
    with pytest.raises(NotThere):
        archive.load(name)
    with pytest.raises(NotThere):
        archive.upload_folder(name)


def test_a_damaged_work_is_told_in_words(tmp_path):
    archive = Archive(tmp_path)
    archive.save(work())
    (archive.works / f"{NAME}.json").write_text('{"id": ')
    with pytest.raises(FileError, match="whose file is damaged"):
        archive.load(NAME)


def test_an_upload_goes_with_the_last_work_that_needs_it(tmp_path):
    archive = Archive(tmp_path)
    upload = archive.new_upload()
    (archive.upload_folder(upload) / "ct.nii").write_bytes(b"1")
    for name in (NAME, "b" * 24):
        archive.save(work(name, UploadSource(upload=upload)))
    archive.delete(NAME)
    assert archive.upload_folder(upload).is_dir()
    archive.delete("b" * 24)
    with pytest.raises(NotThere):
        archive.upload_folder(upload)
    with pytest.raises(NotThere):
        archive.delete(NAME)


def test_tidying_removes_what_nobody_needs_and_nothing_else(tmp_path):
    archive = Archive(tmp_path)
    needed, orphan, fresh = (archive.new_upload() for _ in range(3))
    archive.save(work(NAME, UploadSource(upload=needed)))
    archive.save(work("b" * 24))
    (archive.works / ".1234-b.json").touch()  # of a server that was killed while it wrote
    age(archive.works / f"{'b' * 24}.json", 31)
    for path in (archive.upload_folder(needed), archive.upload_folder(orphan), archive.works / ".1234-b.json"):
        age(path, 2)
    age(archive.scratch_folder(), 2)
    archive.tidy()
    assert {f.name for f in archive.works.iterdir()} == {f"{NAME}.json"}
    assert {f.name for f in archive.uploads.iterdir()} == {needed, fresh}
    assert not list(archive.scratch.iterdir())


def test_tidying_goes_on_when_a_file_vanishes_meanwhile(tmp_path):
    archive = Archive(tmp_path)
    archive.save(work())
    age(archive.works / f"{NAME}.json", 31)
    for folder in (archive.works, archive.uploads, archive.scratch):
        (folder / "gone.json").symlink_to(tmp_path / "nowhere")  # is listed, and cannot be looked at
    archive.tidy()
    assert not (archive.works / f"{NAME}.json").exists()


def test_a_work_that_was_opened_stays(tmp_path):
    archive = Archive(tmp_path)
    archive.save(work())
    age(archive.works / f"{NAME}.json", 31)
    archive.load(NAME)
    archive.tidy()
    assert archive.load(NAME) == work()


def test_without_a_folder_nothing_outlives_the_server():
    archive = Archive(None)
    archive.save(work())
    assert archive.load(NAME) == work()
    folder = archive.folder
    archive.close()
    assert not folder.exists()


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError):
        Archive(tmp_path / "file" / "state")


def test_two_servers_do_not_work_in_one_state_folder(tmp_path):
    first = Archive(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for name in ("state", "link"):
        with pytest.raises(FileError, match="in which another server works; expected a folder for each server"):
            Archive(tmp_path / name)
    first.close()
    Archive(tmp_path / "link").close()
