"""Golden numbers of a small seeded network, from the file beside this one: values, loss, every gradient.

They were computed in float64 by the code of the commit before kernels/ left network/. Any CI can check them.
In float32 values hold to 1e-4; single gradients, sums that cancel, differ by some percent from processor to processor.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_golden import PROFILES, golden_network, measure

from voxsam.kernels import install

GOLDEN = json.loads(Path(__file__).with_name("small_golden.json").read_text(encoding="utf-8"))
EXACT = 1e-5  # of six digits that are kept
ROUNDING = 1e-4  # values of about 1, through 4 blocks and two instance norms, in float32 sums of another order
GRADIENT = (
    0.05  # relative, of the norm of all gradients in float32: parts of kernels/ are compared with their own of network/
)


@pytest.mark.parametrize("profile", PROFILES)
def test_values_loss_and_every_gradient_in_float64(profile: str) -> None:
    found, expected = measure(golden_network(profile).double()), GOLDEN[profile]
    assert found.keys() == expected.keys() and found["gradients"].keys() == expected["gradients"].keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=EXACT, abs=1e-6), name


@pytest.mark.parametrize("kernels", [False, True], ids=["bare", "kernels"])
@pytest.mark.parametrize("profile", PROFILES)
def test_values_loss_and_gradients_in_float32(profile: str, kernels: bool) -> None:
    network = golden_network(profile)
    if kernels:
        install(network)
    found, expected = measure(network), GOLDEN[profile]
    assert found.keys() == expected.keys()
    gradients, wanted = found.pop("gradients"), dict(expected)["gradients"]
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=ROUNDING), name
    assert isinstance(gradients, dict) and gradients.keys() == wanted.keys()
    assert np.linalg.norm(list(gradients.values())) == pytest.approx(
        np.linalg.norm(list(wanted.values())), rel=GRADIENT
    )


def test_another_arithmetic_is_seen() -> None:
    """The two profiles differ by more than the tolerance: the numbers can fail."""
    assert GOLDEN["released"]["logits"] != pytest.approx(GOLDEN["paper"]["logits"], abs=100 * ROUNDING)
