"""The structure of the package: imports go in one direction, `import voxsam` is light, the public names are this list.

Each checker is also given a planted fault, to show that it can fail.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import voxsam

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "voxsam"

# From the ground up. A part is a module or a folder directly under voxsam/; it may import the parts of its own layer
# and of those below. "__init__" is the package itself (`import voxsam`, `from voxsam import Session`).
# Above the line is the product; the laboratory imports it and is imported by nothing: it is found by entry points.
LAYERS = (
    ("errors", "geometry", "extras", "atomic"),
    ("volume", "resample"),
    ("preprocess", "prompts", "boxes", "region", "io", "phantoms", "seen"),
    ("network",),
    ("kernels",),
    ("weights",),
    ("report",),
    ("interactive",),
    ("__init__",),
    ("batch", "project", "server", "testing"),
    ("protocols",),
    ("cli",),
    # ----------
    ("lab",),
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}

# Parts that may import less than their layer allows: these parts and no other.
ONLY = {"network": {"errors", "extras", "geometry", "preprocess"}}

# Libraries that a part must not know: network/ knows no files, server/ knows no tensors.
FOREIGN = {
    "network": {"nibabel", "SimpleITK", "pydicom", "highdicom"},
    "server": {"torch", "lightning", "monai"},
    "protocols": {"torch", "lightning", "monai"},
}

HEAVY = (
    "torch",
    "lightning",
    "monai",
    "SimpleITK",
    "matplotlib",
    "fastapi",
    "typer",
    "transformers",
    "skimage",
)

PUBLIC_NAMES = [
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


# Reading the imports of a source tree


def imported_names(file: Path, package: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name that `file` imports, wherever in it, with its line; relative ones made absolute."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folders = [package.name, *file.parent.relative_to(package).parts]
            start = folders[: len(folders) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def imported_part(name: str) -> str | None:
    """The part of voxsam that a dotted name belongs to; None outside voxsam, and for the version: anyone may ask it."""
    package, _, rest = name.partition(".")
    if package != "voxsam" or rest == "__version__":
        return None
    part = rest.partition(".")[0]
    return "__init__" if part in ("", *PUBLIC_NAMES) else part


def part_of(file: Path, package: Path) -> str:
    first = file.relative_to(package).parts[0]
    return first.removesuffix(".py")


def violations(package: Path) -> list[str]:
    """One line for each import under `package` that the tables forbid, and for each module that they do not know."""
    found = []
    for file in sorted(package.rglob("*.py")):
        part, where = part_of(file, package), file.relative_to(package)
        if part not in LEVEL:
            found.append(f"{where}: {part} is in no layer")
            continue
        for name, line in imported_names(file, package):
            reason = forbidden(part, name)
            if reason:
                found.append(f"{where}:{line}: {reason}")
    return list(dict.fromkeys(found))  # several names of one statement are one fault


def forbidden(part: str, name: str) -> str | None:
    """Why `part` must not import `name`, or None."""
    if name.partition(".")[0] in FOREIGN.get(part, ()):
        return f"{part} must not know {name.partition('.')[0]}"
    other = imported_part(name)
    if other is None or other == part:
        return None
    if other not in LEVEL:
        return f"{part} imports {other}, which is in no layer"
    if LEVEL[other] > LEVEL[part]:
        return f"{part} imports {other}, which lies above it"
    if part in ONLY and other not in ONLY[part]:
        return f"{part} imports {other}, and may import only {', '.join(sorted(ONLY[part]))}"
    return None


def ring(package: Path) -> list[str]:
    """Parts that import one another in a cycle, in order; empty if there is none."""
    graph: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        part = part_of(file, package)
        others = {imported_part(name) for name, _ in imported_names(file, package)}
        graph.setdefault(part, set()).update(other for other in others if other and other != part)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A small source tree named voxsam under `folder`."""
    package = folder / "voxsam"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    return package


