"""`voxsam compare` with systems of known masks: what runs, fails and resumes, and every file that it writes."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.lab.evaluation.known_systems import GRID, LESION, SMALL, write_cases
from voxsam.cli import main
from voxsam.lab.compare.runner import alone_in, visible_gpus
from voxsam.lab.data.store import open_store
from voxsam.lab.systems.compared import COMPARED

DATA = {"name": "boxes", "title": "Boxes", "spacing_mm": [3, 3, 3]}
ROWS: list[Any] = [
    "box",
    {"system": "box", "row": "far", "trained_as": "box", "evaluation": {"region": "margin"}},
    {"system": "box", "row": "all", "title": "Everything", "options": {"auto": True}},
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_cases(folder, **{f"case_{n}": [LESION, SMALL][: 1 + n % 2] for n in range(6)})
    return folder


@pytest.fixture
def compare(tmp_path: Path, scans: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(rows: list[Any], *words: str, trust: bool = True, **changes: Any) -> tuple[int, str, str]:
        plan = {
            "title": "Boxes compared",
            "reference": "box",
            "data": [DATA],
            "systems": rows,
            "modules": ["tests.lab.compare.boxes"],
            "evaluation": {"trials": 2, "clicks": [1, 2]},
            "examples": 1,
            "job_cores": 1,
            "job_gb": 0.5,
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**plan, **changes}))
        status = main(
            ["compare", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out"), "--data", f"boxes={scans}", *words]
            + (["--trust"] if trust else [])
        )
        return status, *capfd.readouterr()

    return call


def attempts(folder: Path, row: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob(f"jobs/boxes/{row}-*/trained"))


def test_a_whole_comparison(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "doc.md").write_text("Before\n<!-- plan -->\nthe table of before\n<!-- /plan -->\nAfter\n")
    status, shown, _ = compare(ROWS, "--write", str(tmp_path / "doc.md"), seeds=[0, 1])
    out = tmp_path / "out"
    assert status == 0
    assert attempts(out, "box") == 2 and attempts(out, "far") == 0  # two seeds; `far` is not trained again
    cells = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")
    ]
    assert [row[0] for row in cells[2:7]] == [
        "Box (1 pt/volume)", "Box (2 pts/volume)", "Box, far (1 pt/volume)", "Box, far (2 pts/volume)", "Everything",
    ]  # fmt: skip
    assert cells[0] == ["Methods", "Boxes Dice ↑", "Boxes NSD ↑", "Boxes p", "#Tuned params", "in the image encoder"]
    assert cells[2][3:] == ["–", "1.23M", "12.3k"]
    lines = list(csv.DictReader((out / "table.csv").open()))
    whole = {line["method"]: line for line in lines}["Everything"]
    test = open_store(out / "data" / "boxes" / "prepared").split["test"]
    assert (whole["kind"], whole["cases"], whole["seeds"]) == ("automatic", str(len(test)), "2")
    tumours = [324 + 18 * (int(name[-1]) % 2) for name in test]  # voxels: 9 x 6 x 6, and 3 x 3 x 2 in every second case
    expected = np.mean([2 * tumour / (tumour + np.prod(GRID.shape)) for tumour in tumours])
    assert float(whole["dice"]) == pytest.approx(expected, rel=1e-4)
    document = (tmp_path / "doc.md").read_text()
    assert document.startswith("Before\n") and document.endswith("After\n") and "the table of before" not in document
    for picture in re.findall(r"\((images/[^)]+)\)", document):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "images" / "plan-overlays-boxes.png").is_file()
    assert "Box: it knows nothing" in document and re.search(r"The whole plan: [0-9.]+ minutes", document)
    assert r"\multicolumn{3}{c}{Boxes}" in (out / "table.tex").read_text()


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    first, again = compare(["box"]), compare(["box"])
    assert first[:2] == again[:2] and first[0] == 0 and attempts(tmp_path / "out", "box") == 1
    compare(["box"], evaluation={"trials": 1})
    assert attempts(tmp_path / "out", "box") == 1  # other clicks need no other training
    compare([{"system": "box", "options": {"reach": 2}}])
    assert attempts(tmp_path / "out", "box") == 2
    shown = [re.sub("The whole plan: .*", "", text) for text in (compare(["box"], "--tables")[1], first[1])]
    assert shown[0] == shown[1]  # the plan changed back finds its results


@pytest.mark.slow
def test_another_file_of_the_same_name_is_other_work(
    tmp_path: Path, compare: Callable[..., tuple[int, str, str]]
) -> None:
    weights = tmp_path / "weights"
    rows = [{"system": "box", "options": {"fault": str(weights)}}]
    for content, expected in (("a", 1), ("a", 1), ("b", 2), ("a", 2)):
        weights.write_text(content)
        assert compare(rows)[0] == 0
        assert attempts(tmp_path / "out", "box") == expected


@pytest.mark.slow
def test_failures_cost_their_own_rows(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    reasons = {
        "crash": "RuntimeError: the box fell",
        "memory": "killed by the system, most likely for its memory",
        "library": "no boxlib; expected boxlib 2; pip install boxlib",
    }
    bad = [{"system": "box", "row": fault, "options": {"fault": fault}} for fault in reasons]
    status, shown, errors = compare(["box", *bad])
    assert status == 1 and "Traceback" not in errors and "Box (1 pt/volume)" in shown
    for fault, reason in reasons.items():
        assert f"Box, {fault} failed on boxes: {reason}" in shown and reason in errors
        assert re.search(rf"\| Box, {fault} \| failed \| failed \|", shown)
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert {line["seeds"] for line in lines if not line["failed"]} == {"1"}  # whole numbers stay whole


@pytest.mark.slow
def test_a_failed_row_is_tried_again(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    shared = {"system": "box", "row": "far", "trained_as": "box", "evaluation": {"region": "margin"}}
    rows = [{"system": "box", "options": {"fault": "once"}}, shared]
    status, shown, _ = compare(rows)
    assert status == 1 and "Box, far failed on boxes: the row box, whose training serves it, failed" in shown
    assert attempts(tmp_path / "out", "box") == 1
    assert compare(rows)[0] == 0 and attempts(tmp_path / "out", "box") == 2


@pytest.mark.slow
def test_what_a_job_leaves_behind_is_ended(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    assert compare([{"system": "box", "options": {"fault": "child"}}])[0] == 1
    assert not running(f"time.sleep.600. {tmp_path}")


def test_two_commands_do_not_share_a_folder(tmp_path: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "out").mkdir()
    with alone_in(tmp_path / "out"):
        status, _, errors = compare(["box"])
    assert status == 2 and "another `voxsam compare` is running" in errors


@pytest.mark.slow
def test_a_job_may_take_too_long(compare: Callable[..., tuple[int, str, str]]) -> None:
    status, shown, _ = compare([{"system": "box", "options": {"fault": "slow"}}], timeout_minutes=0.1)
    assert status == 1 and "stopped after 0.1 minutes" in shown


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"system": "nosuch", "row": "box"}], "plan: box: the system nosuch; expected one of "),
        ([{"system": "box", "options": {"width": 3}}], "the option width of box; expected one of: reach, auto, fault"),
        (
            ["box", {"system": "voxsam", "recipe": {"stepz": 3, "steps": 2}}],
            "voxsam: recipe: stepz: Extra inputs",
        ),
    ],
)
def test_a_wrong_plan_runs_nothing(
    tmp_path: Path, compare: Callable[..., tuple[int, str, str]], rows: list[Any], words: str
) -> None:
    status, _, errors = compare(rows)
    assert status == 2 and words in errors.splitlines()[-1]
    assert not (tmp_path / "out" / "jobs").exists()


def test_a_plan_that_runs_python_is_refused_until_it_is_trusted(
    tmp_path: Path, compare: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_module.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    monkeypatch.chdir(tmp_path)
    status, _, errors = compare(["voxsam"], trust=False, modules=["planted_module"], reference="voxsam")
    assert status == 2 and not (tmp_path / "imported").exists() and not (tmp_path / "out").exists()
    assert re.search(r"plan\.yaml runs Python of its own: planted_module; .*; read them, then add --trust", errors)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_comparison_that_ends_early_ends_its_jobs(
    tmp_path: Path, scans: Path, compare: Callable[..., tuple[int, str, str]], how: signal.Signals
) -> None:
    compare([{"system": "box", "options": {"fault": "slow"}}], "--tables")
    words = ["compare", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out"), "--data", f"boxes={scans}", "--trust"]
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    script = f"{handler} import sys; from voxsam.cli import main; sys.exit(main({words!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: attempts(tmp_path / "out", "box") > 0 or process.poll() is not None)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert how == signal.SIGKILL or (process.returncode == 130 and "interrupted" in errors)
    wait_until(lambda: not running(f"voxsam.lab.compare.work {tmp_path}"))
    assert "failed" not in compare([{"system": "box", "options": {"fault": "slow"}}], "--tables")[1]


def running(pattern: str) -> str:
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 300  # a busy machine takes long to import torch
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_gpus_are_those_that_the_user_left_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ("0", "1") and visible_gpus(0) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus(2) == ("2", "3")


def test_the_list_names_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    names = [line.partition(":")[0] for line in shown if not line.startswith(" ")]
    assert names == sorted(COMPARED) and {"nnunet", "transbts", "sam-slices", "ma-sam", "remote"} <= set(names)
    for name in names:
        about = COMPARED[name]().about
        assert about.title and about.paper and about.source.startswith("https://") and about.licence and about.library


def test_a_plan_and_an_output_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "voxsam compare PLAN -o FOLDER" in capsys.readouterr().err
