"""atomic_path: the target is complete or stays as it was, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from voxsam.atomic import atomic_folder, atomic_path, check_writable, make_folder, refuse_inputs, remove_leftovers
from voxsam.errors import FileError


def test_the_target_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "mask.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert not target.exists()
        assert temporary.parent == tmp_path and temporary.name.endswith(".nii.gz")
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["mask.nii.gz"]


def test_an_existing_file_is_replaced(tmp_path):
    target = tmp_path / "mask.mha"
    target.write_bytes(b"old")
    with atomic_path(str(target)) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "mask.mha"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["mask.mha"]


def test_a_full_disk_is_told_in_one_line(tmp_path):
    words = r"mask.mha could not be written \(No space left on device\); expected a folder that takes files; check"
    with pytest.raises(FileError, match=words), atomic_path(tmp_path / "mask.mha") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_refuses_a_missing_folder(tmp_path):
    words = "the output folder .*nowhere does not exist; expected an existing folder; create it first"
    with pytest.raises(FileError, match=words), atomic_path(tmp_path / "nowhere" / "mask.mha"):
        pytest.fail("the block must not run")


def test_refuses_a_folder_as_target(tmp_path):
    with pytest.raises(FileError, match="is a folder; expected the name of a file"), atomic_path(tmp_path):
        pytest.fail("the block must not run")


def test_refuses_a_folder_that_takes_no_files(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may write anywhere, so the refusal is played
    words = r"could not be written \(Permission denied\); expected a folder that takes files"
    with pytest.raises(FileError, match=words), atomic_path(tmp_path / "mask.mha"):
        pytest.fail("the block must not run")


def test_a_disk_that_is_read_only_is_told_in_one_line(tmp_path, monkeypatch):
    """On such a disk, even removing a file that does not exist fails."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("open", "unlink"):
        monkeypatch.setattr(f"os.{name}", read_only)
    with pytest.raises(
        FileError, match=r"m\.nii could not be written \(Read-only file system\); expected a folder that"
    ):
        check_writable(tmp_path / "m.nii")


@pytest.mark.parametrize("what", ["loop", "disk", "read-only"])
def test_a_folder_that_could_not_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch, what):
    target, says = tmp_path / "out", {"loop": "Too many levels of", "disk": "it is the root of a", "read-only": "Perm"}
    if what == "loop":
        target.symlink_to(target)
    else:
        target.mkdir()
        (target / "older").write_text("mine")
        if what == "disk":
            monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
        else:  # root may write anywhere, so the refusal is played
            monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (target, os.W_OK))
    with pytest.raises(FileError, match=rf"out could not be written \({says[what]}"), atomic_folder(target):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == [target]
    assert what == "loop" or (target / "older").read_text() == "mine"


def test_what_cannot_be_removed_does_not_end_a_run(tmp_path, monkeypatch):
    left = tmp_path / ".01234567-m.nii"
    left.write_bytes(b"half")
    remove_leftovers(tmp_path, "m.mha")
    assert left.exists()
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", lambda *_, **__: os.rmdir(left))  # an OSError
        remove_leftovers(tmp_path, "m.nii")
    assert left.exists()
    remove_leftovers(tmp_path, "m.nii")
    assert not left.exists()


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real.mha", tmp_path / "link.mha"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"


def test_the_file_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_path(tmp_path / "atomic"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_whether_a_file_can_be_made_is_tried_and_leaves_nothing(tmp_path):
    (tmp_path / "mask.mha").write_bytes(b"old")
    check_writable(tmp_path / "mask.mha")
    check_writable(tmp_path / "new.mha")
    assert os.listdir(tmp_path) == ["mask.mha"]
    assert (tmp_path / "mask.mha").read_bytes() == b"old"
    with pytest.raises(FileError, match="the output folder .*nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "mask.mha")
    with pytest.raises(FileError, match="is a folder"):
        check_writable(tmp_path)


def test_a_folder_is_made_with_those_above_it_or_refused(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file \(File exists\); expected a folder that can be made; choose another"):
        make_folder(tmp_path / "file")


def test_no_output_is_an_input_under_another_name(tmp_path):
    scan, absent = tmp_path / "scan.mha", tmp_path / "absent.mha"
    scan.touch()
    (tmp_path / "link.mha").symlink_to(scan)
    os.link(scan, tmp_path / "hard.mha")
    for name in ("scan.mha", "link.mha", "hard.mha", "absent.mha"):
        with pytest.raises(FileError, match=f"{name} is an input itself; expected another file for the output; rename"):
            refuse_inputs([tmp_path / "free.mha", tmp_path / "." / name], [scan, absent], "rename it")
    refuse_inputs([tmp_path / "free.mha"], [scan, absent], "rename it")
