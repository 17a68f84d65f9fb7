"""Reading in a separate process: the same volume, the same messages, and no harm if that process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from voxsam.errors import FileError, ImageError
from voxsam.io import guarded, read_volume, write_volume
from voxsam.testing import stub_scan

ROOM = 512 << 20
"""Bytes that a reader gets here: plenty."""
# What the reader does instead of reading; run in its process by sitecustomize.
BROKEN = """
import os, signal, time, sys
if "voxsam.io.guarded" in " ".join(sys.orig_argv):
    import voxsam.io
    def read(path, **_):
        open(os.path.join(os.environ["TMPDIR"], "slice.dcm"), "wb").write(b"a patient's")
        {act}
    voxsam.io.read_volume = read
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Replace reading by something else, in the reader's process."""

    def break_with(act: str) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN.format(act=act))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    (tmp_path / "ct.nrrd").write_bytes(b"x")
    (tmp_path / "own").mkdir()
    return break_with


def read_broken(tmp_path, **options):
    return guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM, temporary=tmp_path / "own", **options)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_it_is_the_volume_that_is_read_here(tmp_path, name):
    write_volume(stub_scan().scan, tmp_path / name)
    here, there = read_volume(tmp_path / name), guarded.read_volume(tmp_path / name, memory_bytes=ROOM)
    np.testing.assert_array_equal(there.array, here.array)
    np.testing.assert_array_equal(there.grid.affine, here.grid.affine)
    assert there.array.dtype == here.array.dtype and there.modality == here.modality == "CT"
    assert there.header.keys() == here.header.keys() and there.array.flags.writeable


def test_a_series_keeps_what_a_mask_needs_of_it(tmp_path, write_series):
    write_series(tmp_path / "series")
    here = read_volume(tmp_path / "series").header["dicom"]
    there = guarded.read_volume(tmp_path / "series", memory_bytes=ROOM).header["dicom"]
    assert there.frames == here.frames and there.common == here.common


def test_a_refusal_is_in_the_same_words_but_for_the_name(tmp_path):
    (tmp_path / "0f-x.nrrd").write_bytes(b"no scan")
    with pytest.raises(FileError, match=r"^Meier\.nrrd does not hold an NRRD image"):
        guarded.read_volume(tmp_path / "0f-x.nrrd", name="Meier.nrrd", memory_bytes=ROOM)
    write_volume(stub_scan().scan, tmp_path / "ct.nrrd")
    with pytest.raises(ImageError, match="at most 1,000 voxels"):
        guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM, max_voxels=1000)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"ct\.nrrd made its reader fail \(SIGSEGV\)"),
        ("os.abort()", r"made its reader fail \(SIGABRT\)"),
        ("os._exit(3)", r"made its reader fail \(status 3\)"),
        ("raise RuntimeError", r"made its reader fail \(status 1\)"),
        ("os.write(1, bytes(100)); os._exit(0)", "made its reader fail"),
    ],
)
def test_a_reader_that_dies_is_told_and_leaves_nothing(tmp_path, broken, act, words):
    broken(act)
    with pytest.raises(FileError, match=words):
        read_broken(tmp_path)
    assert not list((tmp_path / "own").iterdir())


def test_a_reader_that_ends_before_it_is_asked_is_told(tmp_path, monkeypatch):
    start = guarded._start

    def ended(folder):
        process = start(folder)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(guarded, "_start", ended)
    (tmp_path / "ct.nrrd").write_bytes(b"x")
    with pytest.raises(FileError, match=r"ct\.nrrd made its reader fail \(SIGKILL\)"):
        guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM)


def test_a_reader_that_hangs_is_ended(tmp_path, broken):
    broken("time.sleep(100)")
    start = time.monotonic()
    with pytest.raises(FileError, match="took more than 3 s to read"):
        read_broken(tmp_path, time_s=3)
    assert time.monotonic() - start < 20 and not list((tmp_path / "own").iterdir())
    assert not [child for child in psutil.Process().children() if "guarded" in " ".join(child.cmdline())]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_reader_gets_no_more_memory_than_it_may(tmp_path, broken):
    broken("[bytearray(50 << 20) for _ in range(100)]")
    with pytest.raises(FileError, match="needs more than 512 MiB of memory to be read"):
        read_broken(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="who has read how much is Linux's to say")
def test_how_far_reading_is(tmp_path, broken):
    """The reader reads half of the file, then waits to be stopped."""
    (tmp_path / "ct.nrrd").write_bytes(bytes(8 << 20))
    broken("file = open(path, 'rb', buffering=0); file.read(4 << 20); time.sleep(100)")
    heard: list[float] = []

    def report(part: float) -> None:
        heard.append(part)
        if part > 0.4:
            reading.stop.set()

    reading = guarded.Reading(report)
    with pytest.raises(FileError, match="made its reader fail"):
        guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM, reading=reading)
    assert heard[-1] == pytest.approx(0.5, abs=0.05) and heard == sorted(heard)


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    scan = stub_scan().scan
    write_volume(scan, tmp_path / "ct.nrrd")
    asked = []
    guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM, accept=asked.append)
    assert scan.array.nbytes <= asked[0] < scan.array.nbytes + 10_000

    def refuse(nbytes: int) -> None:
        raise ImageError(f"{nbytes} bytes", "less", "wait")

    with pytest.raises(ImageError, match="expected less"):
        guarded.read_volume(tmp_path / "ct.nrrd", memory_bytes=ROOM, accept=refuse)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_reader_ends_with_its_caller(tmp_path, broken):
    broken("time.sleep(100)")
    code = f"from voxsam.io import guarded; guarded.read_volume({str(tmp_path / 'ct.nrrd')!r}, memory_bytes={ROOM})"
    with subprocess.Popen([sys.executable, "-c", code]) as caller:
        watched, end = psutil.Process(caller.pid), time.monotonic() + 30
        while not (children := watched.children()) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(2)
        caller.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive
