"""Model files; `load_model` and `save_model` are imported on first use, since they need torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxsam.weights.checkpoint import load_model, save_model

__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> Any:
    """Import a name of __all__ on first use (PEP 562), so that named models can be listed without loading torch."""
    if name in __all__:
        return getattr(import_module("voxsam.weights.checkpoint"), name)
    raise AttributeError(f"module 'voxsam.weights' has no attribute {name!r}")
