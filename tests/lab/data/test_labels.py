"""Which values are tumour: chosen, all but the ignored, or refused; and which values a label holds."""

from __future__ import annotations

import numpy as np
import pytest

from voxsam.errors import InputError
from voxsam.lab.data.cases import LabelChoice, label_values, listed


def test_which_voxels_are_tumour():
    labels = np.arange(5)
    assert LabelChoice((2,))(labels).tolist() == [False, False, True, False, False]
    assert LabelChoice((1, 3))(labels).tolist() == [False, True, False, True, False]
    assert LabelChoice()(labels).tolist() == [False, True, True, True, True]
    assert LabelChoice(ignored=frozenset({4}))(labels).tolist() == [False, True, True, True, False]


def test_other_values_of_the_same_data_set():
    choice = LabelChoice(known=frozenset({0, 1, 2, 3}), ignored=frozenset({3}))
    assert choice.of(()) is choice.of(None) is choice
    assert choice.of((2, 1, 2)) == LabelChoice((1, 2), choice.known, choice.ignored)
    with pytest.raises(InputError, match="the label 3, which the data set says to ignore; expected some of 1, 2; ch"):
        choice.of((1, 3))
    with pytest.raises(InputError, match="the label -1, which no tumour has; expected whole numbers above 0; choose"):
        LabelChoice().of((-1,))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_label_values(dtype):
    labels = np.zeros((300, 200, 100), dtype)
    labels[-1, -1, -1], labels[0, 0, 0] = 5, 100
    assert label_values(labels) == {0, 5, 100}
    if dtype == np.int32:
        labels[3, 3, 3], labels[4, 4, 4] = -2, 10**6
        assert label_values(labels) == {-2, 0, 5, 100, 10**6}


def test_many_values_in_words():
    assert listed({3, 1}) == "1, 3"
    assert listed(range(9)) == "0, 1, 2, 3, 4 ..."
