"""Model files and names that are refused, each with its message."""

from __future__ import annotations

import os
import re

import psutil
import pytest
import torch
from checkpoint_cases import SMALL, Trap, refusal, rewritten, saved, small_network
from safetensors.torch import save_file

from voxsam.errors import CheckpointError, FileError
from voxsam.network.card import Card
from voxsam.network.sizes import TINY, ModelConfig
from voxsam.preprocess import RELEASED
from voxsam.weights import registry
from voxsam.weights.checkpoint import assemble, load_model, save_model
from voxsam.weights.file import METADATA_KEY, read_card

pytestmark = pytest.mark.usefixtures("models_home")


# Refusals: files


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.safetensors"
    assert refusal(path, FileError) == f"{path}: no such file; expected a VoxSAM model (.safetensors); check the path"


def test_a_folder(tmp_path):
    assert f"{tmp_path} is a folder; expected a VoxSAM model" in refusal(tmp_path, FileError)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_file_that_cannot_be_read(tmp_path):
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    assert f"{loop} cannot be read (Too many levels of symbolic links)" in refusal(loop, FileError)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = saved(tmp_path)
    path.chmod(0)
    assert f"{path} cannot be read (Permission denied)" in refusal(path, FileError)


@pytest.mark.parametrize("text", ["A text file, longer than the length of a header.\n", "short", "\x1f\x8b\x08 gzip"])
def test_a_text_or_another_kind_of_file(tmp_path, text):
    path = tmp_path / "notes.safetensors"
    path.write_text(text)
    assert f"{path} is not a model file; expected a VoxSAM model (.safetensors); give a model's file" in refusal(path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    assert f"{path} is empty" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_opened_and_the_importer_named(tmp_path, zipped):
    path = tmp_path / "last.safetensors"  # known by content, not by name
    torch.save({"a": Trap(tmp_path / "sprung")}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert f"{path} is a PyTorch file (a pickle), not opened" in message
    assert "convert it with `voxsam weights import FILE --kind released|sam --profile" in message
    assert not (tmp_path / "sprung").exists()


def test_a_safetensors_file_of_another_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path, {"format": "pt"})
    message = refusal(path)
    assert f"{path} is a .safetensors file without VoxSAM's metadata; expected a VoxSAM model" in message
    assert "if it is a SAM file, convert it with `voxsam weights import" in message


@pytest.mark.parametrize("kept", [20, 2_000, -1])
def test_a_truncated_file(tmp_path, kept):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(path)
    assert f"{path} is truncated or damaged (" in message
    assert "expected a complete file; copy or download it again" in message
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        read_card(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused_and_named(tmp_path, value):
    network = small_network()
    name = "mask_decoder.fuse.weight"
    with torch.no_grad():
        network.get_parameter(name).view(-1)[-1] = value
    save_model(network, tmp_path / "model.safetensors")
    message = refusal(tmp_path / "model.safetensors")
    assert f"the tensor {name} has NaN or infinite numbers; expected finite numbers; get the file again" in message


# Refusals: the card


def test_a_newer_format(tmp_path):
    path = rewritten(saved(tmp_path), format_version=9, colour_of_the_future="blue")
    assert refusal(path) == (
        f"{path} was written by a newer VoxSAM (format version 9); expected format version 1 or older; "
        "upgrade with `pip install -U voxsam`"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"colour": "blue"}, "its metadata do not fit, colour: Extra inputs are not permitted"),
        ({"config": {"size": "vit_b"}}, "its metadata do not fit, config.width: Field required"),
        ({"format": "other"}, "its metadata do not fit, format: Input should be 'voxsam'"),
        ({"preprocessing": 3}, "its metadata do not fit, preprocessing: "),
        ({"preprocessing": {"clip": (0, 1), "mean": 1e30, "sd": 1}}, "do not fit, preprocessing.mean: Input should be"),
        ({"preprocessing": {"clip": (0, 1), "mean": 0, "sd": 1e-30}}, "do not fit, preprocessing.sd: Input should be"),
        (
            {"preprocessing": {"clip": (0, 1), "mean": 0, "sd": 1, "spacing_mm": (1, 1e30, 1)}},
            "do not fit, preprocessing.spacing_mm.1: Input should be less than or equal to 1000",
        ),
    ],
)
def test_a_card_that_does_not_fit(tmp_path, fields, words):
    assert words in refusal(rewritten(saved(tmp_path), **fields))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "its metadata are not JSON"),
        ("[1]", "its metadata do not fit"),
        ("[" * 100_000, "its metadata are not JSON: recursion limit exceeded"),
        ('{"a":' * 100_000, "its metadata are not JSON: recursion limit exceeded"),
        (f'{{"format": {"9" * 10_000}}}', "its metadata are not JSON"),
    ],
    ids=["cut off", "a list", "deep lists", "deep objects", "a number of 10,000 digits"],
)
def test_metadata_that_are_no_card(tmp_path, text, words):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path, {METADATA_KEY: text})
    assert words in refusal(path)


def test_a_configuration_that_no_network_has(tmp_path):
    config = SMALL.model_dump(mode="json") | {"adapter_width": -4}
    assert "adapter_width: Input should be greater than or equal to 1" in refusal(
        rewritten(saved(tmp_path), config=config)
    )


