"""What the build of a wheel adds: it fails without the page; recipes and plans go along, found by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = "src/voxsam/server/static/index.html"
NAMED = ("recipes", "plans")  # voxsam.lab.training.recipe.find_named looks for them there


class BuildHook(BuildHookInterface):
    """Runs before a wheel or a source distribution is built; a source tree that is installed as it is needs neither."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises FileNotFoundError without the page."""
        if version == "editable":
            return
        root = Path(self.root)
        if not (root / PAGE).is_file():
            raise FileNotFoundError(f"{PAGE}: the page is not built; run `make viewer` (Node.js 20.19 or newer) first")
        if self.target_name == "wheel":
            build_data["force_include"].update({str(root / name): f"voxsam/lab/{name}" for name in NAMED})
