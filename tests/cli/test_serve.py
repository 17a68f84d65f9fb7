"""`voxsam serve`: what it prints, what it refuses, and that it serves."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import httpx
import pytest

from voxsam.cli import main
from voxsam.cli.serve import state_folder
from voxsam.project import Project
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import save_model

# A shell that starts this test in the background lets SIGINT be ignored; Ctrl-C at a terminal does not.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from voxsam.cli import main
sys.exit(main())
"""


@pytest.fixture
def model(tmp_path):
    save_model(stub_network(), tmp_path / "stub.safetensors")
    return str(tmp_path / "stub.safetensors")


@pytest.fixture
def started(monkeypatch):
    """Lets serving end at once; holds the application, and the address that it was to listen on."""
    import uvicorn

    seen = []

    def run(self, sockets):
        seen.append((self.config.app, sockets[0].getsockname()[0]))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return seen


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    """No logging: a handler on a stderr that ends with this test would fail in later ones."""
    monkeypatch.setattr("voxsam.server.observe.log_to_stderr", lambda: None)


def test_the_log_is_there_before_the_model_warms_up(tmp_path, model, started, monkeypatch):
    order = []
    monkeypatch.setattr("voxsam.server.observe.log_to_stderr", lambda: order.append("log"))
    monkeypatch.setattr("voxsam.server.service.warm_up", lambda *_, **__: order.append("warm-up"))
    assert main(["serve", "--port", "0", "--model", model, "--state", str(tmp_path / "state")]) == 0
    assert order == ["log", "warm-up"]


def test_it_serves_until_it_is_interrupted(tmp_path, model):
    (tmp_path / "scans").mkdir()
    options = ["serve", str(tmp_path / "scans"), "--port", "0", "--model", model, "--state", str(tmp_path / "state")]
    command = [sys.executable, "-c", PROGRAM, *options, "--key", "s3cret"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        assert "s3cret" not in line
        assert httpx.get(f"{address}api/info").status_code == 401
        info = httpx.get(f"{address}api/info", headers={"authorization": "Bearer s3cret"}).json()
        assert info["model"]["name"] == "stub" and info["folders"] == [{"id": "0", "name": "scans"}]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130 and "Traceback" not in errors
    assert '"status": 401' in errors and "scans" not in errors


def test_options_become_settings(tmp_path, model, started, capsys, monkeypatch):
    monkeypatch.setenv("VOXSAM_KEY", "from-outside")
    words = ["--upload-limit", "0.5", "--memory", "2", "--sessions", "3", "--idle", "60", "--cors", "https://a.example"]
    assert main(["serve", "--model", model, "--port", "0", "--state", str(tmp_path / "s"), "--no-demo", *words]) == 0
    settings = started[0][0].state.service.settings
    assert (settings.upload_bytes, settings.memory_bytes, settings.capacity) == (1 << 29, 2 << 30, 3)
    assert (settings.idle_s, settings.cors, settings.demo) == (60, ("https://a.example",), False)
    assert settings.key.get_secret_value() == "from-outside"
    assert started[0][1] == "127.0.0.1"
    said = capsys.readouterr()
    assert "Ctrl+C" in said.out and said.err == "" and "from-outside" not in said.out


def test_a_project_brings_its_own_model(tmp_path, model, started, capsys):
    project = Project.new(tmp_path / "study", start=model)
    words = ["serve", "--project", str(project.folder), "--port", "0", "--state", str(tmp_path / "s")]
    assert main([*words, "--learn-minutes", "5"]) == 0
    service = started[0][0].state.service
    assert service.worker.model.card.name == "stub" and service.desk.learner.minutes == 5
    assert f"the project {project.folder} at http://" in capsys.readouterr().out
    assert main([*words, "--model", model]) == 2
    assert "with a project; expected its own model" in capsys.readouterr().err
    words[2] = str(tmp_path)
    assert main(words) == 2 and "no project.json" in capsys.readouterr().err


def test_it_warns_when_others_reach_it_and_there_is_no_key(tmp_path, model, started, capsys):
    words = ["serve", "--model", model, "--port", "0", "--host", "0.0.0.0", "--state", str(tmp_path / "s")]
    assert main(words) == 0
    errors = capsys.readouterr().err
    assert "warning: no key" in errors and "not encrypted" in errors
    assert main([*words, "--key", "k"]) == 0
    assert "no key" not in capsys.readouterr().err


def test_the_browser_is_shown_the_demo_with_the_key_in_the_part_that_is_not_sent(tmp_path, model, started, monkeypatch):
    opened = []
    monkeypatch.setattr("threading.Timer.start", lambda self: opened.append(self.args[0]))
    words = ["serve", "--model", model, "--port", "0", "--state", str(tmp_path / "s"), "--browser", "--key", "a&b"]
    assert main(words) == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#key=a%26b&demo", opened[0])


def test_what_cannot_be_served_is_told_in_one_line(tmp_path, model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, said in (
            (["--port", port], "choose another --port"),
            ([str(tmp_path / "nothing")], "is no folder"),
            (["--model", str(tmp_path / "no.safetensors"), "--port", "0"], "no.safetensors"),
            (["--host", "name.invalid"], "an address of this machine"),
        ):
            assert main(["serve", "--state", str(tmp_path / "s"), *words]) == 2
            errors = capsys.readouterr().err
            assert said in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "said"), [("", "an empty key"), ("schlüssel", "beyond ASCII"), ("a b ", "with spaces at its ends")]
)
def test_a_key_that_no_request_could_show_is_refused_at_the_start(tmp_path, model, capsys, key, said):
    assert main(["serve", "--model", model, "--port", "0", "--state", str(tmp_path / "s"), "--key", key]) == 2
    errors = capsys.readouterr().err
    assert said in errors and "openssl rand" in errors and errors.count("\n") == 1


def test_without_the_extra_the_remedy_is_told(monkeypatch, capsys):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("voxsam.extras.version", absent)
    assert main(["serve"]) == 2
    assert 'pip install "voxsam[serve]"' in capsys.readouterr().err


def test_the_work_is_kept_in_the_users_folder_for_state(monkeypatch, tmp_path):
    monkeypatch.setenv("VOXSAM_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "server"
