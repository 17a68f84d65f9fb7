"""Uploads of several files: a header and its file of voxels; safe names, and never files from elsewhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from serving import error_of, opened

from voxsam.io import read_volume
from voxsam.server.scans import PREFIX, _stored_name


def send(server, files: dict[str, bytes]) -> str:
    """Send all files as one upload."""
    upload = ""
    for name, content in files.items():
        query = {"name": name, "upload": upload} if upload else {"name": name}
        upload = server.post("/api/uploads", params=query, content=content).raise_for_status().json()["upload"]
    return upload


@pytest.fixture(params=[".mhd", ".nhdr", ".hdr"])
def pair(request, phantom, tmp_path) -> dict[str, bytes]:
    """The phantom as a header and the file of its voxels, by their names, the voxels first."""
    if request.param == ".hdr":
        nib.save(nib.Nifti1Pair(phantom.scan.array, phantom.scan.grid.affine), tmp_path / "LUNG (1).hdr")
    else:
        origin, spacing, direction = phantom.scan.grid.to_lps()
        image = sitk.GetImageFromArray(phantom.scan.array.T)
        image.SetOrigin(origin.tolist()), image.SetSpacing(spacing.tolist()), image.SetDirection(direction.ravel())
        sitk.WriteImage(image, str(tmp_path / f"LUNG (1){request.param}"))
    files = {file.name: file.read_bytes() for file in tmp_path.glob("LUNG*")}
    assert len(files) == 2
    return dict(sorted(files.items(), key=lambda item: item[0].endswith(request.param)))


def test_a_header_finds_its_voxels_in_the_same_upload(server, phantom, pair, tmp_path):
    files = dict(reversed(pair.items())) if "LUNG (1).nhdr" in pair else pair  # in any order
    session = opened(server, {"upload": send(server, files)})
    assert server.get(f"/api/sessions/{session}").json()["name"] == list(pair)[1]
    (tmp_path / "scan.nii.gz").write_bytes(server.get(f"/api/sessions/{session}/scan").content)
    found = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(found.array, phantom.scan.array)
    assert found.grid.close_to(phantom.scan.grid)


def test_a_header_without_its_voxels_says_which_file_is_missing(server, pair):
    voxels, header = pair
    upload = send(server, {header: pair[header], f"other-{voxels}": pair[voxels]})
    answer = server.post("/api/sessions", json={"source": {"upload": upload}})
    assert answer.status_code == 400
    assert header in error_of(answer)["given"] and "beside" in (
        error_of(answer)["expected"] + error_of(answer)["given"]
    )


@pytest.mark.parametrize("where", ["../../.lock", "/etc/passwd", "..\\b.raw"])
def test_a_header_reaches_nothing_outside_its_upload(server, where):
    head = f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {where}\n"
    upload = send(server, {"a.mhd": head.encode(), "b.raw": bytes(8)})
    (server.service.store.uploads / ".lock").write_bytes(bytes(8))
    error = error_of(server.post("/api/sessions", json={"source": {"upload": upload}}))
    assert "a file in the same folder" in error["expected"] or "which is not there" in error["given"]


def test_a_series_with_a_stray_header_is_still_a_series(server, scans, tmp_path):
    marked = bytes(128) + b"DICM"
    upload = send(server, {"1.dcm": marked, "notes.hdr": bytes(348)})
    error = error_of(server.post("/api/sessions", json={"source": {"upload": upload}}))
    assert "notes.hdr" not in error["message"]


def test_files_of_one_name_are_both_kept(server, scans):
    content = (scans / "ct.nii.gz").read_bytes()
    first = send(server, {"IM 1": content})
    again = server.post("/api/uploads", params={"name": "IM 1", "upload": first}, content=content).json()
    assert again["files"] == 2 and again["bytes"] == 2 * len(content)
    assert len(list(server.service.store.upload_folder(first).iterdir())) == 2


@pytest.mark.parametrize("name", ["ct.nii.gz", "LUNG (1).raw", "scan-1.3.6.1.raw", "größe [b].img", "_"])
def test_a_plain_name_is_kept(tmp_path, name):
    assert _stored_name(name, tmp_path) == name
    (tmp_path / f".{name}").touch()  # it is coming
    assert PREFIX.match(_stored_name(name, tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        ".lock",
        "../a",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "CON",
        "nul.raw",
        "a.",
        "a ",
        "-rf",
        "a:b",
        "x" * 300,
        "\ud800",
    ],
)
def test_any_other_name_is_not(tmp_path, name):
    stored = _stored_name(name, tmp_path)
    assert PREFIX.match(stored) and stored.isascii() and len(stored) < 130 and stored not in ("..", ".")
    (tmp_path / stored).touch()
    assert (tmp_path / stored).parent == tmp_path


def test_the_name_of_one_file_is_that_of_the_session(server, scans):
    for name, shown in (("ct-1.nii.gz", "ct-1.nii.gz"), ("a/ct.nii.gz", "a_ct.nii.gz")):
        session = opened(server, {"upload": send(server, {name: (scans / "ct.nii.gz").read_bytes()})})
        assert server.get(f"/api/sessions/{session}").json()["name"] == shown
