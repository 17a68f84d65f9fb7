"""Series from DICOMweb archives, and masks stored into them: a small archive in Python, and Debian's Orthanc."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pydicom
import pytest
from archives import OPENSSL, ORTHANC, PASSWORD, PLUGIN, USER, Certificate, orthanc, small_archive
from dicom_series import write_dicom
from server.serving import running

import voxsam
from voxsam.cli import main
from voxsam.errors import FileError
from voxsam.io import is_address, read_volume, write_mask
from voxsam.io.dicom.web import Archive
from voxsam.server.settings import Settings
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

PHANTOM = stub_scan()


@pytest.fixture
def series(tmp_path) -> pydicom.Dataset:
    """The phantom as a series in tmp_path/series; a header of it."""
    return write_dicom(PHANTOM.scan, tmp_path / "series")


@pytest.fixture
def archive(tmp_path, series):
    with small_archive() as archive:
        archive.add(tmp_path / "series")
        yield archive


def address(archive: str, header: pydicom.Dataset) -> str:
    return f"{archive}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"


def test_a_series_is_read_as_from_its_folder(archive, series, tmp_path):
    local = read_volume(tmp_path / "series")
    for place in (address(archive.address, series), Path(address(archive.address, series))):  # of two slashes, of one
        remote = read_volume(place)
        np.testing.assert_array_equal(remote.array, local.array)
        np.testing.assert_array_equal(remote.grid.affine, local.grid.affine)
        assert remote.modality == "CT"
    assert is_address(address(archive.address, series)) and not is_address("dicomweb.nii.gz")


def test_what_an_archive_lists(archive, series):
    listed = Archive.at(archive.address)
    (study,) = listed.studies()
    assert study.uid == series.StudyInstanceUID and study.description == "Test^Case · T1 · 20260102 · chest"
    (found,) = listed.series_of(study.uid)
    assert found.uid == series.SeriesInstanceUID and found.description.startswith("3 · CT · thin slices")
    assert listed.study_of(found.uid) == study.uid and listed.study_of("1.2.3") is None


def test_a_mask_is_sent_and_comes_back_identical(archive, series, tmp_path):
    scan = read_volume(address(archive.address, series))
    mask = voxsam.Volume(PHANTOM.truth.array, scan.grid, "SEG", scan.header)
    write_mask(mask, tmp_path / "mask.seg.dcm")
    sent = pydicom.dcmread(tmp_path / "mask.seg.dcm")
    Archive.at(archive.address).store(tmp_path / "mask.seg.dcm")
    (tmp_path / "back").mkdir()
    Archive.at(archive.address).retrieve(sent.StudyInstanceUID, sent.SeriesInstanceUID, tmp_path / "back")
    (back,) = (tmp_path / "back").iterdir()
    assert pydicom.dcmread(back) == sent
    np.testing.assert_array_equal(read_volume(back, labels=True, scan=scan).array, mask.array)
    archive.full = True
    with pytest.raises(FileError, match=r"an object that 127\.0\.0\.1:\d+ did not take \(reason A700\)"):
        Archive.at(archive.address).store(tmp_path / "mask.seg.dcm")


@pytest.mark.parametrize(
    "bad, given",
    [
        ("dicomweb+http://", "cannot be read"),
        ("dicomweb+http://host/dicom-web?x=1", "cannot be read"),
        ("dicomweb+http://host/dicom-web", "without a series"),
        ("dicomweb+http://host/dicom-web/studies/1.2", "without a series"),
        (f"dicomweb+http://{USER}:{PASSWORD}@host/dicom-web/studies/1/series/2", "a user name in an address"),
    ],
)
def test_addresses_that_are_none_are_refused_without_showing_them(bad, given):
    with pytest.raises(FileError, match=given) as refusal:
        read_volume(bad)
    assert PASSWORD not in str(refusal.value)


def test_what_an_archive_refuses_or_does_not_say(archive, series, tmp_path):
    there = address(archive.address, series)
    with pytest.raises(FileError, match="answered 404 to a series"):
        read_volume(there[:-1])
    with pytest.raises(FileError, match="a series of more than 0 MiB"):
        (tmp_path / "coming").mkdir()
        place = Archive.at(there)
        place.retrieve(series.StudyInstanceUID, series.SeriesInstanceUID, tmp_path / "coming", max_bytes=9000)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"dicomweb+http://127.0.0.1:{nobody.getsockname()[1]}/studies/1.2/series/1.3"
        with pytest.raises(FileError, match="no answer from 127.0.0.1"):
            read_volume(closed)


def test_credentials_come_from_the_environment_or_netrc_and_are_never_shown(series, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    with small_archive(locked=True) as locked:
        locked.add(tmp_path / "series")
        there = address(locked.address, series)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("VOXSAM_DICOMWEB_USER", USER)
        monkeypatch.setenv("VOXSAM_DICOMWEB_PASSWORD", "wr0ng-word")
        with pytest.raises(FileError, match=r"answered 401 .* put credentials into ~/\.netrc") as refusal:
            read_volume(there)
        monkeypatch.setenv("VOXSAM_DICOMWEB_PASSWORD", PASSWORD)
        assert read_volume(there).grid.shape == PHANTOM.scan.grid.shape
        monkeypatch.delenv("VOXSAM_DICOMWEB_USER")
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        assert read_volume(there).grid.shape == PHANTOM.scan.grid.shape
    said = str(refusal.value) + caplog.text
    assert "wr0ng" not in said and PASSWORD not in said and "Authorization" not in said


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl to make a certificate")
def test_an_archive_with_a_certificate_of_the_hospitals_own(series, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    certificate = Certificate.made(tmp_path / "tls")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with small_archive(locked=True, certificate=certificate) as locked:
        locked.add(tmp_path / "series")
        there = address(locked.address, series)
        assert there.startswith("dicomweb+https://")
        with pytest.raises(FileError, match="a certificate of .* that cannot be trusted.*REQUESTS_CA_BUNDLE"):
            read_volume(there)
        assert not locked.asked  # nor was anybody told who asks
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.authority))
        np.testing.assert_array_equal(read_volume(there).array, read_volume(tmp_path / "series").array)
    assert PASSWORD not in caplog.text and "Authorization" not in caplog.text


# The command and the server


@pytest.fixture
def segment(tmp_path):
    """`voxsam segment` of a scan with a click on the phantom's tumour, in tmp_path; its exit status."""
    save_model(stub_network(), tmp_path / "model.safetensors")

    def run(scan: str, *words: str) -> int:
        click = ",".join(map(str, PHANTOM.click))
        return main(["segment", scan, "--model", str(tmp_path / "model.safetensors"), "--click", click, *words])

    return run


