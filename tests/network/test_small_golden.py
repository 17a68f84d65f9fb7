"""The golden numbers of a small seeded network, which need no file but the one beside: values, loss, every gradient.

They are of the commit before kernels/ left network/; anybody's CI can check them, with the kernels and without.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_golden import PROFILES, golden_network, measure

from voxsam.kernels import install

GOLDEN = json.loads(Path(__file__).with_name("small_golden.json").read_text(encoding="utf-8"))
ROUNDING = 1e-4  # values of about 1, through 4 blocks and two instance norms, in float32 sums of another order
GRADIENT = 1e-3  # relative, for norms above GRADIENT_FLOOR: those below are sums that cancel
GRADIENT_FLOOR = 1e-4


@pytest.mark.parametrize("kernels", [False, True], ids=["bare", "kernels"])
@pytest.mark.parametrize("profile", PROFILES)
def test_values_loss_and_gradients(profile: str, kernels: bool) -> None:
    network = golden_network(profile)
    if kernels:
        install(network)
    found, expected = measure(network), GOLDEN[profile]
    assert found.keys() == expected.keys()
    gradients, wanted = found.pop("gradients"), dict(expected)["gradients"]
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=ROUNDING), name
    assert isinstance(gradients, dict) and gradients.keys() == wanted.keys()
    for name, norm in gradients.items():
        assert norm == pytest.approx(wanted[name], rel=GRADIENT, abs=GRADIENT_FLOOR), name


def test_another_arithmetic_is_seen() -> None:
    """The two profiles differ by more than the tolerance: the numbers can fail."""
    assert GOLDEN["released"]["logits"] != pytest.approx(GOLDEN["paper"]["logits"], abs=100 * ROUNDING)
