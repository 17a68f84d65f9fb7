"""The paper's exact numbers of tuned parameters (Table 2), on a ViT-B without allocated weights."""

from __future__ import annotations

import pytest

import voxsam.lab.systems  # noqa: F401
from voxsam.errors import UnsupportedError
from voxsam.lab.systems.common_loop import tuned
from voxsam.lab.training.recipe import Recipe
from voxsam.preprocess import RELEASED

# Bottlenecks of 384 (ViT-B's adapter_width), one in a block, and both LayerNorms of each block (36,864) where the
# paper's number has them. By hand, of ST-Adapter: 12 (768 x 384 + 384 + 384 x 3 + 384 + 384 x 768 + 768) + 36,864.
COUNTS: list[tuple[str, dict[str, object], int]] = [
    ("none", {"tune": "all"}, 89_670_912),
    ("st", {}, 7_147_008),
    ("protuning", {}, 7_174_656),
    ("houlsby", {}, 7_128_576),
    ("houlsby", {"adapter_twice": True, "adapter_width": 192}, 7_137_792),
    ("med", {}, 10_906_368),
    ("samed", {}, 147_456),
    ("lora", {"adapter_rank": 16}, 589_824),
    ("masam", {}, 24_892_416),
    ("st", {"adapter_twice": True}, 2 * 7_110_144 + 36_864),
    ("none", {}, 36_864),
]
DECODER, NECK = 7_088_256, 787_456  # trained beside it


def recipe(adapter: str, tokens: str, tune: str = "adapters", **changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "model": {"size": "vit_b", "adapter": adapter, "tokens": tokens, **changes},
            "preprocessing": RELEASED["kits"],
            "prompts": "none",
            "tune": tune,
            "start_from": "/no/such/file: nothing is read",
            "steps": 1,
        }
    )


@pytest.mark.parametrize(("adapter", "changes", "number"), COUNTS)
def test_slices(adapter: str, changes: dict[str, object], number: int) -> None:
    found = tuned(recipe(adapter, "slices", **changes))
    assert found.paper == number
    assert found.trained == number + DECODER + (0 if changes.get("tune") == "all" else NECK)


def test_ours() -> None:
    assert tuned(recipe("spatial", "volume")) == (15_209_984, 15_209_984 + DECODER)


def test_a_network_without_an_encoder_of_sams_is_refused() -> None:
    given = recipe("none", "volume").model_dump() | {"system": "click-unet", "tune": "all", "prompts": "clicks"}
    with pytest.raises(UnsupportedError, match="the tuned encoder of click-unet; expected voxsam"):
        tuned(Recipe.model_validate(given))
