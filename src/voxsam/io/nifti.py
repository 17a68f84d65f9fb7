"""Read and write NIfTI-1 and NIfTI-2 (.nii, .nii.gz; also read: .hdr with .img, and Analyze 7.5) through nibabel.

Reading. A NIfTI header can hold two affines, the sform and the qform, each with a code (0: absent).
1. sform code > 0: the sform. It takes precedence even where the two disagree (both may be right: the qform in the
   scanner's frame, the sform in a template's), as in the field's other programs.
2. else qform code > 0: the qform.
3. both codes 0: method 1 of the standard, with spacing from pixdim, indices increasing towards R, A and S, and voxel
   (0, 0, 0) at the world origin. Nothing in such a file says which side is left.
The chosen form is never repaired: a singular one, an impossible quaternion or, without an sform, a pixdim[1..3] that is
not positive raises GeometryError. Remarks report a pixdim of another size, a qform of the same code that lies
elsewhere, or no form at all. Metres and micrometres are converted to mm, with a remark; no unit means mm.

Writing. A mask on the grid of a NIfTI scan gets that scan's version, both forms, both codes, pixdim and units as
stored, so that it overlays the scan in programs with another policy too. Any other volume gets sform = qform, in mm,
with the scan's code or 1 (scanner). Sheared axes, which a qform cannot represent, get the nearest rotation about the
grid's centre as qform if no corner moves by more than QFORM_TOLERANCE of a voxel (ITK accepts only rotations and then
uses it), else an sform alone. Nothing else of the header (description, names) is copied: it may name the patient.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from voxsam.errors import FileError, GeometryError
from voxsam.geometry import Grid
from voxsam.io.checks import as_stored, beside, check_channels, check_dtype, check_shape, check_size, truncated
from voxsam.io.gunzip import MAGIC, GunzipReader
from voxsam.volume import Volume

GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
UNIT_MM = {1: 1000.0, 3: 1e-3}  # xyzt_units & 7: metre, micrometre; all others count as mm
LONGEST_NIFTI1_AXIS = 32767  # NIfTI-1 counts voxels in 16 bits
COMPRESSION_LEVEL = 3  # a mask is small at any level; higher ones take several times as long for probabilities
LARGEST_OFFSET = 2**31 - 1  # where voxels may begin: after the header and its extensions
QFORM_TOLERANCE = 0.1
SAME_SIZE = 0.01  # relative difference of sform and pixdim, and ...
SAME_PLACE_MM = 1.0  # ... distance between sform and qform that merit a remark
PAIR = (b"ni1", b"ni2")
HEADER_BYTES = 348  # of NIfTI-1; its voxels begin four bytes after it


def read(path: Path) -> Volume:
    """The voxels of `path` in file order, scaled if the header says so, and their Grid.

    `header["nifti"]` keeps the geometry fields as stored. Raises FileError, ImageError, GeometryError.
    """
    return _read(path, check_shape)[0]


def read_channels(path: Path) -> tuple[Volume, ...]:
    """The volumes along the fourth axis of a 4D file, or the single volume of a 3D file. Raises as `read` does."""
    return _read(path, check_channels)


def _read(path: Path, check: Callable[[str, Sequence[int]], tuple[int, ...]]) -> tuple[Volume, ...]:
    """One Volume for each index along the axes after the third, of a shape that `check` accepts."""
    name, file = path.name, _header_file(path)
    with _opened(file) as stream:
        header = _read_header(stream, name)
        shape = check(name, _shape(header, name))
        try:
            kind = header.get_data_dtype()
        except (HeaderDataError, KeyError) as error:
            raise _broken_header(name, error) from error
        check_dtype(name, kind)
        is_pair = bytes(header["magic"])[:3] in PAIR
        image = _image_file(path, file) if is_pair else file
        start = int(header["vox_offset"])
        packed, size = _is_gzip(image), image.stat().st_size
        check_size(name, shape, kind.itemsize, size if packed else size - start, packed)
        a, b, c = shape[:3]
        affine, remarks = _place(header, name)
        grid = Grid((a, b, c), affine)
        scaling = _scaling(header, name, remarks)
        if is_pair:
            with _opened(image) as voxels:
                stored = _read_stored(voxels, start, shape, kind, name)
        else:
            stored = _read_stored(stream, start, shape, kind, name)
    if not is_pair and start <= HEADER_BYTES:
        remarks.append(f"{name} does not say where its voxels begin; read from behind its header")
    kept = type(header)()  # the geometry fields alone, in native byte order
    for field in GEOMETRY_FIELDS:
        kept[field] = header[field]
    kept["pixdim"][:4] = header["pixdim"][:4]
    kept["dim"][:4] = [3, *(max(1, int(n)) for n in header["dim"][1:4])]
    stored = stored.reshape((a, b, c, -1), order="F")
    return tuple(
        Volume(as_stored(stored[..., n], *scaling), grid, header={"nifti": kept}, remarks=tuple(remarks))
        for n in range(stored.shape[3])
    )


def _header_file(path: Path) -> Path:
    """The file with the header: the .hdr beside an .img file, otherwise `path` itself."""
    for ending, header in ((".img", ".hdr"), (".img.gz", ".hdr.gz"), (".img.gz", ".hdr")):
        if path.name.lower().endswith(ending) and (other := beside(path, path.name[: -len(ending)] + header)):
            return other
    return path


def _image_file(path: Path, header: Path) -> Path:
    """The voxel file of a .hdr/.img pair. Raises FileError if it is missing."""
    stem = header.name.removesuffix(".gz").rpartition(".")[0]
    for name in ([path.name] if path != header else []) + [stem + ending for ending in (".img", ".img.gz", ".IMG")]:
        if found := beside(header, name):
            return found
    given = f"{path.name} is the header of a .hdr/.img pair, and {stem}.img is not beside it"
    raise FileError(given, "both files in one folder", "copy both, or convert the pair to .nii.gz")


def write(volume: Volume, path: Path, level: int = COMPRESSION_LEVEL) -> None:
    """Write the array with its own dtype and no scaling to `path` (.nii or .nii.gz). Raises OSError.

    `level` is the compression level of .nii.gz, from 1 (fast) to 9 (small).
    """
    header = _header_for(volume)
    header.set_data_dtype(volume.array.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(volume.array, None, header)
    with open(path, "wb") as file:
        if path.name.lower().endswith(".gz"):
            # without name and time, so that the same mask gives the same file
            with gzip.GzipFile("", "wb", level, file, mtime=0) as stream:
                image.to_stream(stream)  # type: ignore[arg-type]
        else:
            image.to_stream(file)


def _is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == MAGIC


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with GunzipReader(path) if _is_gzip(path) else open(path, "rb") as stream:
        yield stream  # type: ignore[misc]


def _read_header(stream: IO[bytes], name: str) -> nib.Nifti1Header:
    """The header; odd values in fields that nothing here depends on are accepted. Raises FileError."""
    try:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        kind = next((k for k in (nib.Nifti1Header, nib.Nifti2Header) if k.may_contain_header(start)), None)
        analyze = kind is None and name.lower().endswith((".hdr", ".img", ".hdr.gz", ".img.gz"))
        if kind is None and not (analyze and nib.AnalyzeHeader.may_contain_header(start)):
            raise FileError(f"{name} does not hold a NIfTI image", "NIfTI-1 or NIfTI-2", "check it, or export it again")
        kind = kind or nib.Nifti1Header
        header = kind(start[: kind.sizeof_hdr], check=False)  # the extensions after it are not read
    except (EOFError, zlib.error, WrapStructError) as error:
        raise truncated(name, "its header cannot be read to its end") from error
    except HeaderDataError as error:
        raise _broken_header(name, error) from error
    if analyze:  # the same fields at the same offsets, but no forms, units or scaling
        header["magic"], header["xyzt_units"], header["scl_inter"] = PAIR[0], 2, 0
        header["sform_code"] = header["qform_code"] = 0
    offset: Any = header["vox_offset"]
    first = 0 if bytes(header["magic"])[:3] in PAIR or offset in (0, HEADER_BYTES) else header.single_vox_offset
    if not first <= offset <= LARGEST_OFFSET:
        raise _broken_header(name, "vox_offset")
    return header


def _shape(header: nib.Nifti1Header, name: str) -> tuple[int, ...]:
    """The lengths of the axes; after the third, a length of 0 or less counts as 1."""
    count, *lengths = (int(n) for n in header["dim"])
    if not 1 <= count <= 7:
        raise _broken_header(name, f"dim[0] is {count}")
    return (*lengths[:3][:count], *(max(1, n) if n <= 0 else n for n in lengths[3:count]))


def _scaling(header: nib.Nifti1Header, name: str, remarks: list[str]) -> tuple[float, float]:
    """Slope and intercept; a slope that is 0 or not finite means no scaling. Raises FileError."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope):
        remarks.append(f"{name} has a slope (scl_slope) of {slope:g}; read without scaling")
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise _broken_header(name, "scl_inter")
    return slope, intercept


