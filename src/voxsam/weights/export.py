"""Models as ONNX for other programs, such as a browser: a folder of encoder.onnx, decoder.onnx and card.json.

The encoder computes from a crop what no click changes, and the decoder the logits from that and the clicks, so that
later clicks are cheap. Sampling the prompt features (voxsam.network.prompt_encoder.sample_features), whose clicks may
lie in another crop, and the conditioning are left to the program. docs/web.md lists inputs and outputs.

D H W crop, N points, C width of the prompt features.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from voxsam.atomic import atomic_folder
from voxsam.errors import FileError, InternalError, UnsupportedError
from voxsam.extras import needs_extra
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.refinement import Details
from voxsam.weights.checkpoint import read_network

if TYPE_CHECKING:
    import onnx_ir

OPSET = 18  # ScatterElements sums since 16, Resize is torch's since 18; onnxruntime-web runs them in WASM
TOLERANCE = 1e-4  # between torch and onnxruntime, of the largest value: they sum in another order
INSIDE_BYTES = 1 << 28  # of weights stored in the .onnx file itself; more go beside it (a file of 2 GiB is no ONNX)
HALF_FROM = 256  # numbers in a tensor from which half precision is worth the node that undoes it
OF_CLICKS = {"points", "prompt_features", "labels"}  # inputs (1, N, ...) of any number of clicks
FILES = ("encoder.onnx", "decoder.onnx", "card.json")


def export_onnx(source: str | Path, folder: Path, progress: Callable[[str], None] = lambda stage: None) -> None:
    """Write the model of a file, or a named one, to `folder`, whole or not at all; an earlier export is replaced.

    Tensors that half precision holds exactly take half the space, with equal results. Both graphs are tried out before
    the folder takes its name. Raises UnsupportedError for a network that is not VoxSAM's or without the extra
    `onnx`, FileError for a folder that holds anything else or cannot be written.
    """
    _check_folder(folder)
    with needs_extra("onnx", "an export to ONNX"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    network = read_network(source)
    if not isinstance(network, VoxSAMNetwork):
        raise UnsupportedError(
            f"the model {network.card.name} of the system {network.card.system}",
            "a model of VoxSAM's own network",
            "export it with the program that it is from",
        )
    with atomic_folder(folder) as made, torch.no_grad():
        encoder, decoder = Encoder(network), Decoder(network)
        config, generator = network.config, torch.Generator().manual_seed(0)
        crop = torch.randn(1, config.channels, *(config.crop,) * 3, generator=generator)  # to try the graphs on
        progress("encoder")
        encoded = dict(zip(encoder.output_names, encoder(crop), strict=True))
        write_graph(made / FILES[0], encoder, {"crop": crop}, encoder.output_names)
        progress("decoder")
        write_graph(made / FILES[1], decoder, {**encoded, **_prompts(network)}, decoder.output_names)
        (made / FILES[2]).write_text(network.card.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _check_folder(folder: Path) -> None:
    """Raises FileError if the folder holds files that no export has written, is a file, or cannot be read."""
    expected, remedy = "a new folder, or one that an export has written", "choose another with -o"
    try:
        os.path.realpath(folder).encode()
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder} is a file", expected, remedy)
        known = {*FILES, *(f"{name}.data" for name in FILES)}
        others = sorted(file.name for file in folder.iterdir() if file.name not in known) if folder.exists() else []
    except UnicodeEncodeError as error:
        given = f"{folder} is no text in UTF-8, and onnxruntime, which tries the graphs, opens no such path"
        raise FileError(given, expected, remedy) from error
    except OSError as error:
        raise FileError(f"{folder} ({error.strerror})", expected, remedy) from error
    if others:
        raise FileError(f"{folder} holds {others[0]}", expected, remedy)


# The two graphs


class Encoder(nn.Module):
    """A crop -> the prompted feature maps, the static part of decoding and, with a refinement head, its details."""

    def __init__(self, network: VoxSAMNetwork) -> None:
        super().__init__()
        self.network = network
        self.output_names = [f"level_{level}" for level in network.config.prompt_levels] + ["static"]
        self.output_names += Details._fields if network.goes_on else ()

    def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
        """(1, K, D, H, W) normalised -> tensors in the order of `output_names`."""
        features = self.network.encode(crop)
        static = self.network.static(features, crop)
        return (*self.network.prompted(features), *((static,) if isinstance(static, Tensor) else static))


class Decoder(nn.Module):
    """The encoder's outputs and clicks -> logits, and the fused features if the card has conditioning, which uses them.

    Which inputs there are for the clicks depends on the model: see `_prompts`.
    """

    def __init__(self, network: VoxSAMNetwork) -> None:
        super().__init__()
        self.network = network
        self.output_names = ["logits"] + ["fused"] * (network.card.conditioning is not None)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The encoder's tensors, then the prompts' in the order of `_prompts` -> (1, 2, D, H, W), (1, m, F, F, F)."""
        levels, config = len(self.network.config.prompt_levels), self.network.config
        details = len(Details._fields) if self.network.goes_on else 0
        features, static = inputs[:levels], inputs[levels : levels + 1 + details]
        prompts = dict(zip(_prompts(self.network), inputs[levels + 1 + details :], strict=True))
        points = prompts.get("points")
        if config.prompt_kind == "positional" and points is not None:
            prompts["prompt_features"] = points.new_zeros((*points.shape[:2], 0))
        like = features[0].new_zeros(1).expand(1, config.channels, *(config.crop,) * 3)  # only its shape counts
        _, fused, logits = self.network.decode_stages(
            features, like, static=static if details else static[0], **prompts
        )
        return (logits, fused)[: len(self.output_names)]


