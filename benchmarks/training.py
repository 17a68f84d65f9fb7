"""Training steps: seconds and peak memory, with blocks kept or recomputed; on the CPU, and on a GPU if there is one.

    python -m benchmarks.training [--cases vit_b:128,vit_h:64:kept] [--threads N] [--write docs/performance.md]

A step is that of fine-tuning: one crop with ten clicks forward, the paper's loss, backward into the tuned parameters,
AdamW. Each case, a size and a crop's side, runs in its own process. Those that end in `:kept` keep all activations, the
others only the inputs of the blocks; a GPU runs all in both ways. The arithmetic is that of tests/model/test_golden.py,
which pins its gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import available_cores, describe_machine, peak_memory_bytes
from voxsam.lab.evaluation.tables import markdown_table, write_between_markers
from voxsam.network.sizes import SIZES

MARKER = "training"
CLICKS = 10
CASES = "tiny:64,tiny:64:kept,vit_b:64,vit_b:64:kept,vit_b:96,vit_b:128,vit_l:64,vit_h:64"
Wanted = tuple[str, int, bool]  # size, side of the crop in voxels, whether blocks are recomputed

Results = dict[str, Any]


def measure_step(size: str, crop: int, recompute: bool, device: str, threads: int) -> Results:
    """Seconds of a step (on a GPU: of the third one) and its peak memory, in this process."""
    import torch
    from monai.losses import DiceCELoss

    from voxsam.kernels import install
    from voxsam.network.card import Card
    from voxsam.network.network import VoxSAMNetwork
    from voxsam.network.sizes import ModelConfig
    from voxsam.network.tuning import freeze
    from voxsam.preprocess import RELEASED

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**SIZES[size].model_dump(), "crop": crop})
    network = freeze(VoxSAMNetwork(Card(name=size, config=config, preprocessing=RELEASED["kits"])).to(device))
    install(network)
    network.image_encoder.recompute = recompute
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    image = torch.randn(1, 1, crop, crop, crop, device=device)
    truth = (image > 1).float()
    points = torch.rand(1, CLICKS, 3, device=device) * (crop - 1)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, lambda_dice=0.5, lambda_ce=0.5)
    seconds = 0.0
    for _ in range(1 if device == "cpu" else 3):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = criterion(network(image, points).float(), truth)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = peak_memory_bytes() if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "peak_memory_bytes": peak, "loss": loss.item()}


def in_child(case: Results) -> Results:
    """`measure_step` in a fresh process; {"failed": reason} if that fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "benchmarks.training", "--case", json.dumps(case)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).resolve().parents[1]
    )
    if done.returncode == -9:
        return {"failed": "killed: most likely out of memory"}
    if done.returncode:
        said = [
            line.strip() for line in done.stderr.splitlines() if "For further information" not in line
        ]  # pydantic's
        return {"failed": [line for line in said if line][-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(wanted: list[Wanted], threads: int) -> list[Results]:
    """Measure the cases on the CPU and, if there is one, on the GPU, one after another."""
    import torch

    cases = [("cpu", *case) for case in wanted]
    if torch.cuda.is_available():
        cases += [("cuda", size, crop, again) for size, crop, _ in wanted for again in (True, False)]
    names = "device", "size", "crop", "recompute"
    settings = [dict(zip(names, case, strict=True), threads=threads) for case in dict.fromkeys(cases)]
    return [{**case, **in_child(case)} for case in settings]


def report(cases: list[Results]) -> str:
    """The table and the machine, as Markdown."""
    import torch

    machine = describe_machine(cases[0]["threads"])
    rows = [
        {
            "one training step of": case["size"],
            "crop": f"{case['crop']}\u00b3",
            "blocks": "computed again" if case["recompute"] else "kept",
            "on": "CPU, float32" if case["device"] == "cpu" else "GPU, bfloat16",
            "s": case.get("seconds", case.get("failed")),
            "peak memory, GB": case["peak_memory_bytes"] / 1e9 if "peak_memory_bytes" in case else None,
        }
        for case in cases
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: its rows are missing"
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; {gpu}.\n\n{markdown_table(rows)}"


def _cases(text: str) -> list[Wanted]:
    """vit_b:128,tiny:64:kept -> [("vit_b", 128, True), ("tiny", 64, False)]."""
    wanted: list[Wanted] = []
    for part in text.split(","):
        size, _, rest = part.partition(":")
        crop, _, kept = rest.partition(":")
        if size not in SIZES or not crop.isdecimal() or kept not in ("", "kept"):
            expected = f"SIZE:CROP or SIZE:CROP:kept, with a size of {', '.join(SIZES)}"
            raise argparse.ArgumentTypeError(f"{part!r} (expected {expected})")
        wanted.append((size, int(crop), not kept))
    return wanted


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_cases, default=CASES, help=f"by default {CASES}")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--write", type=Path, help=f"Markdown file with the markers <!-- {MARKER} -->")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(measure_step(**json.loads(options.case))))
        return
    text = report(measure(options.cases, options.threads))
    print(text)
    if options.write is not None:
        write_between_markers(options.write, MARKER, text)


if __name__ == "__main__":
    main()
