"""`voxsam info`: this installation, a model (what it is, takes and tunes), or a scan (its grid and intensities)."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxsam.errors import FileError

if TYPE_CHECKING:
    from voxsam.network.promptable import Promptable

SAM_ENCODER_VIT_B = 89_670_912  # the paper's fraction of tuned parameters (16.96 %) is relative to SAM's 2D encoder


def command(
    what: Annotated[str | None, typer.Argument(help="A model (name, file, or size as vit_b), or a scan.")] = None,
) -> None:
    """Show this installation, a model, or a scan."""
    if what is None:
        rows = _installation()
    else:
        rows = _model(what) if _is_model(what) else _scan(Path(what))
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:{width}}  {value}")


def _is_model(what: str) -> bool:
    """Whether `what` names a model rather than a scan. Raises FileError if it is neither."""
    from voxsam.network.sizes import SIZES
    from voxsam.weights.registry import MODELS

    if what in SIZES or what in MODELS or what.endswith(".safetensors"):
        return True
    if not what.strip() or not Path(what).exists():
        raise FileError(
            f"{what!r}: no such file, and no model of that name",
            f"a scan, a model file (.safetensors), or one of {', '.join((*MODELS, *SIZES))}",
            "check the path, or see `voxsam weights list`",
        )
    return False


def _installation() -> dict[str, str]:
    import torch

    from voxsam import __version__
    from voxsam.kernels.linear import packs, precisions
    from voxsam.weights.registry import models_folder

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cpu = torch.device("cpu")
    products = f"oneDNN's products in {', '.join(precisions(cpu))}" if packs(cpu) else "no products by oneDNN"
    return {
        "voxsam": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA device: {cuda}",
        "instructions": f"{torch.backends.cpu.get_cpu_capability()}, {products}",
        "models folder": f"{models_folder()} (`voxsam weights list` shows the models)",
    }


def _model(what: str) -> dict[str, str]:
    import torch

    from voxsam.network.card import Card
    from voxsam.network.network import VoxSAMNetwork
    from voxsam.network.sizes import SIZES
    from voxsam.preprocess import RELEASED
    from voxsam.seen import listed
    from voxsam.weights import load_model

    if what in SIZES:
        with torch.device("meta"):  # without weights
            return _counts(VoxSAMNetwork(Card(name=what, config=SIZES[what], preprocessing=RELEASED["kits"])))
    network = load_model(what, "cpu")
    card = network.card
    use = card.preprocessing
    spacing = " x ".join(f"{s:g}" for s in use.spacing_mm)
    rows = {
        "name": card.name,
        "prompts": ", ".join(card.prompts) or "none: automatic",
        "modality": use.modality,
        "crop": f"{card.config.crop} voxels a side of {spacing} mm, axes {use.axes}",
        "intensities": f"clipped to {use.clip[0]:g}..{use.clip[1]:g}, mean {use.mean:g}, s.d. {use.sd:g}"
        + ", of each scan's own s.d." * use.per_scan,
    }
    if card.classes is not None:
        rows["classes"] = ", ".join(card.classes.names)
    if card.trained_on:
        rows["trained on"] = listed(card.trained_on)
    return {**rows, **_counts(network), **card.description, **{k: f"{v:g}" for k, v in card.scores.items()}}


def _counts(network: Promptable) -> dict[str, str]:
    from voxsam.network.network import VoxSAMNetwork
    from voxsam.network.tuning import counts, paper_accounting

    config, numbers = network.config, counts(network)
    if not isinstance(network, VoxSAMNetwork):
        return {"system": network.card.system, "parameters": f"{numbers.total:,}"}
    fraction = f", {numbers.encoder_tuned / SAM_ENCODER_VIT_B:.2%} of SAM's" if config.size == "vit_b" else ""
    return {
        "size": f"{config.size}: width {config.width}, {config.depth} blocks, {config.heads} heads",
        "profile": config.profile,
        "parameters": f"{numbers.total:,}",
        "encoder, tuned": f"{numbers.encoder_tuned:,} of {numbers.encoder_total:,}{fraction}",
        "tuned in all": f"{numbers.tuned:,}, in the accounting of the paper {paper_accounting(network):,}",
    }


def _scan(path: Path) -> dict[str, str]:
    from voxsam.io import read_volume

    volume = read_volume(path)
    grid = volume.grid
    return {
        "scan": path.name,
        "voxels": " x ".join(map(str, grid.shape)),
        "spacing": " x ".join(f"{s:.4g}" for s in grid.spacing_mm) + " mm",
        "axes": grid.axes,
        "modality": volume.modality or "unknown",
        "intensities": f"{volume.array.min():g}..{volume.array.max():g} ({volume.array.dtype})",
        **({"remarks": "; ".join(volume.remarks)} if volume.remarks else {}),
    }