def test_segment_reads_an_archive_and_sends_the_mask_back(archive, series, segment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = len(archive.files)
    assert segment(address(archive.address, series), "--store", "--sr", "measures.sr.dcm", "--quiet") == 0
    mask, measures = archive.files[before:]
    assert measures == Path("measures.sr.dcm").read_bytes()
    assert segment(str(tmp_path / "series"), "-o", "local.nii.gz", "--quiet") == 0
    (tmp_path / "sent.seg.dcm").write_bytes(mask)
    sent = read_volume(tmp_path / "sent.seg.dcm", labels=True, scan=read_volume(tmp_path / "series"))
    np.testing.assert_array_equal(sent.array, read_volume(tmp_path / "local.nii.gz", labels=True).array)
    assert (tmp_path / f"{series.SeriesInstanceUID}_mask.seg.dcm").is_file() and sent.array.any()


def test_what_store_cannot_do_is_said_before_the_work(archive, series, segment, tmp_path, capsys):
    assert segment(str(tmp_path / "series"), "--store") == 2
    assert "--store for a scan that is not in an archive" in capsys.readouterr().err
    assert segment(address(archive.address, series), "--store", "-o", str(tmp_path / "mask.nii.gz")) == 2
    assert "--store with -o mask.nii.gz" in capsys.readouterr().err
    assert not archive.asked
    with small_archive() as other:
        without = write_dicom(PHANTOM.scan, tmp_path / "without", FrameOfReferenceUID=None)
        other.add(tmp_path / "without")
        assert segment(address(other.address, without), "--store", "-o", str(tmp_path / "mask.seg.dcm")) == 2
        words = capsys.readouterr().err
        assert "a mask of a DICOM series without FrameOfReferenceUID" in words and "segmenting" not in words
        assert not (tmp_path / "mask.seg.dcm").exists()


def test_an_archive_is_a_folder_of_the_server(archive, series, tmp_path):
    settings = Settings(state=tmp_path / "state", folders=(Path(archive.address),))
    with running(settings, stub_network()) as client:
        (folder,) = client.get("/api/info").json()["folders"]
        listed = client.get("/api/files", params={"folder": folder["id"]}).json()["entries"]
        assert [entry["name"] for entry in listed] == ["Test^Case · T1 · 20260102 · chest"]
        query = {"folder": folder["id"], "path": listed[0]["path"]}
        (entry,) = client.get("/api/files", params=query).json()["entries"]
        assert entry["kind"] == "series" and entry["path"].endswith(f"/{series.SeriesInstanceUID}")
        body = {"source": {"folder": folder["id"], "path": entry["path"]}}
        opened = client.post("/api/sessions", json=body).json()
        assert opened["dicom"] and opened["shape"] == list(PHANTOM.scan.grid.shape)
        times = len(archive.asked)
        assert client.post("/api/sessions", json=body).status_code == 201
        assert len(archive.asked) == times  # what was fetched is there still
        for wrong in ("1.2", "../x", "1.2/../3"):
            body = {"source": {"folder": folder["id"], "path": wrong}}
            assert client.post("/api/sessions", json=body).status_code == 404
        asked = {"params": (None, '{"foreground": [[17, 20, 16]]}')}
        answer = client.post("/infer/stub", params={"image": series.SeriesInstanceUID}, files=asked)  # as OHIF does
        assert answer.status_code == 200, answer.text


# Orthanc


NEEDED = ORTHANC and OPENSSL and PLUGIN.exists()


@pytest.mark.skipif(not NEEDED, reason="needs Debian's orthanc and orthanc-dicomweb, and openssl")
def test_orthanc_takes_a_mask_and_gives_it_back_identical(series, segment, tmp_path, monkeypatch, caplog, capsys):
    """Over TLS with its own certificate, with credentials once from the environment and once from netrc."""
    caplog.set_level("DEBUG")
    certificate = Certificate.made(tmp_path / "tls")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.authority))
    monkeypatch.setenv("VOXSAM_DICOMWEB_USER", USER)
    monkeypatch.setenv("VOXSAM_DICOMWEB_PASSWORD", PASSWORD)
    with orthanc(tmp_path / "orthanc", certificate) as there:
        for file in sorted((tmp_path / "series").iterdir()):
            Archive.at(there).store(file)
        monkeypatch.setenv("VOXSAM_DICOMWEB_PASSWORD", "wr0ng-word")
        with pytest.raises(FileError, match="answered 401"):
            read_volume(address(there, series))
        for name in ("VOXSAM_DICOMWEB_USER", "VOXSAM_DICOMWEB_PASSWORD"):
            monkeypatch.delenv(name)
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        place = Archive.at(there)
        assert [study.uid for study in place.studies()] == [series.StudyInstanceUID]
        (listed,) = place.series_of(series.StudyInstanceUID)
        assert listed.description == f"3 · CT · thin slices · {PHANTOM.scan.grid.shape[2]}"
        scan = read_volume(address(there, series))
        np.testing.assert_array_equal(scan.array, read_volume(tmp_path / "series").array)
        assert segment(address(there, series), "--store", "-o", str(tmp_path / "mask.seg.dcm"), "--quiet") == 0
        assert back_from(place, tmp_path / "mask.seg.dcm") == pydicom.dcmread(tmp_path / "mask.seg.dcm")
        assert len(place.series_of(series.StudyInstanceUID)) == 2

        wanted_mm = PHANTOM.scan.grid.index_to_world(PHANTOM.click)
        one = np.zeros(scan.grid.shape, np.uint8)
        one[tuple(np.rint(scan.grid.world_to_index(wanted_mm)).astype(int))] = 1
        write_mask(voxsam.Volume(one, scan.grid, "SEG", scan.header), tmp_path / "one.seg.dcm")
        place.store(tmp_path / "one.seg.dcm")
        back_from(place, tmp_path / "one.seg.dcm").save_as(tmp_path / "back.seg.dcm")
        known = read_volume(tmp_path / "back.seg.dcm", labels=True)  # on its own grid: its frames say where they lie
        (voxel,) = np.argwhere(known.array)
        np.testing.assert_allclose(known.grid.index_to_world(voxel), wanted_mm, atol=1e-3)
    output = "".join(capsys.readouterr()) + caplog.text
    assert PASSWORD not in output and "wr0ng" not in output and "Authorization" not in output


def back_from(place: Archive, file: Path) -> pydicom.Dataset:
    """The object of a file that was sent, as the archive returns it."""
    sent = pydicom.dcmread(file)
    folder = file.with_suffix(".back")
    folder.mkdir()
    place.retrieve(sent.StudyInstanceUID, sent.SeriesInstanceUID, folder)
    (back,) = folder.iterdir()
    return pydicom.dcmread(back)