def affine_edits(package: Path) -> list[str]:
    """Where code outside geometry, resample and the file formats changes an affine or multiplies by one."""
    found = []
    for file in sorted(package.rglob("*.py")):
        if part_of(file, package) in ("geometry", "io", "resample"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            edits: list[ast.expr] = []
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                edits = [node.value]
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                edits = [node.left, node.right]
            if any(getattr(edit, "attr", getattr(edit, "id", "")) == "affine" for edit in edits):
                found.append(f"{file.relative_to(package)}:{node.lineno}")
    return found


# Affines


def test_affines_are_changed_in_geometry_resample_and_the_file_formats_alone():
    assert affine_edits(PACKAGE) == []


@pytest.mark.parametrize(
    "text", ["affine[:3, 3] = 0", "grid.affine[0, 0] *= 2", "turn @ grid.affine", "affine @ point"]
)
def test_the_affine_check_finds_a_planted_edit(tmp_path, text):
    assert affine_edits(plant(tmp_path, {"report/a.py": text, "geometry.py": text})) == ["report/a.py:1"]


# Direction


def test_imports_point_one_way():
    assert violations(PACKAGE) == []


def test_no_parts_import_one_another_in_a_ring():
    assert ring(PACKAGE) == []


PLANTED = [
    ("geometry.py", "from voxsam.volume import Volume, field", "geometry imports volume, which lies above it"),
    ("geometry.py", "def f(): import voxsam.volume", "geometry imports volume, which lies above it"),
    ("geometry.py", "from .volume import Volume", "geometry imports volume, which lies above it"),
    ("io/nifti.py", "from ..report import page", "io imports report, which lies above it"),
    ("io/nifti.py", "from voxsam import report", "io imports report, which lies above it"),
    ("io/nifti.py", "from voxsam import Session", "io imports __init__, which lies above it"),
    ("io/nifti.py", "import voxsam", "io imports __init__, which lies above it"),
    (
        "network/a.py",
        "from voxsam.io import write_mask",
        "network imports io, and may import only errors, extras, geometry, preprocess",
    ),
    (
        "network/a.py",
        "import voxsam.volume",
        "network imports volume, and may import only errors, extras, geometry, preprocess",
    ),
    ("network/a.py", "import nibabel as nib", "network must not know nibabel"),
    ("server/app.py", "from torch import nn", "server must not know torch"),
    ("cli/main.py", "def f(): import voxsam.lab.systems", "cli imports lab, which lies above it"),
    ("server/app.py", "from ..lab import systems", "server imports lab, which lies above it"),
    ("weights/files.py", "from voxsam.lab.systems import peft", "weights imports lab, which lies above it"),
    ("cli/main.py", "import voxsam.helpers", "cli imports helpers, which is in no layer"),
]


@pytest.mark.parametrize(("name", "text", "expected"), PLANTED)
def test_the_direction_check_finds_a_planted_violation(tmp_path, name, text, expected):
    assert violations(plant(tmp_path, {name: f"\n{text}"})) == [f"{Path(name)}:2: {expected}"]


def test_the_direction_check_finds_a_module_in_no_layer(tmp_path):
    files = {"helpers.py": "", "errors.py": "", "tools/__init__.py": ""}
    assert violations(plant(tmp_path, files)) == [
        "helpers.py: helpers is in no layer",
        f"{Path('tools/__init__.py')}: tools is in no layer",
    ]


def test_the_direction_check_passes_what_is_allowed(tmp_path):
    files = {
        "__init__.py": "from voxsam.interactive.session import Session",
        "volume.py": "import torch\nfrom voxsam import __version__\nfrom voxsam.geometry import Grid",
        "interactive/session.py": "from voxsam import io\nfrom voxsam.network.network import Network",
        "network/network.py": "from . import sizes\nfrom .sizes import SIZES\nfrom voxsam.errors import InputError",
        "lab/training/run.py": "import voxsam\nfrom voxsam.cli.parse import voxel",
        "cli/main.py": "from voxsam.server.app import app",
    }
    package = plant(tmp_path, files)
    assert violations(package) == []
    assert ring(package) == []


def test_the_ring_check_finds_a_planted_ring(tmp_path):
    files = {"batch/run.py": "import voxsam.server.app", "server/app.py": "from voxsam.batch import run"}
    assert set(ring(plant(tmp_path, files))) == {"batch", "server"}


# Lightness


def heavy_after(statement: str, path: Path, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of `heavy` a fresh interpreter has loaded after `statement`, with `path` first on its module path."""
    code = f"{statement}\nimport sys\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return run.stdout.split()


def test_import_voxsam_is_light():
    assert heavy_after("import voxsam", PACKAGE.parent) == []


def test_a_click_does_not_import_the_compiler():
    """torch._dynamo takes seconds to import, and makes a folder among the temporary files."""
    click = "voxsam.Session(stub_network(), stub_scan().scan).click(stub_scan().click)"
    load = "import voxsam; from voxsam.testing import stub_network, stub_scan; voxsam.load_model('voxsam-tiny', 'cpu')"
    assert heavy_after(f"{load}; {click}", PACKAGE.parent, ("torch._dynamo",)) == []


def test_the_lightness_check_finds_a_planted_import(tmp_path):
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    plant(tmp_path, {"__init__.py": "import torch"})
    assert heavy_after("import voxsam", tmp_path) == ["torch"]


# The public names


def test_the_public_names_are_this_list():
    assert sorted(voxsam.__all__) == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(voxsam))


@pytest.mark.parametrize("name", [name for name in PUBLIC_NAMES if name != "__version__"])
def test_each_public_name_can_be_imported_and_says_what_it_is(name):
    found = getattr(voxsam, name)
    assert found.__name__ == name
    assert (found.__doc__ or "").strip()
    assert not found.__doc__.startswith(f"{name}(")  # the signature that dataclass writes where nobody wrote a sentence


def test_the_version_is_that_of_the_project_file():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert voxsam.__version__ == project["version"], "installed from another state of pyproject.toml: run make setup"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'voxsam' has no attribute 'segments'"):
        _ = voxsam.segments
