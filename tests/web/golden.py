"""The browser's own code run by Node.js, for tests that compare it with Python's."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

VIEWER = Path(__file__).resolve().parents[2] / "viewer"


@cache
def _built(script: str) -> Path:
    """golden/SCRIPT.ts, bundled with its imports."""
    if shutil.which("node") is None or not (VIEWER / "node_modules").is_dir():
        pytest.skip("Node.js or the page's packages are absent: run `make viewer`")
    folder = Path(mkdtemp(prefix="voxsam-golden-"))
    build = ["npx", "vite", "build", "--config", "golden/vite.config.ts", "--logLevel", "error"]
    subprocess.run([*build, "--ssr", f"golden/{script}.ts", "--outDir", str(folder)], cwd=VIEWER, check=True)
    return folder / f"{script}.js"


def play(script: str, *arguments: str | Path) -> str:
    """Run golden/SCRIPT.ts and return its output. The test fails if the script does."""
    command = ["node", str(_built(script)), *map(str, arguments)]
    done = subprocess.run(command, cwd=VIEWER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
