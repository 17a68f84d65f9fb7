"""Models with several image channels: they add only what they need, and each image keeps its grid and intensities."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.known_model import FAR, KnownModel, block_scan, upright
from voxsam.cli import main
from voxsam.errors import UnsupportedError
from voxsam.geometry import Grid
from voxsam.interactive.automatic import segment_automatically
from voxsam.interactive.session import Session
from voxsam.io import read_volume, write_volume
from voxsam.kernels import install
from voxsam.network.card import Card
from voxsam.network.image_encoder import PatchEmbedding
from voxsam.network.network import VoxSAMNetwork
from voxsam.preprocess import Intensity, Preprocessing, Window, read_crops
from voxsam.testing import stub_network, stub_scan
from voxsam.volume import Volume
from voxsam.weights.checkpoint import load_model, save_model

T2 = Intensity(modality="MR", clip=(0, 900), mean=300, sd=150)


def two_channels() -> VoxSAMNetwork:
    """The stub network with two channels."""
    card = stub_network().card
    fields = {"config": card.config.model_copy(update={"channels": 2})}
    fields["preprocessing"] = card.preprocessing.with_channels([T2])
    torch.manual_seed(3)
    network = VoxSAMNetwork(card.model_copy(update=fields))
    install(network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_the_embedding_of_two_channels_is_the_sum_of_two_embeddings() -> None:
    torch.manual_seed(0)
    both = PatchEmbedding(12, patch=8, stride=4, channels=2)
    crops = torch.randn(2, 2, 16, 8, 12)
    wanted = -both.patch_bias * 0
    for channel in range(2):
        one = PatchEmbedding(12, patch=8, stride=4)
        one.load_state_dict({**both.state_dict(), "slice_weight": both.slice_weight[:, 8 * channel : 8 * channel + 8]})
        wanted = wanted + one(crops[:, channel : channel + 1]) - both.slice_bias
    torch.testing.assert_close(both(crops), wanted + both.slice_bias)
    assert not torch.allclose(both(crops), both(crops.flip(1)))


def test_another_channel_adds_its_slices_and_its_share_of_the_decoder_and_nothing_else() -> None:
    one = {name: tensor.shape for name, tensor in stub_network().state_dict().items()}
    two = {name: tensor.shape for name, tensor in two_channels().state_dict().items()}
    changed = {name for name in one if one[name] != two[name]}
    assert one.keys() == two.keys()
    assert changed == {"image_encoder.patch_embedding.slice_weight", "mask_decoder.fuse.weight"}
    assert two["mask_decoder.fuse.weight"][1] == one["mask_decoder.fuse.weight"][1] + 1


def test_a_network_of_two_channels_answers_to_both_and_to_their_order() -> None:
    network, points = two_channels(), torch.tensor([[[5.0, 9, 7]]])
    crops = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answer = network(crops, points)
        swapped = network(crops.flip(1), points)
        second = network(crops * torch.tensor([1.0, 0])[None, :, None, None, None], points)
    assert answer.shape == (1, 2, 16, 16, 16)
    assert (answer - swapped).abs().max() > 1e-3
    assert (answer - second).abs().max() > 1e-3


def test_its_file_keeps_both_channels(tmp_path) -> None:
    network = two_channels()
    save_model(network, tmp_path / "mr.safetensors")
    loaded = load_model(tmp_path / "mr.safetensors", "cpu")
    assert loaded.config.channels == 2
    assert loaded.card.preprocessing.channel(1) == network.card.preprocessing.channel(0).model_copy(
        update=T2.model_dump()
    )


def test_the_card_refuses_a_network_of_another_number_of_channels() -> None:
    card = stub_network().card
    with pytest.raises(ValueError, match="1 image in preprocessing for a network of 2 channels"):
        Card.model_validate({**card.model_dump(), "config": {**card.config.model_dump(), "channels": 2}})


def test_each_image_is_read_where_it_lies_with_its_own_numbers() -> None:
    """T1 at 1 mm, T2 on a rotated grid with another spacing: both are linear functions of the place."""
    preprocessing = Preprocessing(modality="MR", clip=(-1e4, 1e4), mean=5, sd=2).with_channels([T2])
    t1 = upright(30, 20, 25)
    t2 = Grid.from_spacing((40, 22, 13), (1.0, 1.5, 2.5), (-8, 2, 12)).reorient("SLP")
    ramps = []
    for grid in (t1, t2):
        place = grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
        ramps.append(Volume((place @ [3.0, 7, 11]).astype(np.float32), grid, "MR"))
    window = Window(preprocessing.model_grid(t1), (4, 5, 6), (8, 9, 10))
    crops = read_crops(ramps, window, preprocessing)
    place = window.grid.index_to_world(np.moveaxis(np.indices(window.shape), 0, -1)) @ [3.0, 7, 11]
    assert crops.shape == (2, 8, 9, 10) and crops.dtype == np.float32
    np.testing.assert_allclose(crops[0], (place - 5) / 2, atol=1e-3)
    np.testing.assert_allclose(crops[1], (np.clip(place, 0, 900) - 300) / 150, atol=1e-4)


class SecondChannel(KnownModel):
    """A KnownModel that uses the second image only."""

    def __init__(self) -> None:
        super().__init__()
        second = Intensity(modality="MR", clip=(-10, 10), mean=0, sd=10)
        self.describe(preprocessing=self.card.preprocessing.with_channels([second]))

    def encode(self, crops, progress=None):
        assert crops.shape[:2] == (1, 2)
        return super().encode(crops[:, 1:], progress)

    def static(self, features, crops):
        return features[-1] * 0


def test_a_session_of_two_images_answers_on_the_grid_of_the_first() -> None:
    first, second = upright(24, 20, 22), upright(24, 20, 22).reorient("SPL")
    box = ((9, 13), (8, 11), (7, 12))
    tumour = block_scan(upright(24, 20, 22), box, values=(10 * FAR,)).array
    tumour = np.where(tumour < 0, -10 * FAR, tumour)
    axes, flips = first.permutation_to("SPL")
    turned = tumour.transpose(axes)[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    blank = Volume(np.zeros(first.shape, np.float32), first, "MR")
    images = (blank, Volume(np.ascontiguousarray(turned), second, "MR"))
    mask = Session(SecondChannel(), images).click((10, 9, 9))  # type: ignore[arg-type]
    wanted = np.zeros(first.shape, np.uint8)
    wanted[tuple(slice(*ends) for ends in box)] = 1
    assert mask.grid == first
    np.testing.assert_array_equal(mask.array, wanted)


def test_another_number_of_images_is_refused_in_words() -> None:
    scan = block_scan(upright(20, 20, 20))
    with pytest.raises(UnsupportedError, match=r"1 image for the model known; expected 2 of the same patient"):
        Session(SecondChannel(), scan)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"2 images for the model stub; expected 1 of the same patient \(CT\)"):
        segment_automatically(stub_network(automatic=True), (scan, scan))


def test_the_command_line_takes_further_images_and_files_of_several(tmp_path, capsys) -> None:
    """The same mask from two files and from one file with two volumes; a missing channel is named."""
    given = stub_scan()
    first, second = tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz"
    model, both = tmp_path / "mr.safetensors", tmp_path / "both.nii.gz"
    save_model(two_channels(), model)
    t2 = given.scan.with_array((given.scan.array + 200) * 2)
    write_volume(given.scan, first)
    write_volume(t2, second)
    image = nib.Nifti1Image(np.stack([given.scan.array, t2.array], -1), given.scan.grid.affine)
    nib.save(image, both)
    click = ["--click", ",".join(map(str, given.click)), "--model", str(model), "--quiet", "--device", "cpu"]
    assert main(["segment", str(first), "--channel", str(second), *click, "-o", str(tmp_path / "a.nii.gz")]) == 0
    assert main(["segment", str(both), *click, "-o", str(tmp_path / "b.nii.gz")]) == 0
    masks = [read_volume(tmp_path / name, labels=True) for name in ("a.nii.gz", "b.nii.gz")]
    np.testing.assert_array_equal(masks[0].array, masks[1].array)
    assert masks[0].grid.close_to(given.scan.grid)
    assert main(["segment", str(first), *click, "-o", str(tmp_path / "c.nii.gz")]) == 2
    assert "1 image for the model stub; expected 2 of the same patient (CT, MR)" in capsys.readouterr().err
