"""VoxSAM: segment a tumour in a 3D scan from one click. Public names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxsam.errors import InputError, VoxSAMError
    from voxsam.geometry import Grid
    from voxsam.interactive.predictor import Prediction, Predictor
    from voxsam.interactive.segment import segment
    from voxsam.interactive.session import Session
    from voxsam.io import read_volume, write_mask
    from voxsam.prompts import Box, MaskHint, Point, Scribble
    from voxsam.volume import Volume
    from voxsam.weights.checkpoint import load_model

    __version__: str

__all__ = [
    "Box",
    "Grid",
    "InputError",
    "MaskHint",
    "Point",
    "Prediction",
    "Predictor",
    "Scribble",
    "Session",
    "Volume",
    "VoxSAMError",
    "__version__",
    "load_model",
    "read_volume",
    "segment",
    "write_mask",
]

_HOME = {
    "Box": "prompts",
    "Grid": "geometry",
    "InputError": "errors",
    "MaskHint": "prompts",
    "Point": "prompts",
    "Prediction": "interactive.predictor",
    "Predictor": "interactive.predictor",
    "Scribble": "prompts",
    "Session": "interactive.session",
    "VoxSAMError": "errors",
    "Volume": "volume",
    "load_model": "weights.checkpoint",
    "read_volume": "io",
    "segment": "interactive.segment",
    "write_mask": "io",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import voxsam` alone loads neither torch nor nibabel."""
    if name == "__version__":
        from importlib import metadata

        try:
            value: Any = metadata.version("voxsam")
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            value = "0+unknown"
    elif name in _HOME:
        value = getattr(import_module(f"voxsam.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'voxsam' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