def _read_stored(stream: IO[bytes], start: int, shape: tuple[int, ...], kind: np.dtype[Any], name: str) -> NDArray[Any]:
    """The stored numbers. If the header does not say where they begin, four bytes or none may come before them."""
    array = np.empty(math.prod(shape), kind)
    view = array.view(np.uint8).data
    try:
        unsaid = stream.tell() > 0 and start <= HEADER_BYTES
        stream.seek(HEADER_BYTES if unsaid else start)
        lead = stream.read(4) if unsaid else b""
        done = stream.readinto(view)  # type: ignore[attr-defined]
        stream.read(1)  # makes gzip verify its checksum at its end
    except (EOFError, zlib.error, OSError) as error:
        raise truncated(name, "its voxels end too early or do not match their checksum") from error
    if lead and done == array.nbytes - 4:
        array = np.frombuffer(lead + bytes(view[:-4]), kind).copy()
        done = array.nbytes
    if done != array.nbytes:
        raise truncated(name, "its voxels end too early or do not match their checksum")
    return array.reshape(shape, order="F")


def _broken_header(name: str, what: object) -> FileError:
    return FileError(f"{name} has a broken NIfTI header ({what})", "a valid header", "export it again")


def _place(header: nib.Nifti1Header, name: str) -> tuple[NDArray[np.float64], list[str]]:
    """The affine (4, 4), index -> RAS+ mm, by the policy at the top of this file, and remarks on contradictions."""
    spacing = np.asarray(header["pixdim"][1:4], dtype=float)
    positive = bool(np.isfinite(spacing).all() and spacing.min() > 0)
    by_sform = int(header["sform_code"]) > 0
    if not positive and not by_sform:
        given = f"{name} has a spacing (pixdim) of {_by(spacing)}"
        raise GeometryError(given, "positive spacing", "repair its header")
    affine, remarks = _affine_mm(header, name), []
    unit = int(header["xyzt_units"]) & 7
    factor = UNIT_MM.get(unit, 1.0)
    if factor != 1:
        word = {1: "metres", 3: "micrometres"}[unit]
        remarks.append(f"{name} gives lengths in {word}; converted to mm")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if by_sform and not np.allclose(sizes, spacing * factor, rtol=SAME_SIZE, atol=0):
        said = f"its sform says voxels of {_by(sizes)} mm, its pixdim {_by(spacing * factor)}; read by the sform"
        if positive and sizes.min() > 0:
            ratio = float(np.prod(spacing * factor / sizes))
            said += f"; by pixdim, as ITK and FSL read it, volumes are {ratio:.3g} times as large"
        remarks.append(f"{name} contradicts itself: {said}")
    if by_sform and header["sform_code"] == header["qform_code"] and positive:
        remarks += _other_place(header, name, affine)
    if not by_sform and int(header["qform_code"]) <= 0:
        remarks.append(
            f"{name} does not say how the patient lies (neither sform nor qform); read with its axes to R, A, S: "
            "left and right may be exchanged"
        )
    return affine, remarks


