"""Damaged files of every format: is each read, or refused in one line, in time and within the memory limit?

    python -m benchmarks.fuzz --files 20000 --seed 1 --keep bad

Small sound files are made, and copies of them damaged as by disks, networks and attackers: bits, bytes, lengths and
numbers in headers changed, parts cut off, left out, repeated or zeroed. A separate process reads them, one after
another; a table shows for each format how many were read, refused, and what else happened. The same seed gives the same
files. Exit status 1 if any file ended the process, raised another exception, took too long or too much memory.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

SECONDS, MEMORY_MIB = 20.0, 1024
SHAPE = (20, 24, 6)
LENGTHS = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x30000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
WORDS = (b"-1", b"0", b"3", b"4", b"11", b"1e300", b"nan", b"-inf", b"99999999999999999999", b"%d", b"LIST", b"x", b"")
READ = "read", "refused"


# Sound files


def _array() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    return (10 * (i // 3) - 7 * (j // 4) + 100 * k - 900).astype(np.int16)


def _nifti(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(_array(), np.diag([1.0, 2, 3, 1])), folder / "a.nii")
    return folder / "a.nii"


def _nifti_2_gz(folder: Path) -> Path:
    nib.save(nib.Nifti2Image(_array(), np.diag([1.0, 2, 3, 1])), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def _pair(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(_array(), np.diag([1.0, 2, 3, 1])), folder / "a.img")
    return folder / "a.hdr"


def _itk(name: str, compressed: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(_array().T), str(folder / name), compressed)
        return folder / name

    return make


def _slice(k: int, syntax: str) -> pydicom.Dataset:
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in COMPRESSED else syntax
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, f"1.2.3.{k + 1}", "CT"
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    image.PatientName, image.PatientID, image.SeriesNumber, image.InstanceNumber = "Fuzz", "1", 3, k
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 2.5 * k], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.Columns, image.Rows = [0.7, 0.5], SHAPE[0], SHAPE[1]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = 1, -24
    image.PixelData = _array()[:, :, k].T.tobytes()
    image["PixelData"].VR = "OW"
    return image


COMPRESSED = {RLELossless: "", JPEGLosslessSV1: "JPEG", JPEG2000Lossless: "JPEG2000"}


def _series(syntax: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "ct").mkdir()
        for k in range(SHAPE[2]):
            image = _slice(k, syntax)
            if syntax == RLELossless:
                image.compress(RLELossless)
            elif syntax in COMPRESSED:
                _compress(image, COMPRESSED[syntax], folder / "packed.dcm")
            image.save_as(folder / "ct" / f"{k}.dcm", enforce_file_format=True)
        return folder / "ct"

    return make


def _compress(image: pydicom.Dataset, compressor: str, scratch: Path) -> None:
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(scratch))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(image.pixel_array[None]))
    packed = pydicom.dcmread(scratch)
    image["PixelData"] = packed["PixelData"]
    image.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    scratch.unlink()


def _zip(folder: Path) -> Path:
    source = _series(ExplicitVRLittleEndian)(folder)
    with zipfile.ZipFile(folder / "ct.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.iterdir()):
            archive.write(file, file.name)
    shutil.rmtree(source)
    return folder / "ct.zip"


def _enhanced(folder: Path) -> Path:
    image = _slice(0, ExplicitVRLittleEndian)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    image.NumberOfFrames, image.PixelData = SHAPE[2], _array().T.tobytes()
    shared, frames = pydicom.Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [pydicom.Dataset()], [pydicom.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence[0].PixelSpacing = image.PixelSpacing
    for k in range(SHAPE[2]):
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = [pydicom.Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.5 * k]
        frames.append(frame)
    del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def _mask(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from voxsam.io import read_volume, write_mask

        scan = read_volume(_series(ExplicitVRLittleEndian)(folder))
        shutil.rmtree(folder / "ct")
        write_mask(scan.with_array((scan.array > -600).astype(np.uint8), "SEG"), folder / name)
        return folder / name

    return make


FORMATS: dict[str, Callable[[Path], Path]] = {
    "NIfTI-1": _nifti,
    "NIfTI-2, gzip": _nifti_2_gz,
    "NIfTI pair": _pair,
    "NRRD": _itk("a.nrrd"),
    "NRRD, gzip": _itk("a.nrrd", True),
    "NRRD, detached": _itk("a.nhdr"),
    "MetaImage": _itk("a.mha"),
    "MetaImage, zlib": _itk("a.mha", True),
    "MetaImage, detached": _itk("a.mhd"),
    "DICOM, explicit": _series(ExplicitVRLittleEndian),
    "DICOM, implicit": _series(ImplicitVRLittleEndian),
    "DICOM, deflated": _series(DeflatedExplicitVRLittleEndian),
    "DICOM, RLE": _series(RLELossless),
    "DICOM, JPEG lossless": _series(JPEGLosslessSV1),
    "DICOM, JPEG 2000": _series(JPEG2000Lossless),
    "DICOM, enhanced": _enhanced,
    "DICOM in a zip": _zip,
    "DICOM-SEG": _mask("m.seg.dcm"),
    "RTSTRUCT": _mask("m.rtstruct.dcm"),
}


# Damage


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy with one to four faults; half of them in the first KiB, where headers are."""
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.6:  # mostly damage the content of a compressed file
        return gzip.compress(damaged(gzip.decompress(data), rng), 1, mtime=0)
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if len(content) > 8:
            FAULTS[rng.integers(len(FAULTS))](content, rng)
    return bytes(content)


