"""Clicks on a GPU: before and after the warm-up, in float32 and bf16; and alternatives for attention and blocks.

    python -m benchmarks.gpu [--size vit_b] [--crop 128] [--device cuda] [-o FILE.json]

`--device cpu` runs the same at any size, to see that it works. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.cases import build
from benchmarks.clicking import all_clicks
from benchmarks.machine import describe_machine
from voxsam.kernels import keep_float32
from voxsam.kernels.warm_up import warm_up
from voxsam.lab.evaluation.tables import markdown_table
from voxsam.network.attention import WindowAttention
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import SIZES, ModelConfig
from voxsam.phantoms import Phantom, make_phantom
from voxsam.preprocess import RELEASED

REPEATS = 5
WINDOWS = 64  # of a crop of 128^3 in ViT-B
CLICK_ROWS = ("first_click_s", "next_click_s", "moving_click_s", "ten_clicks_s")

Results = dict[str, Any]


def flexible(
    q_nhte: Tensor,
    k_nhte: Tensor,
    v_nhte: Tensor,
    relative_nhtr: Tensor,
    window: int,
    attend: Callable = flex_attention,
) -> Tensor:
    """(n, t, h, e) window attention with FlexAttention: the bias is looked up when added, no channels are appended.

    `relative` are the relative logits of WindowAttention, r = 3 w: for the w positions of a key along d, h and w.
    """

    def with_bias(score: Tensor, n: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        places = key // window**2, window + key // window % window, 2 * window + key % window
        return score + sum(relative_nhtr[n, h, query, place] for place in places)

    return attend(q_nhte, k_nhte, v_nhte, score_mod=with_bias, scale=q_nhte.shape[-1] ** -0.5).transpose(1, 2)


def attention_inputs(config: ModelConfig, windows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random q, k, v and relative logits, and the one-hot code of the keys' positions."""
    head, t = config.width // config.heads, config.window**3
    q, k, v = (torch.randn(windows, config.heads, t, head, device=device, dtype=dtype) for _ in range(3))
    relative = torch.randn(windows, config.heads, t, 3 * config.window, device=device, dtype=dtype)
    axes = torch.meshgrid(*[torch.arange(config.window, device=device)] * 3, indexing="ij")
    position = torch.stack(axes, -1).reshape(-1, 3)
    code = torch.nn.functional.one_hot(position, config.window).flatten(1).to(dtype)
    return q, k, v, relative, code.expand(windows, -1, -1)


def measure_attention(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Results:
    """Seconds of one block's core attention: torch's fused kernel with appended channels, and FlexAttention."""
    q, k, v, relative, code = attention_inputs(config, WINDOWS if device.type == "cuda" else 2, device, dtype)
    attention = WindowAttention(config.width, config.heads, 1)
    attend = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    ways = {
        "sdpa_s": lambda: attention.attend(q, k, v, relative, code),
        "flex_s": lambda: flexible(q, k, v, relative, config.window, attend),
    }
    with torch.inference_mode():
        found: Results = {name: seconds(way, device) for name, way in ways.items()}
        sdpa, flex = (way().float() for way in ways.values())
    return {**found, "differ_by": float((sdpa - flex).abs().max())}


def measure_block(network: VoxSAMNetwork, device: torch.device) -> Results:
    """Seconds of one block, eager and compiled; if compilation fails, the error message."""
    config, parameter = network.config, next(network.parameters())
    grid = config.token_grid
    tokens = torch.randn(1, grid, grid, grid, config.width, device=device, dtype=parameter.dtype)
    block = network.image_encoder.blocks[0]
    with torch.inference_mode():
        found: Results = {"eager_s": seconds(lambda: block(tokens.clone()), device)}
        try:
            compiled = torch.compile(block, backend="inductor" if device.type == "cuda" else "eager")
            found["compiled_s"] = seconds(lambda: compiled(tokens.clone()), device)
        except Exception as error:
            found["failed"] = str(error).splitlines()[0]
    return found


def measure_clicks(network: VoxSAMNetwork, phantom: Phantom) -> Results:
    """Seconds of clicks in a session, after another session that selected the kernels."""
    all_clicks(network, phantom)
    return {row: value for row, value in all_clicks(network, phantom).items() if row in CLICK_ROWS}


def measure(size: str, crop: int, device: torch.device) -> Results:
    """All measurements, in float32 and in bf16."""
    config = ModelConfig.model_validate({**SIZES[size].model_dump(), "crop": crop})
    side = max(crop, 96)
    phantom, found = make_phantom(0, (side,) * 3, (2.0,) * 3), {}
    keep_float32(device)
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        network = build(VoxSAMNetwork, config, RELEASED["colon"], 0).to(device, dtype)
        forget_peak(device)
        rows = {"as it is": measure_clicks(network, phantom)}
        chosen = warm_up(network)
        rows["warmed up"] = measure_clicks(network, phantom)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        found[name] = {
            "clicks": rows,
            "chosen": chosen,
            "peak_memory_bytes": peak,
            "attention": measure_attention(config, device, dtype),
            "block": measure_block(network, device),
        }
    return found


def forget_peak(device: torch.device) -> None:
    """Reset the peak memory to that of the networks still in use."""
    if device.type == "cuda":
        gc.collect()  # a warmed-up network is a reference cycle
        torch.cuda.reset_peak_memory_stats(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs, after an uncounted one."""
    work()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def report(results: Results) -> str:
    """The table of clicks, and for each precision a line on attention and blocks, as Markdown."""
    rows, lines = [], []
    for precision in ("float32", "bf16"):
        case = results[precision]
        rows += [{"precision": precision, "network": way, **clicks} for way, clicks in case["clicks"].items()]
        attention, block = (
            {key: f"{n:.2e}" if isinstance(n, float) else n for key, n in case[part].items()}
            for part in ("attention", "block")
        )
        lines.append(f"{precision}: chosen {case['chosen'] or 'nothing'}; attention {attention}; block {block}")
    return "\n\n".join([f"{results['device']}; torch {results['machine']['torch']}.", markdown_table(rows), *lines])


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--crop", type=int, default=128, help="side of the crop, voxels")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no NVIDIA GPU that PyTorch can use (--device cpu tries the program out)")
    logging.basicConfig(level=logging.INFO)  # shows why the warm-up rejected an alternative
    results = measure(options.size, options.crop, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    results |= {"machine": describe_machine(torch.get_num_threads()), "device": name}
    print(report(results))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
