"""`voxsam weights`: the list, a fetched model, and imports from both kinds of foreign files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from voxsam.cli.weights import app
from voxsam.errors import CheckpointError, FileError, InputError
from voxsam.network.sizes import ModelConfig
from voxsam.preprocess import RELEASED
from voxsam.testing import stub_network
from voxsam.weights import import_checkpoints
from voxsam.weights.checkpoint import load_model, save_model
from voxsam.weights.registry import MODELS, NamedModel

SMALL = ModelConfig(
    size="vit_b",
    width=12,
    depth=4,
    heads=3,
    mlp_ratio=1,
    adapter_width=5,
    crop=8,
    window=2,
    position_grid=4,
    feature_width=8,
    head_width=3,
    queries=2,
    prompt_layers=1,
    prompt_heads=2,
    prompt_mlp=6,
)
BLOCK = {"norm1.weight": (12,), "norm1.bias": (12,), "norm2.weight": (12,), "norm2.bias": (12,)}
BLOCK |= {"attn.qkv.weight": (36, 12), "attn.qkv.bias": (36,), "attn.proj.weight": (12, 12), "attn.proj.bias": (12,)}
BLOCK |= {"attn.rel_pos_h": (27, 4), "attn.rel_pos_w": (27, 4), "mlp.lin1.weight": (12, 12), "mlp.lin1.bias": (12,)}
BLOCK |= {"mlp.lin2.weight": (12, 12), "mlp.lin2.bias": (12,)}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """ViT-B is a small network here, and the models folder a new one."""
    monkeypatch.setattr(import_checkpoints, "VIT_B", SMALL)
    monkeypatch.setenv("VOXSAM_HOME", str(tmp_path / "home"))


@pytest.fixture
def sam_file(tmp_path) -> Path:
    contents = {"pos_embed": (1, 4, 4, 12), "patch_embed.proj.weight": (12, 3, 16, 16), "patch_embed.proj.bias": (12,)}
    contents |= {f"blocks.{i}.{name}": shape for i in range(4) for name, shape in BLOCK.items()}
    torch.save({f"image_encoder.{name}": torch.ones(shape) for name, shape in contents.items()}, tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def run(*arguments: object) -> str:
    """What the command prints; its exceptions are not caught, since the main program reports them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list(tmp_path):
    printed = run("list").splitlines()
    assert [line.split()[0] for line in printed[:-1:2]] == list(MODELS)
    rows = {line.split()[0]: line for line in printed[:-1:2]}
    assert rows["sam_vit_b"].split() == ["sam_vit_b", "375.0", "MB", "available", "Apache-2.0"]
    assert "by hand" in rows["3dsam-adapter"]
    assert printed[-1] == f"Fetched models are kept in {tmp_path / 'home'} (VOXSAM_HOME chooses another folder)."


def test_fetching_what_is_there_says_where_and_what_next(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "m.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(MODELS, "m", NamedModel("m", "sam", "m.pth", "CC0", "a test", "http://x.invalid/m", 7, digest))
    assert run("fetch", "m").splitlines() == [
        f"m: {path}",
        f"Next: voxsam weights import {path} --kind sam --profile kits|lits|pancreas|colon -o MODEL.safetensors",
    ]


def test_fetching_an_unknown_name():
    with pytest.raises(CheckpointError, match="unknown model 'x'; expected one of voxsam-tiny"):
        run("fetch", "x")


def test_importing_sam(tmp_path, sam_file):
    output = tmp_path / "model.safetensors"
    printed = run("import", sam_file, "--kind", "sam", "--profile", "colon", "-o", output)
    assert printed == f"{output}: sam_vit_b, 0 MB (not trained: fine-tune before use)\n"
    model = load_model(output, "cpu")
    assert model.card.preprocessing == RELEASED["colon"]
    assert model.config == SMALL


def test_importing_sam_for_the_papers_arithmetic(tmp_path, sam_file):
    output = tmp_path / "model.safetensors"
    run("import", sam_file, "--kind", "sam", "--profile", "colon", "--variant", "paper", "-o", output)
    assert load_model(output, "cpu").config == SMALL.in_profile("paper")


def test_importing_the_released_kind_refuses_a_sam_file(tmp_path, sam_file):
    with pytest.raises(CheckpointError, match="sam.pth is a SAM file; .*import it with --kind sam"):
        run("import", sam_file, "--kind", "released", "--profile", "kits", "-o", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_crop_is_a_released_models(tmp_path, sam_file):
    words = ("--kind", "sam", "--profile", "kits", "--crop", "256", "-o", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="--crop 256 with --kind sam; expected --kind released"):
        run("import", sam_file, *words)


@pytest.mark.parametrize("kind", ["released", "sam"])
def test_a_profile_is_needed(tmp_path, sam_file, kind):
    words = "no --profile was given; expected --profile kits, lits, pancreas or colon; name the data set"
    with pytest.raises(InputError, match=words):
        run("import", sam_file, "--kind", kind, "-o", tmp_path / "model.safetensors")


def test_the_output_folder_is_looked_at_before_the_file_is_read(tmp_path):
    output = tmp_path / "none" / "m.safetensors"
    with pytest.raises(FileError, match="the output folder .*none does not exist; .*create it first"):
        run("import", tmp_path / "absent", "--kind", "sam", "--profile", "kits", "-o", output)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_is_not_writable(tmp_path, sam_file):
    (tmp_path / "locked").mkdir(mode=0o555)
    output = tmp_path / "locked" / "m.safetensors"
    with pytest.raises(FileError, match="m.safetensors could not be written .*; expected a folder that takes files"):
        run("import", sam_file, "--kind", "sam", "--profile", "kits", "-o", output)


def test_the_output_is_named_safetensors(tmp_path, sam_file):
    with pytest.raises(InputError, match="m.pth; expected a name that ends in .safetensors; change the name"):
        run("import", sam_file, "--kind", "sam", "--profile", "kits", "-o", tmp_path / "m.pth")


def test_a_missing_source_is_told_in_one_line(tmp_path):
    with pytest.raises(FileError, match="absent.pth: no such file; expected a SAM checkpoint"):
        run("import", tmp_path / "absent.pth", "--kind", "sam", "--profile", "kits", "-o", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_an_unknown_kind_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(app, ["import", "x", "--kind", "other", "--profile", "kits", "-o", "m.safetensors"])
    assert result.exit_code == 2


def test_models_are_averaged_into_a_new_file(tmp_path):
    save_model(stub_network(name="first"), tmp_path / "a.safetensors")
    save_model(stub_network(name="second"), tmp_path / "b.safetensors")
    said = run("average", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "m.safetensors")
    assert said.endswith("m.safetensors: second, the mean of 2, 0 MB\n")
    assert load_model(tmp_path / "m.safetensors", "cpu").card.name == "second"
    with pytest.raises(InputError, match="expected a name that ends in .safetensors"):
        run("average", tmp_path / "a.safetensors", "-o", tmp_path / "m.pth")
