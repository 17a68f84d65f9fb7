"""The fingerprint against numpy on all voxels, and nnU-Net's spacing rule on worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import InternalError
from voxsam.lab.data.store import QUANTILES, Intensities, Sketch, choose_spacing


@pytest.mark.parametrize("sizes", [(5, 17, 300), (1, 1), (QUANTILES, 3)])
def test_small_cases_are_merged_exactly(sizes):
    rng = np.random.default_rng(1)
    cases = [rng.integers(-100, 200, n).astype(np.int16) for n in sizes]
    together = np.concatenate(cases)
    found = Intensities.merge([Sketch.of(values) for values in cases])
    assert found.voxels == together.size
    assert found.mean == pytest.approx(together.mean())
    assert found.sd == pytest.approx(together.std())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(together, (0.5, 99.5))))


def test_a_large_case_counts_by_its_voxels():
    rng = np.random.default_rng(2)
    cases = [rng.normal(50, 20, 60_000).astype(np.float32), rng.normal(-300, 5, 40).astype(np.float32)]
    together = np.concatenate(cases)
    sketches = [Sketch.of(values) for values in cases]
    assert len(sketches[0].quantiles) == QUANTILES
    found = Intensities.merge(sketches)
    assert (found.mean, found.sd) == pytest.approx((together.mean(), together.std()), rel=1e-5)
    # Ranks are kept within 0.05 %, which is 0.7 units at the 0.5 percentile of this normal distribution.
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(together, (0.5, 99.5))), abs=0.8)


def test_no_voxels_are_an_internal_error():
    with pytest.raises(InternalError, match="a fingerprint without foreground voxels"):
        Intensities.merge([])


def test_the_median_spacing():
    assert choose_spacing([(3, 1, 0.5), (2, 1, 0.7), (5, 1, 0.6)], [(100, 200, 200)] * 3) == (3, 1, 0.6)


def test_thick_slices_do_not_decide_for_thin_ones():
    spacings = [(float(s), 1.0, 0.8) for s in range(1, 12)]  # median 6, 10th percentile 2
    assert choose_spacing(spacings, [(30, 300, 300)] * 11) == (2, 1, 0.8)
    assert choose_spacing(spacings, [(150, 300, 300)] * 11) == (6, 1, 0.8)  # not few slices


def test_the_coarse_axis_never_becomes_finer_than_the_others():
    spacings = [(0.5, 1.0, 0.8)] * 2 + [(6.0, 1.0, 0.8)] * 9
    assert choose_spacing(spacings, [(30, 300, 300)] * 11) == (1, 1, 0.8)