def _place(content: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(content), 1024) if rng.random() < 0.5 else len(content)))


def _flip(content: bytearray, rng: np.random.Generator) -> None:
    content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def _byte(content: bytearray, rng: np.random.Generator) -> None:
    content[_place(content, rng)] = int(rng.choice([0, 1, 0x20, 0x7F, 0x80, 0xFE, 0xFF]))


def _length(content: bytearray, rng: np.random.Generator) -> None:
    at, size = _place(content, rng), int(rng.choice([2, 4]))
    value = int(rng.choice(LENGTHS)) & (256**size - 1)
    content[at : at + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))  # type: ignore[arg-type]


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[_place(content, rng) :]


def _leave_out(content: bytearray, rng: np.random.Generator) -> None:
    at = _place(content, rng)
    del content[at : at + int(rng.integers(1, 64))]


def _repeat(content: bytearray, rng: np.random.Generator) -> None:
    at, to = _place(content, rng), _place(content, rng)
    content[to:to] = content[at : at + int(rng.integers(1, 128))]


def _zeros(content: bytearray, rng: np.random.Generator) -> None:
    at = _place(content, rng)
    count = len(content[at : at + int(rng.integers(1, 512))])
    content[at : at + count] = bytes(count)


def _word(content: bytearray, rng: np.random.Generator) -> None:
    """Replace a number in a text header, or a DICOM decimal, by another word."""
    words = [(at, len(word)) for at, word in _numbers(bytes(content[:4096]))]
    if words:
        at, length = words[rng.integers(len(words))]
        content[at : at + length] = WORDS[rng.integers(len(WORDS))]


def _numbers(head: bytes) -> Iterator[tuple[int, bytes]]:
    for found in re.finditer(rb"-?\d+(\.\d+)?", head):
        yield found.start(), found.group()


FAULTS = (_flip, _byte, _length, _length, _cut, _leave_out, _repeat, _zeros, _word, _word)


# Reading


CHILD = """
import resource, sys, os, warnings
warnings.simplefilter("ignore")
import numpy, nibabel, pydicom, SimpleITK
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.io import read_volume
import voxsam.io.dicom.series, voxsam.io.dicom.rtstruct, voxsam.io.dicom.seg, voxsam.io.itk
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
grid = Grid.from_lps((20, 24, 6), [[0.5, 0, 0], [0, 0.7, 0], [0, 0, 2.5]], (0, 0, 0))
for line in sys.stdin:
    path, labels = line.rstrip("\\n").split("\\t")
    try:
        read_volume(path, labels=labels == "labels", grid=grid)
        said = "read"
    except InputError as error:
        said = "memory" if "more memory than there is" in str(error) else "refused"
        if "\\n" in str(error): said = "two lines"
    except MemoryError:
        said = "memory"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".replace("\\n", " ")[:300]
    print(said, file=out, flush=True)
"""


