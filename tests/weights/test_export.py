"""`voxsam weights export`: in onnxruntime the graphs give torch's numbers, for every kind of model; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from voxsam.cli.weights import app
from voxsam.errors import FileError, InternalError, UnsupportedError
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.prompt_encoder import sample_features
from voxsam.network.sizes import VIT_B
from voxsam.testing import stub_network
from voxsam.weights import export
from voxsam.weights.checkpoint import read_network, save_model

pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")
onnx = pytest.importorskip("onnx", reason="needs onnx, onnxscript and onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime")

TOLERANCE = 1e-4  # of the greatest value; sums in another order


class Small(nn.Module):
    """Points scaled by one weight that half precision holds, and shifted by one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = nn.Parameter(torch.arange(300).float().reshape(3, 100) / 8)
        self.other = nn.Parameter(torch.full((300,), 1 / 3))
        self.calls = 0

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (inputs[0] @ self.exact + self.other[:100],)


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_graph_takes_any_number_of_clicks_and_half_the_space_where_nothing_is_lost(tmp_path: Path) -> None:
    module, path = Small().eval(), tmp_path / "small.onnx"
    with torch.no_grad():
        export.write_graph(path, module, {"points": torch.rand(1, 3, 3)}, ["scaled"])
        session = session_of(path)
        for count in (1, 3, 17):
            points = torch.rand(1, count, 3)
            (found,) = session.run(None, {"points": points.numpy()})
            assert np.abs(found - module(points)[0].numpy()).max() < TOLERANCE
    graph = onnx.load(path).graph
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    assert {"FLOAT", "FLOAT16"} <= kinds
    assert not any(node.metadata_props or node.doc_string for node in graph.node)  # they name files of this machine
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_a_graph_that_says_something_else_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, written = stub_network(), []

    def write_graph(path: Path, *_: object) -> None:
        written.append(path)
        path.write_bytes(b"half")
        raise InternalError("logits of decoder.onnx differs by 0.1 between torch and onnxruntime")

    save_model(network, tmp_path / "model.safetensors")
    monkeypatch.setattr(export, "write_graph", write_graph)
    with pytest.raises(InternalError, match="differs by"):
        export.export_onnx(tmp_path / "model.safetensors", tmp_path / "out")
    assert written and sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_what_is_compared_is_torch(tmp_path: Path) -> None:
    inputs = {"points": torch.rand(1, 2, 3)}
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1, N, 3] points) => (float[1, N, 3] scaled)'
        " { scaled = Neg (points) }"
    )
    onnx.save(graph, tmp_path / "g.onnx")
    export._check(tmp_path / "g.onnx", inputs, {"scaled": -inputs["points"]})
    with pytest.raises(InternalError, match=r"scaled of g\.onnx differs by 0\.001"):
        export._check(tmp_path / "g.onnx", inputs, {"scaled": -inputs["points"] + 0.001})
    with pytest.raises(InternalError, match="differs by nan"):
        export._check(tmp_path / "g.onnx", inputs, {"scaled": inputs["points"] * torch.nan})


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    save_model(stub_network(), model)
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(FileError, match=r"out holds letter\.txt; expected a new folder, or one that an export has"):
        CliRunner().invoke(app, ["export", str(model), "-o", str(out)], catch_exceptions=False)
    assert (out / "letter.txt").read_text() == "mine"
    with pytest.raises(FileError, match="model.safetensors is a file"):
        export.export_onnx(model, model)
    written = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match="bad\N{REPLACEMENT CHARACTER}name is no text in UTF-8, and onnxruntime"):
        export.export_onnx(model, tmp_path / "bad\udcffname")
    with pytest.raises(FileError, match=r"x{300} \(File name too long\); expected a new folder"):
        export.export_onnx(model, tmp_path / ("x" * 300))
    assert sorted(tmp_path.rglob("*")) == written
    monkeypatch.setattr(export, "read_network", lambda source: nn.Module.__new__(_Other))
    with pytest.raises(UnsupportedError, match="the model other of the system swin"):
        export.export_onnx(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert "Invalid value" in CliRunner().invoke(app, ["export", str(model), "-o", "x", "--format", "tflite"]).output


class _Other(nn.Module):
    card = type("Card", (), {"name": "other", "system": "swin"})


# Every kind of model


def saved(path: Path, **changes: object) -> Path:
    """A small bare network with other sizes, saved."""
    card = stub_network().card
    torch.manual_seed(0)
    config = type(card.config).model_validate({**card.config.model_dump(), **changes})
    network = VoxSAMNetwork(card.model_copy(update={"config": config}))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_model(network, path)
    return path


def check_exported(model: Path, folder: Path) -> None:
    """Encoder and decoder in onnxruntime as the network in torch, for one, three and ten clicks."""
    network = read_network(model)
    assert isinstance(network, VoxSAMNetwork)
    config, side = network.config, network.config.crop
    crop = torch.randn(1, 1, side, side, side, generator=torch.Generator().manual_seed(5))
    encoder, decoder = session_of(folder / "encoder.onnx"), session_of(folder / "decoder.onnx")
    encoded = dict(
        zip((value.name for value in encoder.get_outputs()), encoder.run(None, {"crop": crop.numpy()}), strict=True)
    )
    wanted = {value.name for value in decoder.get_inputs()}
    for count in (1, 3, 10):
        points = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(count)) * (side + 4) - 2
        labels = torch.tensor([[1, 0] * 5])[:, :count] if config.polarity else None
        previous = torch.randn(1, 1, side, side, side) if network.goes_on else None
        with torch.no_grad():
            features = network.encode(crop)
            logits = network.decode(features, crop, points, labels=labels, previous=previous).numpy()
        feeds = {**encoded, "points": points.numpy()}
        if config.prompt_kind == "sampler":
            levels = [torch.from_numpy(encoded[f"level_{level}"]) for level in config.prompt_levels]
            sampled = [sample_features(level, points, (side, side, side)) for level in levels]
            feeds["prompt_features"] = torch.cat(sampled, -1).numpy()
        feeds |= {} if labels is None else {"labels": labels.numpy()}
        feeds |= {} if previous is None else {"previous": previous.numpy()}
        assert wanted <= set(feeds)
        (found,) = decoder.run(["logits"], {name: feeds[name] for name in wanted})
        assert np.abs(found - logits).max() < TOLERANCE * max(1, np.abs(logits).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"marks": True},
        {"window": 3, "fusion": "crop", "polarity": False},
        {"marks": True, "click_maps": (1.5, 6.0), "refine_width": 8, "crop": 32},
        {"marks": True, "click_maps": (1.5, 6.0), "refine_width": 8, "crop": 32, "click_similarity": (0.35, 1.0)},
        {"prompt_kind": "positional", "prompt_levels": (2, 4)},
    ],
    ids=["marks", "padding", "refinement", "comparing", "positional"],
)
def test_every_kind_of_model_predicts_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", **changes)
    crop, click = torch.ones(1, 1, 32, 32, 32), torch.ones(1, 1, 3)
    with torch.no_grad():
        before = read_network(model)(crop, click)
    said = CliRunner().invoke(app, ["export", str(model), "-o", str(tmp_path / "out")], catch_exceptions=False).stdout
    assert said.startswith(f"{tmp_path / 'out'}: card.json 0.0 MB, decoder.onnx 0.")
    check_exported(model, tmp_path / "out")
    with torch.no_grad():  # an export leaves nothing behind in the tables that are kept
        assert torch.equal(read_network(model)(crop, click), before)


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    sizes = {**VIT_B.model_dump(), "crop": 32, "position_grid": 16}
    model = saved(tmp_path / "vit_b.safetensors", **sizes)
    export.export_onnx(model, tmp_path / "out")
    names = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert set(names) == {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "card.json"}
    assert names["encoder.onnx.data"] > export.INSIDE_BYTES > 20 * names["encoder.onnx"]
    check_exported(model, tmp_path / "out")
