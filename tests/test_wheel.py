"""The wheel on its own, outside the repository: it has page, recipes and plans, is small, and needs the page."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
STATIC = REPOSITORY / "src" / "voxsam" / "server" / "static"
LARGEST_MB = 25
PAGE_TEXT = "<!doctype html><title>page</title>"


def copied(folder: Path) -> Path:
    """The sources of a wheel, without the page."""
    without = shutil.ignore_patterns("static", "__pycache__")
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=without)
    for name in ("recipes", "plans"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build with this environment's hatchling: nothing is downloaded."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", str(out), str(source)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(folder / "source")
    page = source / "src" / "voxsam" / "server" / "static"
    if (STATIC / "index.html").is_file():
        shutil.copytree(STATIC, page)
    else:
        page.mkdir()
        (page / "index.html").write_text(PAGE_TEXT)
    done = build(source, folder / "dist")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("voxsam-*.whl")
    return found


@pytest.fixture(scope="module")
def outside(wheel: Path) -> tuple[Path, dict[str, str]]:
    """An empty folder beside the unpacked wheel, and an environment in which Python imports from that."""
    site, folder = wheel.parents[1] / "site", wheel.parents[1] / "empty"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder, {**os.environ, "PYTHONPATH": str(site), "VOXSAM_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}


def voxsam(outside: tuple[Path, dict[str, str]], *words: str) -> subprocess.CompletedProcess[str]:
    folder, environment = outside
    command = [sys.executable, "-m", "voxsam.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_wheel_without_the_page_is_not_built(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    done = build(copied(tmp_path / "source"), tmp_path / "dist")
    assert done.returncode != 0 and "the page is not built; run `make viewer`" in done.stdout + done.stderr
    assert not list((tmp_path / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_everything_and_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_MB * 1e6
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"voxsam/server/static/index.html", "voxsam/weights/voxsam-tiny.safetensors", "voxsam/py.typed"} <= names
    for kind in ("recipes", "plans"):
        assert {f"voxsam/lab/{kind}/{path.name}" for path in (REPOSITORY / kind).glob("*.yaml")} <= names


@pytest.mark.slow
def test_demo_segment_and_training_by_name_outside_the_repository(outside: tuple[Path, dict[str, str]]) -> None:
    folder, environment = outside
    words = [sys.executable, "-c", "import voxsam; print(voxsam.__file__)"]
    where = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert str(folder.parent / "site") in where.stdout
    demo = voxsam(outside, "demo", "-o", "demo")
    click = re.search(r"One click at ([\d,]+)", demo.stdout)
    assert demo.returncode == 0 and click, demo.stderr
    done = voxsam(outside, "segment", "demo/scan.nii.gz", "--click", click[1], "-o", "mask.nii.gz")
    assert done.returncode == 0 and (folder / "mask.nii.gz").is_file(), done.stderr
    assert (
        voxsam(outside, "phantoms", "-o", "raw", "--count", "2", "--shape", "40,40,30", "--spacing", "4,4,6").returncode
        == 0
    )
    quick = ["--steps", "1", "--warmup", "1", "--pictures", "0", "--batch", "1"]
    done = voxsam(outside, "prepare", "raw", "-o", "prepared", "--spacing", "3,3,3", "--workers", "1")
    assert done.returncode == 0, done.stderr
    done = voxsam(outside, "train", "fine-tune", "--data", "prepared", "-o", "run", *quick)
    assert done.returncode == 0 and (folder / "run" / "model.safetensors").is_file(), done.stderr


@pytest.mark.slow
def test_the_page_is_served_outside_the_repository(outside: tuple[Path, dict[str, str]]) -> None:
    folder, environment = outside
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "voxsam.cli", "serve", "--port", str(port), "--state", str(folder / "state")]
    with (
        (folder / "log.txt").open("wb") as log,
        subprocess.Popen(words, cwd=folder, env=environment, stderr=log) as server,
    ):
        try:
            page = opened(f"http://127.0.0.1:{port}/", server)
            assert "<title>" in page
            for asset in re.findall(r'(?:src|href)="\.?/?(assets/[^"]+)"', page):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{asset}", timeout=10).close()
        finally:
            server.terminate()


def opened(address: str, server: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=10) as response:
                return response.read().decode()
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_the_conda_recipe_wants_what_the_wheel_wants() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = yaml.safe_load((REPOSITORY / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    conda = {"matplotlib": "matplotlib-base", "torch": "pytorch", "simpleitk": "simpleitk"}
    wanted = {f"python {project['requires-python']}"}
    for line in project["dependencies"]:
        name, version = re.fullmatch(r"([A-Za-z-]+)(.*)", line).groups()  # type: ignore[union-attr]
        wanted.add(f"{conda.get(name.lower(), name.lower())} {version}")
    assert set(recipe["requirements"]["run"]) == wanted
    assert recipe["context"]["version"] == project["version"]


def test_the_citation_has_the_version_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == project["version"] and cited["license"] == project["license"]