def _other_place(header: nib.Nifti1Header, name: str, affine: NDArray[np.float64]) -> list[str]:
    """A remark if the qform puts the corners of the image elsewhere."""
    try:
        other = np.array(header.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError):
        return [f"{name} has an impossible qform; read by its sform"]
    other[:3] *= UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    lengths = [max(1, int(n)) - 1 for n in header["dim"][1:4]]
    corners = np.array([[i, j, k, 1] for i in (0, lengths[0]) for j in (0, lengths[1]) for k in (0, lengths[2])])
    apart = float(np.abs(corners @ (affine - other).T).max())
    if not apart > max(SAME_PLACE_MM, SAME_SIZE * float(np.abs(affine[:3, :3] @ lengths).max())):
        return []
    return [f"{name} contradicts itself: sform and qform lie up to {apart:.3g} mm apart; read by the sform"]


def _affine_mm(header: nib.Nifti1Header, name: str) -> NDArray[np.float64]:
    """(4, 4) index -> RAS+ mm."""
    try:
        if int(header["sform_code"]) > 0:
            affine = np.array(header.get_sform(), dtype=np.float64)
        elif int(header["qform_code"]) > 0:
            header = header.copy()
            header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # an unset qfac counts as one
            affine = np.array(header.get_qform(), dtype=np.float64)
        else:
            affine = np.diag([*np.asarray(header["pixdim"][1:4], dtype=np.float64), 1.0])
    except (ValueError, HeaderDataError) as error:
        raise GeometryError(f"{name} has an impossible qform ({error})", "a rotation", "repair its header") from error
    affine[:3] *= UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _by(numbers: NDArray[np.float64]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _header_for(volume: Volume) -> nib.Nifti1Header:
    """The scan's own geometry fields if they describe the volume's grid, otherwise fields made from the grid."""
    scan: nib.Nifti1Header | None = volume.header.get("nifti")
    grid = volume.grid
    if (
        scan is not None
        and scan.get_data_shape() == grid.shape
        and np.array_equal(_affine_mm(scan, "scan"), grid.affine)
    ):
        return scan.copy()
    needs_version_2 = max(grid.shape) > LONGEST_NIFTI1_AXIS
    header: Any = nib.Nifti2Header() if needs_version_2 or isinstance(scan, nib.Nifti2Header) else nib.Nifti1Header()
    code = 1 if scan is None else int(scan["sform_code"] or scan["qform_code"] or 1)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code)
    rotation, moved = _nearest_rotation(grid)
    header.set_qform(rotation, code if moved <= QFORM_TOLERANCE else 0)  # sets pixdim too
    return header


def _nearest_rotation(grid: Grid) -> tuple[NDArray[np.float64], float]:
    """The nearest affine without shear, about the grid's centre, and how far a corner moves by it, in voxels."""
    affine, spacing = grid.affine.copy(), grid.spacing_mm
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    affine[:3, :3] = (u @ vt) * spacing
    middle = (np.array(grid.shape) - 1) / 2
    affine[:3, 3] = grid.index_to_world(middle) - affine[:3, :3] @ middle
    moved = np.abs(Grid(grid.shape, affine).corners_world_mm() - grid.corners_world_mm()).max()
    return affine, float(moved / spacing.min())
