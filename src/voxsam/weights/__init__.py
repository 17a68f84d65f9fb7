"""The network and its files; `load_model` and `save_model` are loaded when first asked for, for they need torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxsam.weights.checkpoint import load_model, save_model

__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> Any:
    """A name of __all__ (PEP 562): so that the list of named models can be shown without loading torch."""
    if name in __all__:
        return getattr(import_module("voxsam.weights.checkpoint"), name)
    raise AttributeError(f"module 'voxsam.weights' has no attribute {name!r}")