# Refusals: the tensors


def test_a_missing_tensor_is_named(tmp_path):
    gone = {"mask_decoder.fuse.weight": None}
    message = refusal(rewritten(saved(tmp_path), gone))
    assert re.search(r"model.safetensors lacks the tensor mask_decoder.fuse.weight; expected the \d+ tensors", message)


def test_the_first_of_several_missing_tensors_is_named(tmp_path):
    gone = {"mask_decoder.fuse.weight": None, "mask_decoder.classify.weight": None}
    assert "lacks the tensor mask_decoder.fuse.weight and 1 more" in refusal(rewritten(saved(tmp_path), gone))


def test_an_unexpected_tensor_is_named(tmp_path):
    message = refusal(rewritten(saved(tmp_path), {"mask_decoder.extra": torch.ones(2)}))
    assert "has a tensor that is not known, mask_decoder.extra" in message


def test_a_wrong_shape_is_named(tmp_path):
    turned = {"mask_decoder.classify.weight": torch.ones(7, 2, 3, 3, 3)}
    message = refusal(rewritten(saved(tmp_path), turned))
    assert "the tensor mask_decoder.classify.weight has shape 7 x 2 x 3 x 3 x 3; expected 2 x 7 x 3 x 3 x 3" in message


def test_a_shape_of_many_axes_is_counted(tmp_path):
    many = {"mask_decoder.classify.weight": torch.ones(2, 7, 3, 3, 3)[(None,) * 59]}
    assert "classify.weight has shape 64 axes; expected 2 x 7 x 3" in refusal(rewritten(saved(tmp_path), many))


def test_a_tensor_of_whole_numbers(tmp_path):
    whole = {"mask_decoder.classify.weight": torch.ones(2, 7, 3, 3, 3, dtype=torch.int32)}
    assert "classify.weight holds torch.int32; expected floating-point" in refusal(rewritten(saved(tmp_path), whole))


# Refusals: where to write


def test_saving_into_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileError, match="the output folder .*none does not exist; expected an existing folder"):
        save_model(small_network(), tmp_path / "none" / "model.safetensors")


def test_saving_onto_a_folder(tmp_path):
    with pytest.raises(FileError, match="is a folder; expected the name of a file"):
        save_model(small_network(), tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voxsam.weights.checkpoint.save_file", full)
    with pytest.raises(FileError, match="model.safetensors could not be written .No space left on device"):
        save_model(small_network(seed=1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


# Names


def test_an_unknown_name_lists_the_known_ones():
    assert refusal("voxsam-huge") == (
        "unknown model 'voxsam-huge'; expected one of voxsam-tiny, sam_vit_b, sam_vit_l, sam_vit_h, 3dsam-adapter; "
        "see `voxsam weights list`"
    )


def test_the_packaged_model_by_its_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    saved(tmp_path, name="voxsam-tiny.safetensors")
    (tmp_path / "here" / "voxsam-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(registry, "PACKAGED_FOLDER", tmp_path)
    assert load_model("voxsam-tiny", "cpu").card.name == "small"


def test_a_packaged_model_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGED_FOLDER", tmp_path)
    assert "is missing from this installation" in refusal("voxsam-tiny", FileError)


def test_a_file_without_suffix_in_the_working_folder_is_a_file(tmp_path, monkeypatch):
    saved(tmp_path, name="mine")
    monkeypatch.chdir(tmp_path)
    assert load_model("mine", "cpu").card.name == "small"


def test_sam_by_its_name_says_fetch_and_import(models_home):
    message = refusal("sam_vit_l")
    assert "sam_vit_l is SAM's 2D file, to be fine-tuned first; expected a VoxSAM model" in message
    assert "run `voxsam weights fetch sam_vit_l`, then `voxsam weights import" in message
    (models_home / "sam_vit_l_0b3195.pth").touch()
    assert "weights fetch" not in refusal("sam_vit_l")


def test_the_authors_checkpoints_by_name_say_where_they_are():
    assert "download them by hand from their project page, https://github.com/med-air/" in refusal("3dsam-adapter")


@pytest.mark.parametrize(
    "field", ["width", "depth", "prompt_layers", "window", "position_grid", "crop", "queries", "refine_width"]
)
@pytest.mark.parametrize("asked", [0, -1, 10**6, 10**30])
def test_sizes_that_no_network_has_are_refused_before_one_is_built(field, asked):
    with pytest.raises(ValueError, match=rf"{field}\n  Input should be (greater|less) than or equal to \d+"):
        ModelConfig.model_validate({**TINY.model_dump(), field: asked})


def test_a_network_that_the_file_has_no_tensors_for_is_not_built():
    """256 blocks of 3 GiB each would be reserved."""
    large = TINY.model_copy(update={"width": 16_384, "depth": 256})
    start = psutil.Process().memory_info()
    with pytest.raises(
        CheckpointError, match=r"made: no network has its configuration \(it asks for more numbers than"
    ):
        assemble(Card(name="large", config=large, preprocessing=RELEASED["colon"]), {}, "made")
    end = psutil.Process().memory_info()
    assert end.vms - start.vms < 2**30 and end.rss - start.rss < 2**28