class Reader:
    """A process that reads one file after another, restarted when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path, labels: bool) -> str:
        """What happened: "read", "refused", "memory", "slow", "ended (...)", or another exception."""
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-c", CHILD, str(MEMORY_MIB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{path}\t{'labels' if labels else 'scan'}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        if not select.select([process.stdout], [], [], SECONDS + 40)[0]:  # starting a child takes seconds, too
            process.kill()
            self._ended()
            return "slow"
        return process.stdout.readline().rstrip("\n") or self._ended()

    def _ended(self) -> str:
        assert self._process is not None
        self.close()
        status, self._process = self._process.returncode, None
        return f"ended ({status})"

    def close(self) -> None:
        """Close the pipes and wait for the process to end."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.wait()


def run(
    files: int, seed: int, keep: Path | None = None, formats: dict[str, Callable[[Path], Path]] | None = None
) -> tuple[dict[str, Counter[str]], dict[str, float]]:
    """Damage and read `files` files in turn; return the counts of results and the slowest read in s, by format."""
    formats = formats or FORMATS
    found: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    reader = Reader()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound = {}
        for number, (name, make) in enumerate(formats.items()):
            (Path(scratch) / str(number)).mkdir()
            sound[name] = make(Path(scratch) / str(number))
        for name, path in sound.items():
            said = reader.read(path, name in ("DICOM-SEG", "RTSTRUCT"))
            assert said == "read", (name, said)
        for number in range(files):
            name = list(formats)[number % len(formats)]
            rng = np.random.default_rng([seed, number])
            said, seconds = _try(sound[name], name, rng, reader, Path(scratch) / "try")
            found[name][said if said in READ else said.split(":")[0]] += 1
            slowest[name] = max(slowest[name], seconds)
            if said not in READ or seconds > SECONDS:
                print(f"file {number} of seed {seed} ({name}): {said}, {seconds:.1f} s", flush=True)
                if keep is not None:
                    shutil.copytree(Path(scratch) / "try", keep / f"{seed}-{number}", dirs_exist_ok=True)
    reader.close()
    return found, slowest


def _try(sound: Path, name: str, rng: np.random.Generator, reader: Reader, place: Path) -> tuple[str, float]:
    """Damage one file of a sound scan and read it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound.parent, place)
    target = place / sound.name
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    if sound.suffix == ".hdr" and rng.random() < 0.2:
        files = [place / "a.img"]
    victim = files[rng.integers(len(files))]
    victim.write_bytes(damaged(victim.read_bytes(), rng))
    begin = time.monotonic()
    return reader.read(target, name in ("DICOM-SEG", "RTSTRUCT")), time.monotonic() - begin


def table(found: dict[str, Counter[str]], slowest: dict[str, float]) -> str:
    """The results as Markdown."""
    lines = io.StringIO()
    print("| format | files | read | refused | something else | slowest, s |", file=lines)
    print("|---|---|---|---|---|---|", file=lines)
    for name, counts in found.items():
        others = ", ".join(f"{count} {what}" for what, count in counts.items() if what not in READ) or "0"
        counted = f"{sum(counts.values())} | {counts['read']} | {counts['refused']}"
        print(f"| {name} | {counted} | {others} | {slowest[name]:.1f} |", file=lines)
    total = sum(found.values(), Counter())
    failed = sum(count for what, count in total.items() if what not in READ)
    counted = f"{sum(total.values())} | {total['read']} | {total['refused']}"
    print(f"| all | {counted} | {failed} | {max(slowest.values(), default=0):.1f} |", file=lines)
    return lines.getvalue()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the files that were neither read nor refused")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="this one alone; may be repeated")
    given = parser.parse_args()
    chosen = {name: FORMATS[name] for name in given.format} if given.format else None
    found, slowest = run(given.files, given.seed, given.keep, chosen)
    print(table(found, slowest))
    return int(any(what not in READ for counts in found.values() for what in counts))


if __name__ == "__main__":
    sys.exit(main())