def _prompts(network: VoxSAMNetwork) -> dict[str, Tensor]:
    """The decoder's inputs besides the encoder's outputs, for three clicks; their number is free in the graph."""
    config = network.config
    if network.card.automatic:
        return {}
    generator = torch.Generator().manual_seed(1)
    prompts = {"points": torch.rand(1, 3, 3, generator=generator) * config.crop}
    if config.prompt_kind == "sampler":
        width = config.feature_width * len(config.prompt_levels)
        prompts["prompt_features"] = torch.randn(1, 3, width, generator=generator)
    if config.polarity:
        prompts["labels"] = torch.tensor([[1, 0, 1]])
    if network.goes_on:
        prompts["previous"] = torch.randn(1, 1, *(config.crop,) * 3, generator=generator)
    return prompts


# Files


def write_graph(path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> None:
    """Write the graph of a module with `inputs`, in their order, and check that onnxruntime agrees with torch.

    Inputs named in OF_CLICKS take any number of clicks. Raises InternalError if the two differ.
    """
    expected = module.eval()(*inputs.values())  # first: it fills tables that tracing cannot
    clicks = torch.export.Dim("clicks", max=4096)
    free = tuple({1: clicks} if name in OF_CLICKS else None for name in inputs)
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(free,) if any(free) else None,
            verbose=False,
        )
    assert program is not None
    _slim(program.model)
    inside = sum(
        value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value is not None
    )
    program.save(path, external_data=inside > INSIDE_BYTES)
    _check(path, inputs, dict(zip(outputs, expected, strict=True)))


def _slim(model: onnx_ir.Model) -> None:
    """Remove duplicates and what tracing noted about the machine; store in half precision what loses nothing."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

    DeduplicateInitializersPass(size_limit=1 << 40)(model)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        if numbers.dtype != np.float32 or numbers.size < HALF_FROM:
            continue
        with np.errstate(over="ignore"):
            half = numbers.astype(np.float16)
        if not np.array_equal(half, numbers):
            continue
        stored = onnx_ir.Value(name=f"{name}_half", const_value=onnx_ir.tensor(half))
        whole = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT})
        onnx_ir.convenience.replace_all_uses_with(value, whole.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], whole)
    ClearMetadataAndDocStringPass()(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter tells its own developers: about torchvision, and about its deprecated parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _check(path: Path, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises InternalError if onnxruntime computes something else from a graph than expected."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(list(expected), {name: x.numpy() for name, x in inputs.items() if name in wanted})
    for (name, ours), theirs in zip(expected.items(), found, strict=True):
        error = float(np.abs(ours.numpy() - theirs).max())
        if not error <= TOLERANCE * max(1.0, float(ours.abs().max())):
            raise InternalError(f"{name} of {path.name} differs by {error:.2g} between torch and onnxruntime")
