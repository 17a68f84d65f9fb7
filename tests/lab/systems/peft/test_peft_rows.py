"""The rows of Table 2: their recipes, that each learns a phantom, and what they start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint_cases import hugging_face_name
from tests.lab.training.minuscule import recipe
from voxsam.errors import CheckpointError, UnsupportedError
from voxsam.lab.data.layouts import write_phantoms
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.evaluation.systems import AutomaticSystem
from voxsam.lab.systems.common_loop import TunedEncoder, compared_system
from voxsam.lab.systems.compared import COMPARED, Job
from voxsam.lab.training.run import make_stream
from voxsam.lab.training.start import make_network
from voxsam.lab.training.task import SegmentationTask
from voxsam.network.adapters import BlockHook
from voxsam.network.network import VoxSAMNetwork
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import load_model, save_model
from voxsam.weights.import_checkpoints import from_sam

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on loaders and loggers
ROWS = {
    "full-finetuning": ("none", "slices"),
    "adapter": ("houlsby", "slices"),
    "pro-tuning": ("protuning", "slices"),
    "st-adapter": ("st", "slices"),
    "med-tuning": ("med", "slices"),
    "ours-auto": ("spatial", "volume"),
    "lora": ("lora", "volume"),
    "samed": ("samed", "slices"),
    "ma-sam": ("masam", "slices"),
}
SMALL = stub_network().config.model_dump() | {"crop": 24}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared phantoms."""
    folder = tmp_path_factory.mktemp("rows")
    write_phantoms(folder / "raw", [3, 4], ((30, 30, 30), (6, 6, 6)))
    prepare(folder / "raw", folder / "prepared", Options(workers=1))
    return folder / "prepared"


def job(data: Path, out: Path, **changes: object) -> Job:
    fields = {"model": SMALL, "steps": 1, "batch": 1, "warmup": 0, "pictures": 0, "validation": []}
    return Job(data, out, seed=2, recipe={**fields, **changes}, device="cpu")


def system(name: str) -> TunedEncoder:
    found = compared_system(name)
    assert isinstance(found, TunedEncoder)
    return found


def test_they_are_registered() -> None:
    compared_system("voxsam")
    assert set(ROWS) <= set(COMPARED)


@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_is(name: str, data: Path, tmp_path: Path) -> None:
    row, given = system(name), job(data, tmp_path, start_from=None)
    row.check(given)
    made = row.recipe(given)
    assert (made.model.adapter, made.model.tokens) == ROWS[name]
    assert (made.prompts, made.start_part) == ("none", "sam")
    assert made.tune == ("all" if name == "full-finetuning" else "adapters")
    about = row.about
    assert all((about.title, about.paper, about.source, about.licence, about.library, about.differences))
    network = make_network(made)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert row.tuned_parameters(given) == trained
    decoder = sum(p.numel() for p in network.get_submodule("mask_decoder").parameters())
    necks = sum(p.numel() for p in network.get_submodule("image_encoder.necks").parameters())
    uncounted = necks if made.tune == "adapters" and made.model.tokens == "slices" else 0
    assert row.tuned_encoder_parameters(given) == trained - decoder - uncounted


