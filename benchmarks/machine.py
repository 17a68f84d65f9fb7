"""The machine that a benchmark runs on: its description, its rate of matrix products, a process's peak memory."""

from __future__ import annotations

import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

# (m, k, n) of products typical of the encoder: the MLP, the projections to query, key and value, and a square one.
PRODUCTS = ((4096, 768, 3072), (4096, 768, 2304), (2048, 2048, 2048))
SMALL_PRODUCTS = ((256, 128, 256),)
REPEATS = 7
STATUS = Path("/proc/self/status")


def describe_machine(threads: int) -> dict[str, str | int]:
    """CPU model, cores, threads in use, system, and the versions of Python and torch."""
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def cpu_model() -> str:
    """The CPU's name according to the system, with family and model number if known."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    name = fields.get("model name", platform.machine())
    if {"cpu family", "model"} <= fields.keys():
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def matrix_product_rates(products: tuple[tuple[int, int, int], ...] = PRODUCTS) -> dict[str, float]:
    """float32 operations per second of each available matrix product, the best of a few repeats for each shape.

    These are torch's plain product and, if available, oneDNN's with packed weights, which is much faster on some
    processors (AMD family 26); VoxSAM uses the packed one.
    """
    import torch

    from voxsam.kernels.linear import PackedProduct, packs

    rates = {}
    for m, k, n in products:
        left, linear = torch.randn(m, k), torch.nn.Linear(k, n, bias=False)
        right = linear.weight.detach().T.contiguous()
        ways = {"": partial(torch.matmul, left, right)}
        if packs(left.device):
            ways[", packed"] = partial(PackedProduct(linear, m, torch.float32), left)
        with torch.inference_mode():
            for way, multiply in ways.items():
                best = min(_seconds(multiply) for _ in range(REPEATS))
                rates[f"{m}x{k} @ {k}x{n}{way}"] = 2 * m * k * n / best
    return rates


INFO = Path("/proc/cpuinfo")
HIGHEST_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
# float32 operations per core and cycle: two fused multiply-add units (two operations per lane) of 16 or 8 lanes. Zen 4
# (AMD family 25 with AVX-512) takes two cycles for 16 lanes; Intel's server cores and Zen 5 (family 26) one.
WIDE, NARROW = 64, 32


def peak_rate(threads: int, info: Path = INFO, highest_khz: Path = HIGHEST_KHZ) -> float | None:
    """The most float32 operations per second of `threads` cores; None if the clock or kind of core is unknown.

    The clock is the highest that the system reports, which a core holds only briefly: the peak is an upper bound.
    """
    if not (info.is_file() and highest_khz.is_file()):
        return None
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    if "fma" not in flags:
        return None
    zen_4 = fields.get("vendor_id") == "AuthenticAMD" and fields.get("cpu family") == "25"
    lanes = WIDE if "avx512f" in flags and not zen_4 else NARROW
    return threads * lanes * 1000.0 * int(highest_khz.read_text())


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def peak_memory_bytes() -> int:
    """The peak resident memory of this process.

    On Linux a child inherits its parent's ru_maxrss (it survives fork and exec); VmHWM is the process's own.
    """
    if STATUS.is_file():
        peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
