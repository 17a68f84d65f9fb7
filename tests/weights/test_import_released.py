"""Released checkpoints: names, axes, refusals, and that nothing in a file is executed."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from checkpoint_cases import SMALL, Trap, answer, released_contents, sam_contents

from voxsam.errors import CheckpointError, FileError, InputError
from voxsam.network.sizes import VIT_B
from voxsam.network.tuning import counts
from voxsam.preprocess import PAPER, RELEASED
from voxsam.weights import import_checkpoints as module
from voxsam.weights.checkpoint import load_model, save_model
from voxsam.weights.file import read_pickle
from voxsam.weights.import_checkpoints import import_released, translate_name


@pytest.fixture
def small(monkeypatch):
    """Let the importer take the small configuration for ViT-B's."""
    monkeypatch.setattr(module, "VIT_B", SMALL)


def written(folder: Path, **changes: object) -> Path:
    """A released checkpoint with some of its entries replaced (None: left out)."""
    contents = {key: value for key, value in (released_contents() | changes).items() if value is not None}
    torch.save(contents, folder / "last.pth.tar")
    return folder / "last.pth.tar"


def refusal(path: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        import_released(path, "kits")
    message = str(caught.value)
    assert "\n" not in message
    return message


def generator(reference: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("released_generator", reference / "make_released_checkpoint.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# What comes out


def test_each_tensor_comes_from_its_own_with_its_axes_turned(tmp_path, small):
    contents = released_contents()
    encoder, prompt, decoder = contents["encoder_dict"], contents["feature_dict"][3], contents["decoder_dict"]
    state = import_released(written(tmp_path), "colon").state_dict()
    conv = encoder["blocks.2.adapter.conv.weight"]  # (out, in, h, w, d)
    turned = state["image_encoder.blocks.2.adapter.conv.weight"]  # (out, in, d, h, w)
    assert turned[4, 0, 2, 0, 1] == conv[4, 0, 0, 1, 2]
    assert state["mask_decoder.fuse.weight"][5, 20, 0, 1, 2] == decoder["cls.0.weight"][5, 20, 1, 2, 0]
    assert state["mask_decoder.heads.2.conv2.weight"][1, 3, 1, 2, 0] == decoder["mlahead.head4.3.weight"][1, 3, 2, 0, 1]
    assert torch.equal(state["image_encoder.plane_positions"], encoder["pos_embed"][0])
    assert torch.equal(state["image_encoder.depth_positions"], encoder["depth_embed"][0])
    assert torch.equal(state["image_encoder.patch_embedding.slice_weight"], encoder["slice_embed.weight"][:, 0, 0, 0])
    assert torch.equal(state["image_encoder.necks.1.reduce.weight"], encoder["neck_3d.1.0.weight"][..., 0, 0, 0])
    assert state["image_encoder.blocks.3.attention.rel_pos_gain"] == encoder["blocks.3.attn.lr"]
    image_to_query = prompt["transformer.layers.1.cross_attn_image_to_token.q_proj.weight"]
    assert torch.equal(state["prompt_encoder.layers.1.image_to_query.q_proj.weight"], image_to_query)
    assert torch.equal(state["prompt_encoder.layers.0.global_queries"], prompt["transformer.layers.0.global_query"][0])


@pytest.mark.parametrize("profile", ["kits", "lits", "pancreas", "colon"])
def test_the_card_has_the_profiles_preprocessing_and_the_released_arithmetic(tmp_path, small, profile):
    card = import_released(written(tmp_path), profile).card
    assert card.preprocessing == RELEASED[profile]
    assert (card.name, card.config.profile) == (f"3dsam-adapter-{profile}", "released")
    assert card.scores == {"best_val_loss": 0.375}
    assert "last.pth.tar" in card.description["source"]


def test_the_papers_variant(tmp_path, small):
    card = import_released(written(tmp_path), "lits", "paper").card
    assert card.preprocessing == PAPER["lits"]
    assert card.config.profile == "paper"


def test_the_import_saved_and_loaded_gives_the_same_answer(tmp_path, small):
    network = import_released(written(tmp_path), "kits")
    save_model(network, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", "cpu")
    assert torch.equal(answer(loaded), answer(network))


@pytest.mark.parametrize("module_name", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("make", [np.float64, np.float32])
def test_a_numpy_scalar_as_best_loss_is_read(tmp_path, small, module_name, make):
    path = written(tmp_path, best_val_loss=make(0.25))
    renamed_in_pickle(path, b"numpy._core.multiarray", module_name.encode())
    assert import_released(path, "kits").card.scores == {"best_val_loss": 0.25}


def renamed_in_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Change a module name in the pickle of a zipped checkpoint: numpy 1 and 2 write different ones."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


def test_numpy_scalars_of_other_types_are_passed_over(tmp_path, small):
    assert import_released(written(tmp_path, best_val_loss=np.int64(3)), "kits").card.scores == {}
    assert import_released(written(tmp_path, best_val_loss=float("inf")), "kits").card.scores == {}


def test_an_old_file_that_is_no_zip_archive_is_read(tmp_path, small):
    torch.save(released_contents(), tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    new, old = import_released(written(tmp_path), "kits"), import_released(tmp_path / "old.pth.tar", "kits")
    assert torch.equal(answer(new), answer(old))


def test_the_generators_whole_file_is_imported(tmp_path, shared_reference):
    made = generator(shared_reference).released(0)
    torch.save(made, tmp_path / "last.pth.tar")
    network = import_released(tmp_path / "last.pth.tar", "kits")
    assert network.config == VIT_B
    assert counts(network).total == 104_056_588 + 3_164_160 - 263_424 + 7_088_256
    state = network.state_dict()
    for part, tensors in (("encoder", made["encoder_dict"]), ("prompt", made["feature_dict"][3])):
        for name, tensor in tensors.items():
            new = translate_name(part, name)
            if new is not None:
                assert state[new].double().sum().item() == pytest.approx(tensor.double().sum().item(), abs=1e-9)


def test_a_checkpoint_of_automatic_mode_has_no_prompt_encoder_and_sees_wider_crops(tmp_path, small, monkeypatch):
    """The released crop is 256 with stride 8, two voxels in one; here 40, for the table of five tokens in depth."""
    assert VIT_B.model_copy(update=module.AUTOMATIC).token_grid == VIT_B.token_grid == 32
    monkeypatch.setattr(module, "AUTOMATIC", {"crop": 40, "stride": 8})
    network = import_released(written(tmp_path, feature_dict=None), "colon")
    assert network.card.automatic and network.card.prompts == ()
    assert (network.card.name, network.config.crop) == ("3dsam-adapter-colon-auto", 40)
    assert not [name for name in network.state_dict() if name.startswith("prompt_encoder.")]
    save_model(network, tmp_path / "auto.safetensors")
    loaded = load_model(tmp_path / "auto.safetensors", "cpu")
    monkeypatch.setattr(module, "VIT_B", network.config)
    (tmp_path / "clicked").mkdir()
    clicked = import_released(written(tmp_path / "clicked"), "colon")
    crop = torch.sin(torch.arange(40.0**3)).reshape(1, 1, 40, 40, 40)
    with torch.no_grad():
        logits = loaded(crop)
        assert logits.shape == (1, 2, 40, 40, 40)
        # The same encoder and decoder, asked without a click; the kernels of the loaded one add in another order.
        torch.testing.assert_close(logits, clicked(crop), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_the_papers_wider_crops(tmp_path, small, monkeypatch):
    """256 voxels a side with a stride of 8 make as many tokens as 128 with 4; here 40, for five tokens in depth."""
    assert {VIT_B.model_copy(update=sides).token_grid for sides in module.CROPS.values()} == {32}
    monkeypatch.setitem(module.CROPS, 256, {"crop": 40, "stride": 8})
    wide, narrow = (import_released(written(tmp_path), "kits", crop=crop) for crop in (256, None))
    assert (wide.config.crop, wide.config.stride) == (40, 8) and narrow.config == SMALL
    crop = torch.sin(torch.arange(40.0**3)).reshape(1, 1, 40, 40, 40)
    with torch.no_grad():
        assert wide(crop, torch.tensor([[[3.0, 20.0, 11.0]]])).shape == (1, 2, 40, 40, 40)
    with pytest.raises(InputError, match="--crop 200; expected 128 or 256 voxels"):
        import_released(tmp_path / "last.pth.tar", "kits", crop=200)


# Refusals


def test_an_unknown_profile(tmp_path):
    with pytest.raises(InputError, match="profile 'brain'; expected one of kits, lits, pancreas, colon; name the data"):
        import_released(tmp_path / "none", "brain")


def test_a_missing_file_and_a_folder(tmp_path):
    assert "no such file; expected a checkpoint of the released" in refusal(tmp_path / "last.pth.tar", FileError)
    assert "is a folder; expected a checkpoint of the released" in refusal(tmp_path, FileError)


def test_a_checkpoint_without_two_parts(tmp_path):
    message = refusal(written(tmp_path, feature_dict=None, decoder_dict=None))
    assert "has no feature_dict, decoder_dict;" in message


def test_a_sam_file_given_as_released(tmp_path):
    torch.save(sam_contents(), tmp_path / "sam.pth")
    assert "sam.pth is a SAM file; expected a checkpoint of the released" in refusal(tmp_path / "sam.pth")
    assert refusal(tmp_path / "sam.pth").endswith("import it with --kind sam")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_dict": {"a": 1}}, "feature_dict is no list of four prompt encoders"),
        ({"feature_dict": [{}, {}, {}]}, "feature_dict is no list of four prompt encoders"),
        ({"decoder_dict": [1, 2]}, "the decoder part of"),
        ({"decoder_dict": {"cls.0.weight": 3}}, "is no dictionary of tensors"),
        ({"decoder_dict": {"cls.9.weight": torch.ones(1)}}, "that the released code does not have, cls.9.weight"),
        (
            {"decoder_dict": {"cls.0.weight": torch.ones(1)}},
            "lacks the tensor mask_decoder.heads.0.conv1.weight and 8 more",
        ),
    ],
)
def test_parts_of_another_form(tmp_path, small, changes, words):
    assert words in refusal(written(tmp_path, **changes))


def test_a_tensor_of_another_shape_is_named(tmp_path, small):
    decoder = released_contents()["decoder_dict"] | {"cls.3.weight": torch.ones(5, 7, 3, 3, 3)}
    message = refusal(written(tmp_path, decoder_dict=decoder))
    assert "mask_decoder.classify.weight has shape 5 x 7 x 3 x 3 x 3; expected 2 x 7 x 3 x 3 x 3" in message


def test_a_truncated_checkpoint(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(path) == (
        f"{path} is truncated or damaged (PytorchStreamReader failed reading zip archive: failed finding central "
        "directory); expected a complete file; copy or download it again"
    )


@pytest.mark.parametrize(("content", "words"), [(b"just text\n", "is not a PyTorch file"), (b"", "is empty")])
def test_a_file_of_another_kind(tmp_path, content, words):
    path = tmp_path / "last.pth.tar"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_list_instead_of_a_dictionary(tmp_path):
    torch.save([1, 2], tmp_path / "last.pth.tar")
    assert "holds a list; expected a checkpoint" in refusal(tmp_path / "last.pth.tar")


# Nothing is executed


def test_a_trap_in_the_released_layout_is_not_sprung(tmp_path, small):
    sprung = tmp_path / "sprung"
    path = written(tmp_path, best_val_loss=Trap(sprung))
    message = refusal(path)
    assert "holds more than tensors and numbers" in message
    assert f"{os.mkdir.__module__}.mkdir" in message
    assert "nothing of it was executed" in message
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap works: whoever unpickles it makes the folder
    assert sprung.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_malicious_pickle_is_not_executed(tmp_path, protocol):
    path = tmp_path / "last.pth.tar"
    path.write_bytes(pickle.dumps({"encoder_dict": Trap(tmp_path / "sprung")}, protocol=protocol))
    refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_numpys_names_mean_nothing_but_numbers(tmp_path):
    """The allowed names are stand-ins: numpy's own scalar maker, given an object type, is never reached."""
    made = read_pickle(saved_pickle(tmp_path, {"x": np.float64(1.5), "y": np.datetime64("2020-01-01")}), "x")
    assert made == {"x": 1.5, "y": None}
    with pytest.raises(CheckpointError, match="holds more than tensors and numbers"):
        read_pickle(saved_pickle(tmp_path, {"x": np.ones(3)}), "x")


def saved_pickle(folder: Path, contents: object) -> Path:
    stream = io.BytesIO()
    torch.save(contents, stream)
    (folder / "x.pth").write_bytes(stream.getvalue())
    return folder / "x.pth"
