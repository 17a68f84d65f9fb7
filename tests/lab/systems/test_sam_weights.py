"""SAM's files as transformers' SamModel: every tensor is in its place, and the encoder computes what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("transformers")

from safetensors.torch import save_file

from tests.lab.systems.sam_layout import (
    DEPTH,
    GLOBAL,
    GRID,
    HEADS,
    IOU_HIDDEN,
    MLP,
    OUT,
    PATCH,
    WIDTH,
    WINDOW,
    sam_tensors,
)
from voxsam.errors import CheckpointError, FileError, InputError
from voxsam.kernels import install
from voxsam.lab.systems.sam_slices import config_of, load_sam, random_sam, sam_from_tensors, transformers_name
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import SAM_WINDOW, TINY
from voxsam.preprocess import RELEASED
from voxsam.weights import import_checkpoints

TOLERANCE = 1e-4  # of the issue; measured here: 5e-7


def test_every_tensor_finds_its_place():
    tensors = sam_tensors()
    model = sam_from_tensors(tensors, "here")
    state = model.state_dict()
    assert {transformers_name(name) for name in tensors} <= set(state)
    assert all(torch.equal(state[transformers_name(name)], tensor) for name, tensor in tensors.items())
    again = "prompt_encoder.shared_embedding.positional_embedding"
    assert set(state) - {transformers_name(name) for name in tensors} == {again}
    assert torch.equal(state[again], tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])


def test_the_sizes_are_read_off_the_tensors():
    config = config_of(sam_tensors())
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (WIDTH, DEPTH, HEADS)
    assert (vision.image_size, vision.window_size, list(vision.global_attn_indexes)) == (GRID * PATCH, WINDOW, [1, 3])
    assert config.mask_decoder_config.iou_head_hidden_dim == IOU_HIDDEN


def test_the_embedding_is_that_of_the_encoder_written_out():
    tensors = sam_tensors()
    pixels = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    wanted = encode({k.removeprefix("image_encoder."): v for k, v in tensors.items()}, pixels)
    found = sam_from_tensors(tensors, "here").get_image_embeddings(pixels)
    assert found.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    swapped = {k: v.transpose(1, 2) if k == "image_encoder.pos_embed" else v for k, v in tensors.items()}
    assert (sam_from_tensors(swapped, "here").get_image_embeddings(pixels) - wanted).abs().max() > 100 * TOLERANCE


def test_the_embedding_is_that_of_voxsams_own_encoder_of_slices():
    """One file of SAM, imported both ways: one slice of 18 x 18 tokens, windows of 14."""
    tensors = sam_tensors(grid=18, window=SAM_WINDOW)
    plane = torch.randn(1, 1, 18 * PATCH, 18 * PATCH, generator=torch.Generator().manual_seed(1))
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_ratio": MLP // WIDTH, "global_blocks": GLOBAL}
    slices = {"tokens": "slices", "adapter": "none", "crop": 18 * PATCH, "stride": PATCH, "position_grid": 18}
    config = TINY.model_copy(update={**sizes, **slices, "patch": PATCH, "feature_width": OUT, "marks": False})
    card = Card(name="sam", config=config, preprocessing=RELEASED["kits"])
    network = VoxSAMNetwork(card).eval()
    install(network)
    import_checkpoints.load_sam(network, import_checkpoints.encoder_tensors(tensors, "here"), "here")
    with torch.no_grad():
        found = network.encode(plane.expand(PATCH, -1, -1, -1).transpose(0, 1)[None])[-1][:, :, 0]
    wanted = sam_from_tensors(tensors, "here").get_image_embeddings(plane.expand(-1, 3, -1, -1))
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


def encode(t: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Another implementation of SAM's image encoder (ViTDet with relative positions, then the neck) on (B, 3, H, W)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    x = functional.conv2d(pixels, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH)
    x = x.permute(0, 2, 3, 1) + t["pos_embed"]
    for block in range(DEPTH):
        own = {k.removeprefix(f"blocks.{block}."): v for k, v in t.items() if k.startswith(f"blocks.{block}.")}
        y = norm(x, f"blocks.{block}.norm1")
        x = x + (attend(own, y) if block in GLOBAL else in_windows(own, y))
        hidden = functional.gelu(
            functional.linear(norm(x, f"blocks.{block}.norm2"), own["mlp.lin1.weight"], own["mlp.lin1.bias"])
        )
        x = x + functional.linear(hidden, own["mlp.lin2.weight"], own["mlp.lin2.bias"])
    x = functional.conv2d(x.permute(0, 3, 1, 2), t["neck.0.weight"])
    x = norm(x.permute(0, 2, 3, 1), "neck.1").permute(0, 3, 1, 2)
    x = functional.conv2d(x, t["neck.2.weight"], padding=1)
    return norm(x.permute(0, 2, 3, 1), "neck.3").permute(0, 3, 1, 2)


def in_windows(own: dict[str, Tensor], x: Tensor) -> Tensor:
    """Attention in windows, one after another; the last ones are padded with zeros."""
    rest = -GRID % WINDOW
    x = functional.pad(x, (0, 0, 0, rest, 0, rest))
    out = torch.zeros_like(x)
    for i in range(0, x.shape[1], WINDOW):
        for j in range(0, x.shape[2], WINDOW):
            out[:, i : i + WINDOW, j : j + WINDOW] = attend(own, x[:, i : i + WINDOW, j : j + WINDOW])
    return out[:, :GRID, :GRID]


def attend(own: dict[str, Tensor], x: Tensor) -> Tensor:
    """Attention of every place of (B, n, n, C) to every other, plus terms for their offsets in rows and columns."""
    b, n, _, c = x.shape
    q, k, v = functional.linear(x, own["attn.qkv.weight"], own["attn.qkv.bias"]).chunk(3, dim=-1)
    q, k, v = (part.reshape(b, n, n, HEADS, c // HEADS) for part in (q, k, v))
    apart = torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1
    rows, columns = own["attn.rel_pos_h"][apart], own["attn.rel_pos_w"][apart]  # (n, n, c / heads)
    scores = torch.einsum("bijhc,bklhc->bhijkl", q, k) * (c // HEADS) ** -0.5
    scores = scores + torch.einsum("bijhc,ikc->bhijk", q, rows)[..., None]
    scores = scores + torch.einsum("bijhc,jlc->bhijl", q, columns)[:, :, :, :, None]
    weights = scores.flatten(4).softmax(-1).reshape(scores.shape)
    out = torch.einsum("bhijkl,bklhc->bijhc", weights, v).reshape(b, n, n, c)
    return functional.linear(out, own["attn.proj.weight"], own["attn.proj.bias"])


def test_files_of_both_layouts_give_the_same_model(tmp_path: Path):
    tensors = sam_tensors()
    torch.save(tensors, tmp_path / "sam.pth")
    save_file(tensors, tmp_path / "sam.safetensors")
    model = load_sam(tmp_path / "sam.pth")
    model.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "sam.safetensors", tmp_path / "folder"):
        other = load_sam(path).state_dict()
        assert all(torch.equal(other[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_no_sam_is_refused(tmp_path: Path):
    tensors = sam_tensors()
    with pytest.raises(CheckpointError, match="here has no tensor image_encoder.pos_embed; expected a whole SAM"):
        sam_from_tensors({k: v for k, v in tensors.items() if k != "image_encoder.pos_embed"}, "here")
    with pytest.raises(CheckpointError, match=r"here does not fit .*Missing key.*mask_decoder.iou_token.weight"):
        sam_from_tensors({k: v for k, v in tensors.items() if k != "mask_decoder.iou_token.weight"}, "here")
    with pytest.raises(CheckpointError, match="Unexpected key"):
        sam_from_tensors({**tensors, "image_encoder.adapter": torch.zeros(2)}, "here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty could not be read"):
        load_sam(tmp_path / "empty")
    with pytest.raises(FileError, match="no such file"):
        load_sam(tmp_path / "absent.pth")


def test_a_random_sam_depends_on_its_seed_alone():
    one, same, other = random_sam(), random_sam(), random_sam(seed=1)
    name = "vision_encoder.layers.0.attn.qkv.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert random_sam(width=64, heads=4).config.vision_config.hidden_size == 64
    with pytest.raises(InputError, match="the size layers of a random SAM; expected one of seed, width"):
        random_sam(layers=3)
    with pytest.raises(InputError, match="a width that `heads` divides"):
        random_sam(width=33)
