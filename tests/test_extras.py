"""What entry points add, and the one-line message if an extra is not installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from voxsam import extras
from voxsam.cli import main
from voxsam.errors import UnsupportedError
from voxsam.extras import needs_extra, require_extra
from voxsam.network.adapters import ADAPTERS
from voxsam.network.card import Card
from voxsam.testing import stub_network
from voxsam.weights import checkpoint
from voxsam.weights.checkpoint import assemble

LAB_COMMANDS = ["benchmark", "compare", "evaluate", "phantoms", "prepare", "train"]


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Act as if some distributions were not installed."""

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(extras, "version", version)


def test_the_laboratorys_commands_come_in_by_entry_points() -> None:
    assert [entry.name for entry in extras.commands()] == LAB_COMMANDS


@pytest.mark.parametrize("name", LAB_COMMANDS)
def test_without_its_extra_a_command_says_the_line_for_pip_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "zarr")
    monkeypatch.setattr(extras, "requires", lambda name: ["numpy>=2", 'zarr>=3.0; extra == "lab"'])
    given = [] if name in ("phantoms", "compare") else ["x"]
    more = ["x"] if name == "compare" else []
    assert main([name, *given, *more, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"voxsam: error: `voxsam {name}` without zarr, which is not installed; expected the extra `lab`;"
        ' run: pip install "voxsam[lab]"\n'
    )
    assert list(tmp_path.iterdir()) == []


def test_an_extra_is_what_the_metadata_say_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.8", "a-b.c>=1; extra == 'one'", "voxsam[one]; extra == 'two'", 'd[x]<2; extra == "two"']
    monkeypatch.setattr(extras, "requires", lambda name: lines)
    without(monkeypatch, "a-b.c", "torch")
    require_extra("two", "x")
    with pytest.raises(UnsupportedError, match=r"^x without a-b\.c, which is not installed; expected the extra `one`"):
        require_extra("one", "x")


def test_an_import_that_fails_within_voxsam_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs_extra("lab", "x"):
        import voxsam.nothing_of_this_name  # noqa: F401  # type: ignore[import-not-found]
    with pytest.raises(UnsupportedError, match="x without nothing_of_this_name"), needs_extra("lab", "x"):
        import nothing_of_this_name  # noqa: F401  # type: ignore[import-not-found]


def test_a_system_that_is_not_known_is_looked_for_once_among_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = stub_network()
    card = network.card.model_copy(update={"system": "planted"})

    class Planted:
        name = "planted"

        def load(self) -> None:
            checkpoint.BUILDERS["planted"] = type(network)

    monkeypatch.setattr(extras, "entry_points", lambda group: [Planted()] if group == "voxsam.systems" else [])
    monkeypatch.setattr(checkpoint, "BUILDERS", dict(checkpoint.BUILDERS))
    assert isinstance(assemble(card, network.state_dict(), "here"), type(network))
    other = card.model_copy(update={"system": "of nobody"})
    with pytest.raises(UnsupportedError, match="here: a model of the system of nobody; expected one of voxsam"):
        assemble(other, network.state_dict(), "here")
    assert isinstance(card, Card) and "spatial" in ADAPTERS