@pytest.mark.parametrize("name", ROWS)
def test_a_row_overfits_one_phantom(name: str) -> None:
    """Even from random weights, since the decoder learns from any encoder's output; the adapter takes part."""
    fixed = system(name).fixed
    changes = {"model": {**SMALL, **fixed["model"], "crop": 16}, "prompts": "none", "tune": fixed["tune"]}
    torch.manual_seed(0)
    given = recipe(**changes, batch=1, learning_rate=1e-2, warmup=0, decay=0.0, steps=60, weight_decay=0.0)
    network = make_network(given)
    assert isinstance(network, VoxSAMNetwork)
    task = SegmentationTask(given, network)
    seen: dict[str, float] = {}
    task.log_dict = lambda values, **_: seen.update({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
    batch = torch.utils.data.default_collate([make_stream(given, None)[0]])
    assert 20 < batch["label"].sum() < batch["label"].numel() / 2
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimiser = task.configure_optimizers()["optimizer"]
    steps = 0
    while seen.get("dice", 0.0) < 0.9 and steps < 60:
        optimiser.zero_grad()
        task.training_step(batch, 0).backward()
        optimiser.step()
        steps += 1
    assert seen["dice"] >= 0.9 and steps > 3
    for n, p in network.named_parameters():
        silent = n.endswith("blocks.0.adapter.earlier.weight")  # Med-Tuning's first stage has none before it
        assert bool((p.detach() != start[n]).any()) is (p.requires_grad and not silent), n


@pytest.mark.parametrize("name", ["med-tuning", "ma-sam", "full-finetuning"])
def test_a_row_is_trained_and_loaded_and_segments(name: str, data: Path, tmp_path: Path) -> None:
    row, given = system(name), job(data, tmp_path)
    row.train(given, lambda line: None)
    loaded = row.load(given)
    assert isinstance(loaded, AutomaticSystem)
    model = load_model(tmp_path / "run" / "model.safetensors", "cpu")
    assert model.config.adapter == ROWS[name][0] and model.card.automatic
    scan = stub_scan().scan
    assert loaded.open(scan).segment([]).array.shape == scan.array.shape


# What they start from


def started(source: Path, adapter: str, tokens: str, **changes: object) -> VoxSAMNetwork:
    model = {**SMALL, "adapter": adapter, "tokens": tokens}
    fields = {"prompts": "none", "start_part": "sam", "start_from": str(source), **changes}
    network = make_network(recipe(model=model, **fields))
    assert isinstance(network, VoxSAMNetwork)
    return network


@pytest.mark.parametrize("adapter", ["st", "masam", "none"])
@pytest.mark.parametrize("tokens", ["volume", "slices"])
def test_sams_part_of_a_model_starts_every_row(adapter: str, tokens: str, tmp_path: Path) -> None:
    """For example the packaged model: its own adapters, 3D necks and decoder are not used."""
    before = make_network(recipe(model=SMALL))
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.normal_()
    save_model(before, tmp_path / "model.safetensors")
    old, new = before.state_dict(), started(tmp_path / "model.safetensors", adapter, tokens).state_dict()
    same = {name for name in new if name in old and torch.equal(new[name], old[name])}
    assert same == {name for name in new if from_sam(name, slices=False)}
    assert {"image_encoder.plane_positions", "image_encoder.blocks.3.norm2.bias"} <= same


@pytest.mark.parametrize("kind", ["meta", "hugging face"])
def test_sams_own_file_starts_every_row(kind: str, tmp_path: Path) -> None:
    """Including its 2D neck, which is used where tokens are of slices."""
    source = started_from_noise()
    state = {name: tensor for name, tensor in source.state_dict().items() if from_sam(name, slices=True)}
    theirs = {as_sam(name): shaped(name, tensor) for name, tensor in state.items()}
    if kind == "meta":
        torch.save(theirs, tmp_path / "sam.pth")
    else:
        save_file({hugging_face_name(name): tensor for name, tensor in theirs.items()}, tmp_path / "sam.safetensors")
    (file,) = tmp_path.iterdir()
    for tokens in ("slices", "volume"):
        new = started(file, "houlsby", tokens).state_dict()
        shared = {name for name in state if tokens == "slices" or not name.startswith("image_encoder.necks.")}
        assert all(torch.equal(new[name], state[name]) for name in shared)
        norms = new["image_encoder.necks.0.norm1.weight"]
        assert bool((norms == 1).all()) is (tokens == "volume")


def started_from_noise() -> VoxSAMNetwork:
    network = make_network(recipe(model={**SMALL, "adapter": "none", "tokens": "slices"}, prompts="none"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    assert isinstance(network, VoxSAMNetwork) and isinstance(network.image_encoder.blocks[0].adapter, BlockHook)
    return network


OLD_NAMES = {
    "patch_embedding.patch_": "patch_embed.proj.",
    "plane_positions": "pos_embed",
    ".attention.": ".attn.",
    ".mlp.0.": ".mlp.lin1.",
    ".mlp.2.": ".mlp.lin2.",
    "necks.0.reduce": "neck.0",
    "necks.0.norm1": "neck.1",
    "necks.0.conv": "neck.2",
    "necks.0.norm2": "neck.3",
}


def as_sam(name: str) -> str:
    for ours, theirs in OLD_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def shaped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("plane_positions"):
        return tensor[None].contiguous()
    return tensor[:, :, None, None].contiguous() if name.endswith("reduce.weight") else tensor


def test_a_start_of_another_size_is_refused(tmp_path: Path) -> None:
    save_model(make_network(recipe(model={**SMALL, "width": 32})), tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"wide\.safetensors does not fit the recipe's network \(image_encoder\."):
        started(tmp_path / "wide.safetensors", "st", "slices")


def test_a_network_that_has_nothing_of_sams_is_refused(tmp_path: Path) -> None:
    fields = {"system": "click-unet", "start_part": "sam", "start_from": "x", "model": {**SMALL, "crop": 32}}
    with pytest.raises(UnsupportedError, match="start_part: sam for the system click-unet; expected all"):
        make_network(recipe(**fields))
