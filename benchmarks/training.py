"""One training step: seconds and peak memory, blocks kept or computed again; on the CPU, and on a GPU where one is.

    python -m benchmarks.training [--size vit_b] [--crop 128] [--threads N] [--keep] [--write docs/performance.md]

A step is what fine-tuning does: one crop with ten clicks forward, the paper's loss, backward into the tuned parameters,
AdamW. Each case runs in a process of its own. `--keep` also measures a step that keeps every activation (ViT-B at
128\u00b3: some 15 GB). The arithmetic is that of tests/model/test_golden.py, which holds its gradients.
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
from voxsam.evaluation.markdown import markdown_table, write_between_markers
from voxsam.model.sizes import SIZES

MARKER = "training"
CLICKS = 10
Results = dict[str, Any]


def measure_step(size: str, crop: int, recompute: bool, device: str, threads: int) -> Results:
    """Seconds of the step (on a GPU: of the third one) and the most memory it took, in this process."""
    import torch
    from monai.losses import DiceCELoss

    from voxsam.model.card import Card
    from voxsam.model.network import VoxSAMNetwork
    from voxsam.model.tuning import freeze
    from voxsam.preprocess import RELEASED

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = freeze(VoxSAMNetwork(Card(name=size, config=SIZES[size], preprocessing=RELEASED["kits"])).to(device))
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
    """`measure_step` in a fresh process; {"failed": why} if that did not end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "benchmarks.training", "--case", json.dumps(case)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).resolve().parents[1]
    )
    if done.returncode == -9:
        return {"failed": "killed: most likely out of memory"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(size: str, crop: int, threads: int, keep: bool) -> list[Results]:
    """The cases of this machine, one after another."""
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cases = [
        {"size": size, "crop": crop, "recompute": recompute, "device": device, "threads": threads}
        for device in devices
        for recompute in ([True, False] if keep or device == "cuda" else [True])
    ]
    return [{**case, **in_child(case)} for case in cases]


def report(cases: list[Results]) -> str:
    """The table and the machine, as Markdown."""
    import torch

    machine = describe_machine(cases[0]["threads"])
    rows = [
        {
            f"training step, {case['size']}, crop {case['crop']}\u00b3": "CPU, float32"
            if case["device"] == "cpu"
            else "GPU, bfloat16",
            "blocks": "computed again" if case["recompute"] else "kept",
            "s": case.get("seconds", case.get("failed")),
            "peak memory, GB": case["peak_memory_bytes"] / 1e9 if "peak_memory_bytes" in case else None,
        }
        for case in cases
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: that row is missing"
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; {gpu}.\n\n{markdown_table(rows)}"


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--crop", type=int, default=128, help="side of the crop, voxels")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--keep", action="store_true", help="also a step that keeps every activation")
    parser.add_argument("--write", type=Path, help=f"Markdown file with the markers <!-- {MARKER} -->")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(measure_step(**json.loads(options.case))))
        return
    text = report(measure(options.size, options.crop, options.threads, options.keep))
    print(text)
    if options.write is not None:
        write_between_markers(options.write, MARKER, text)


if __name__ == "__main__":
    main()
