"""The page without a server, in Chromium: scans are opened, clicked, saved, with the same results as in Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.dicom_series import write_dicom, write_disc
from tests.web.golden import VIEWER
from tests.web.serving import LocalViewer, WebSpace, build, web_space
from voxsam import Session, load_model, read_volume
from voxsam.io import write_volume
from voxsam.io.objects import read_objects
from voxsam.network.classes import Classes, features_under
from voxsam.testing import stub_scan
from voxsam.weights.export import export_onnx

pytestmark = pytest.mark.slow

SAME = 0.999  # of a mask's voxels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="the extra onnx is absent")
    if shutil.which("node") is None or not (VIEWER / "node_modules").is_dir():
        pytest.skip("Node.js or the page's packages are absent: run `make viewer`")
    root = tmp_path_factory.mktemp("web")
    exported = VIEWER.parent / "build" / "web-model"  # by `make web`, if that was run: a minute is saved
    if not exported.is_dir():
        exported = root / "model"
        export_onnx("voxsam-tiny", exported)
    write_volume(stub_scan().scan, root / "demo.nii.gz")
    build(exported, root / "demo.nii.gz", root / "voxsam")
    return root / "voxsam"


@pytest.fixture
def space(folder: Path) -> Iterator[WebSpace]:
    with web_space(folder) as running:
        yield running


@pytest.fixture
def viewer(browser, space: WebSpace) -> Iterator[LocalViewer]:
    tab = LocalViewer(browser, space.address)
    tab.go()
    yield tab
    tab.close()
    assert tab.faults == []


@pytest.fixture(scope="module")
def case(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[int, int, int]]:
    """A real CT as NIfTI and as a DICOM series, and a voxel in its tumour."""
    scan = shared_data / "sarcoma_ct" / "imagesTr" / "STS_003_0000.nii.gz"
    inside = np.argwhere(read_volume(shared_data / "sarcoma_ct" / "labelsTr" / "STS_003.nii.gz", labels=True).array)
    i, j, k = inside[np.linalg.norm(inside - inside.mean(0), axis=1).argmin()].tolist()
    series = tmp_path_factory.mktemp("dicom") / "ct"
    write_dicom(read_volume(scan), series)
    return scan, series, (i, j, k)


def _click(viewer: LocalViewer, index: tuple[int, int, int], counted: str, button: str = "left") -> None:
    viewer.look_at(index)
    viewer.went(lambda: viewer.page.mouse.click(*viewer.place(index), button=button), counted)


def _assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.any() and np.count_nonzero(found != expected) <= (1 - SAME) * np.count_nonzero(expected)


def test_a_ct_from_the_disk_is_clicked_corrected_saved_and_goes_on_offline(
    viewer: LocalViewer, space: WebSpace, case: tuple[Path, Path, tuple[int, int, int]], tmp_path: Path
) -> None:
    scan, _, tumour = case
    page = viewer.isolated().page
    assert "Scans stay in this browser" in page.inner_text("#where")
    viewer.upload(scan)
    requests = len(space.paths)
    _click(viewer, tumour, "1 mark")
    first = viewer.labels()
    beside = tuple(np.argwhere(first)[0].tolist())
    _click(viewer, beside, "2 marks", button="right")
    viewer.went(lambda: page.keyboard.press("Control+z"), "1 mark")
    np.testing.assert_array_equal(viewer.labels(), first)
    viewer.went(lambda: page.click("#redo"), "2 marks")
    far = (int(tumour[0] + 25), int(tumour[1] + 25), tumour[2])
    page.keyboard.press("n")
    page.wait_for_selector("#objects :text('Tumour 2')")
    _click(viewer, far, "1 mark")
    volume = read_volume(scan)
    session = Session(load_model("voxsam-tiny"), volume)
    session.click(tumour)
    session.click(beside, positive=False)
    session.new_object()
    expected = session.click(far).array
    _assert_same(viewer.labels(), expected)
    saved = read_volume(viewer.saved("#save-nifti", tmp_path / "mask.nii.gz"), labels=True, scan=volume)
    _assert_same(saved.array, expected)
    assert saved.grid.close_to(volume.grid, 1e-4)
    assert "Tumour 2" in viewer.saved("#save-report", tmp_path / "report.html").read_text()
    assert space.paths[requests:] == []  # nothing was asked for, not even of the page's own folder

    kept = viewer.labels()
    space.close()
    viewer.context.set_offline(True)
    page.reload()
    viewer.opened()
    page.wait_for_selector("#objects :text('2 marks')")
    np.testing.assert_array_equal(viewer.labels(), kept)
    viewer.went(lambda: page.keyboard.press("Control+z"), "nothing marked")


def test_a_dicom_folder_gives_a_dicom_seg_on_one_thread(
    browser, space: WebSpace, case: tuple[Path, Path, tuple[int, int, int]], tmp_path: Path
) -> None:
    _, series, tumour = case
    viewer = LocalViewer(browser, space.address, service_workers="block")  # as on plain http from another machine
    viewer.go()
    assert viewer.page.evaluate("crossOriginIsolated") is False
    viewer.page.set_input_files("#choose-folder", series)
    viewer.opened()
    _click(viewer, tumour, "1 mark")
    volume = read_volume(series)
    [found] = read_objects(viewer.saved("#save-seg", tmp_path / "mask.seg.dcm"), volume)
    session = Session(load_model("voxsam-tiny"), volume)
    _assert_same(found.region.on_all(volume).array, session.click(tumour).array)
    assert found.name == "Tumour 1" and found.remarks == ()
    viewer.page.click("#save-rtstruct")
    viewer.page.wait_for_selector("#problem:has-text('voxsam serve')")
    viewer.close()
    assert viewer.faults == []


def test_firefox_gives_the_same_mask(
    space: WebSpace, case: tuple[Path, Path, tuple[int, int, int]], tmp_path: Path
) -> None:
    """Debian's Firefox, by WebDriver BiDi, on a display of its own."""
    firefox = shutil.which("firefox-esr") or shutil.which("firefox")
    if firefox is None or shutil.which("xvfb-run") is None or not (VIEWER / "node_modules" / "puppeteer-core").is_dir():
        pytest.skip("Firefox, xvfb-run or the page's packages are absent (Debian: firefox-esr, xvfb, xauth)")
    scan, _, tumour = case
    driver = [
        "node",
        VIEWER / "golden" / "firefox.mjs",
        firefox,
        space.address,
        scan,
        ",".join(map(str, tumour)),
        tmp_path,
    ]
    done = subprocess.run(
        ["xvfb-run", "-a", *map(str, driver)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["faults"] == []
    volume = read_volume(scan)
    [file] = tmp_path.glob("*.nii.gz")
    saved = read_volume(file, labels=True, scan=volume)
    _assert_same(saved.array, Session(load_model("voxsam-tiny"), volume).click(tumour).array)
    assert saved.grid.close_to(volume.grid, 1e-4)


def test_a_disc_that_is_dropped_asks_which_series(viewer: LocalViewer, shared_data: Path, tmp_path: Path) -> None:
    write_disc(shared_data / "dicom", tmp_path / "disc")
    viewer.isolated().drop_disc(tmp_path / "disc")
    expected = read_volume(shared_data / "dicom" / "ct_3slice_and_seg" / "ct-3slice")
    assert viewer.page.evaluate("voxsam.viewer.orientation.shape") == list(expected.grid.shape)
    middle = [n // 2 for n in expected.grid.shape]
    assert viewer.page.evaluate("at => voxsam.viewer.intensity(at)", middle) == expected.array[tuple(middle)]


def test_a_visitor_without_a_scan_opens_the_demo(viewer: LocalViewer, space: WebSpace) -> None:
    page = viewer.isolated().page
    requests = len(space.paths)
    page.click("#open-demo")
    viewer.opened()
    assert space.paths[requests:] == [f"/{space.folder.name}/demo.nii.gz"]  # and not before: few want it
    _click(viewer, stub_scan().click, "1 mark")
    assert viewer.labels()[stub_scan().click] == 1


def test_a_model_with_classes_says_what_was_clicked(browser, folder: Path, tmp_path: Path) -> None:
    """One class has the features that Python sees under the mask, the other is far from them."""
    copy, given = tmp_path / "voxsam", stub_scan()
    session = Session(load_model("voxsam-tiny", "cpu"), given.scan)
    session.click(given.click)
    window, probability = session.prediction.pieces[0]
    tokens = session.predictor.encoded.get(window).features[-1][0].numpy()
    seen = features_under(tokens, probability > 0.5)
    classes = Classes.fit(["other", "clicked"], [1, 2], [seen[None] + 5, seen[None]])
    shutil.copytree(folder, copy)
    (card,) = (copy / "model").glob("card*.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "classes": classes.model_dump(mode="json")}))
    with web_space(copy) as space:
        viewer = LocalViewer(browser, space.address).go().isolated()
        viewer.page.click("#open-demo")
        viewer.opened()
        _click(viewer, given.click, "1 mark")
        assert viewer.page.inner_text("#messages p:first-child") == "Looks like: clicked"
        report = json.loads(viewer.saved("#save-json", tmp_path / "report.json").read_text())
        assert [found["class"] for found in report["objects"]] == ["clicked"]
        viewer.close()
        assert viewer.faults == []


def test_a_new_version_replaces_the_old_one_when_it_is_wanted(browser, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "voxsam"
    shutil.copytree(folder, copy)
    with web_space(copy) as space:
        viewer = LocalViewer(browser, space.address)
        page = viewer.go().page
        viewer.isolated()
        for name, old, new in [
            ("index.html", "<title>VoxSAM</title>", "<title>VoxSAM, newer</title>"),
            ("service-worker.js", 'const VERSION = "', 'const VERSION = "newer'),
        ]:
            text = (copy / name).read_text()
            assert text.count(old) == 1
            (copy / name).write_text(text.replace(old, new))
        page.reload()
        page.wait_for_selector("#elsewhere button:has-text('A newer version')")
        assert page.title() == "VoxSAM"
        page.click("#elsewhere button")
        page.wait_for_function("() => document.title === 'VoxSAM, newer'")
        assert len(page.evaluate("caches.keys()")) == 1
        viewer.close()
        assert viewer.faults == []


def test_the_folder_is_small_strict_and_names_its_licences(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    page = (folder / "index.html").read_text()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    policy = found[1].replace("&#39;", "'")
    assert "connect-src 'self';" in policy and "script-src 'self' 'wasm-unsafe-eval';" in policy
    assert not re.search(r'(src|href)="(https?:)?//', page)
    licences = (folder / "licences.txt").read_text()
    for name in ("@niivue/niivue", "onnxruntime-web", "dcmjs", "dcmjs-codecs", "fflate", "idb"):
        assert name in licences, name
