"""Intensities standardised per scan: a scanner's gain and offset do not matter, for clicks or in a store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.lab.data.raw_cases import block, save
from voxsam.errors import InputError
from voxsam.geometry import Grid
from voxsam.interactive.session import Session
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.sampling import load_cases
from voxsam.preprocess import STANDARDISED, Preprocessing, standardised
from voxsam.seen import content
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume

GRID = Grid.from_spacing((20, 16, 12), (1, 2, 3), (4, 5, 6))


def head(seed: int = 0) -> Volume:
    """Tissue of 400 +- 50 in air of 10 +- 5."""
    rng = np.random.default_rng(seed)
    array = rng.normal(10, 5, GRID.shape)
    array[4:16, 3:13, 2:10] = rng.normal(400, 50, (12, 10, 8))
    return Volume(array.astype(np.float32), GRID, "MR")


def test_tissue_has_mean_0_and_sd_1():
    found = standardised(head())
    tissue = found.array[4:16, 3:13, 2:10]
    assert found.array.dtype == np.float32 and found.grid is GRID
    assert abs(tissue.mean()) < 0.02 and tissue.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gain, offset", [(3.5, 0), (0.25, 40), (1, -1000)])
def test_gain_and_offset_change_nothing(gain, offset):
    scan = head()
    other = scan.with_array(scan.array * np.float32(gain) + np.float32(offset))
    np.testing.assert_allclose(standardised(other).array, standardised(scan).array, atol=1e-3)


def test_a_scan_of_one_value_becomes_0_and_the_given_one_stays():
    flat = Volume(np.full(GRID.shape, 7, np.int16), GRID, "MR")
    assert not standardised(flat).array.any() and (flat.array == 7).all()


def test_a_click_on_a_scan_of_another_gain_gives_the_same_mask():
    given, network = stub_scan(), stub_network()
    how = network.card.preprocessing.model_copy(update={"modality": "MR", **STANDARDISED})
    network.card = network.card.model_copy(update={"preprocessing": how})
    scans = [given.scan.with_array(given.scan.array * np.float32(gain) + 70, "MR") for gain in (1, 0.5)]
    sessions = [Session(network, scan) for scan in scans]
    assert all(session.volume is scan for session, scan in zip(sessions, scans, strict=True))  # what a person sees
    first, second = (session.click(given.click) for session in sessions)
    np.testing.assert_array_equal(first.array, second.array)
    assert first.array.any() and not first.array.all()
    plain = network.card.model_copy(update={"preprocessing": how.model_copy(update={"per_scan": False})})
    network.card = plain
    assert (Session(network, scans[0]).click(given.click).array != first.array).any()


def write_mr(folder: Path, gains: tuple[float, ...]) -> Path:
    """The same head in nnU-Net raw layout, once for each gain."""
    for number, gain in enumerate(gains):
        scan = head(number)
        save((scan.array * gain).astype(np.float32), folder / "imagesTr" / f"h_{number}_0000.nii.gz", GRID.affine)
        save(block(GRID.shape), folder / "labelsTr" / f"h_{number}.nii.gz", GRID.affine)
    fields = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps(fields))
    return folder


def test_a_store_of_mr_holds_standardised_scans_and_says_so(tmp_path):
    raw = write_mr(tmp_path / "raw", (1, 40, 0.1))
    store = prepare(raw, tmp_path / "store", Options(spacing_mm=(3, 2, 1), workers=1)).store
    how = store.preprocessing
    assert (how.per_scan, how.mean, how.sd, how.modality) == (True, 0, 1, "MR")
    for name in store.names:
        tissue = store.load(name).scan.array[...][2:10, 3:13, 4:16]
        assert abs(tissue.mean()) < 0.05 and tissue.std() == pytest.approx(1, abs=0.1)
    original = store.description.cases["h_1"].content
    assert original == content(Volume((head(1).array * 40).astype(np.float32), GRID))
    plain = Preprocessing(modality="MR", clip=(0, 500), mean=1, sd=1)
    with pytest.raises(InputError, match=r"standardised scan by scan: \[True\]; expected \[False\], as the recipe"):
        load_cases(tmp_path / "store", preprocessing=plain)
    assert len(load_cases(tmp_path / "store", preprocessing=how)) == len(store.names) - len(store.split["test"])


def test_raw_cases_are_standardised_as_the_recipe_wants(tmp_path):
    raw = write_mr(tmp_path / "raw", (1, 40))
    how = Preprocessing(modality="MR", **STANDARDISED)  # type: ignore[arg-type]
    one, other = load_cases(raw, preprocessing=how)
    assert abs(other.scan.array[4:16, 3:13, 2:10].mean()) < 0.05
    assert one.content == content(head(0)) and one.name == "h_0"
    assert load_cases(raw)[1].scan.array.max() > 10_000
