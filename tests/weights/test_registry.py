"""Named models: where they are, and their download from a local server that can break off, change, or refuse."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from voxsam.errors import CheckpointError, FileError, UnsupportedError
from voxsam.weights import registry
from voxsam.weights.registry import CHUNK_BYTES, MODELS, NamedModel, fetch, find_model, list_models, models_folder

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
BREAK = 2 * CHUNK_BYTES + 77


class Server(ThreadingHTTPServer):
    """A server with what it serves and how; `asked` are the Range headers of requests, `sent` the lengths of bodies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.validators = CONTENT, {"ETag": '"first"'}
        self.ranges, self.break_after, self.status, self.says_length = True, None, None, True
        self.pause_s = 0.0  # between chunks
        self.asked: list[str | None] = []
        self.sent: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status is not None:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") in server.validators.values():
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(server.content):
                self.send_error(416)
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in server.validators.items():
            self.send_header(name, value)
        self.end_headers()
        part = body[: server.break_after]
        server.sent.append(len(part))
        with suppress(ConnectionError):  # the client was killed
            for begin in range(0, len(part), CHUNK_BYTES // 8):
                self.wfile.write(part[begin : begin + CHUNK_BYTES // 8])
                time.sleep(server.pause_s)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def model(server, monkeypatch) -> NamedModel:
    """A named model "m" that the local server has; no proxy stands between."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    named = NamedModel("m", "sam", "m.pth", "CC0", "a test", server.url, None, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(MODELS, "m", named)
    return named


def broken_off(server: Server, folder: Path) -> None:
    """Begin a download that the server breaks off."""
    server.break_after = BREAK
    with pytest.raises(FileError, match=r"stopped after 2\.1 MB of 3\.1 MB .*run the same command again: it goes on"):
        fetch("m", folder)
    assert (folder / "m.pth.part").stat().st_size == BREAK
    assert not (folder / "m.pth").exists()
    server.break_after = None


# Transfers that end well


def test_a_model_is_fetched_whole_and_then_not_again(server, tmp_path):
    steps: list[tuple[int, int | None]] = []
    path = fetch("m", tmp_path / "new" / "folder", lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "new" / "folder" / "m.pth"
    assert path.read_bytes() == CONTENT
    assert steps[0] == (0, len(CONTENT))
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert fetch("m", path.parent) == path
    assert server.asked == [None]
    assert os.listdir(path.parent) == ["m.pth"]


def test_an_interrupted_transfer_goes_on_and_only_the_rest_is_sent(server, tmp_path):
    broken_off(server, tmp_path)
    steps: list[int] = []
    path = fetch("m", tmp_path, lambda done, _: steps.append(done))
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={BREAK}-"]
    assert server.sent == [BREAK, len(CONTENT) - BREAK]
    assert steps[0] == BREAK
    assert os.listdir(tmp_path) == ["m.pth"]


FETCHES = """
import sys
from voxsam.cli import main
from voxsam.weights.registry import MODELS, NamedModel
MODELS["m"] = NamedModel("m", "sam", "m.pth", "CC0", "a test", sys.argv[1], None, sys.argv[2])
sys.exit(main(["weights", "fetch", "m"]))
"""
KILLS = int(os.environ.get("VOXSAM_KILLS", 4))
SLOWEST_S = 60  # until a process on a busy machine begins to write


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_two_that_fetch_the_same_model_transfer_it_once(server, tmp_path):
    server.pause_s = 0.02
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch("m", tmp_path), range(2)))
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert server.sent == [len(CONTENT)]
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_the_lock_of_a_fetch_that_was_killed_at_its_end_goes(server, tmp_path):
    fetch("m", tmp_path)
    (tmp_path / "m.pth.part.lock").touch()
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_a_killed_fetch_goes_on_and_ends_with_the_file_alone(server, tmp_path):
    """Killed at any moment of a download, it leaves the beginning of the file, and only the rest is sent next."""
    home, rng = tmp_path / "home", random.Random(3)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "VOXSAM_HOME": str(home), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", FETCHES, server.url, hashlib.sha256(CONTENT).hexdigest()]
    target, part = home / "m.pth", home / "m.pth.part"
    server.pause_s = 0.02
    for _ in range(KILLS):
        before, requests = part.stat().st_size if part.is_file() else 0, len(server.asked)
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        end = time.monotonic() + SLOWEST_S
        while len(server.asked) == requests and child.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.03 * len(CONTENT) / (CHUNK_BYTES // 8)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        ends = ("", ".part", ".part.tag", ".part.lock")
        assert {path.name for path in home.iterdir()} <= {f"m.pth{end}" for end in ends}
        assert list((tmp_path / "tmp").iterdir()) == []
        for path in (target, part):
            assert not path.is_file() or CONTENT.startswith(path.read_bytes())
        assert target.is_file() or server.asked[requests:] == [f"bytes={before}-" if before else None]
        if target.is_file():
            assert target.read_bytes() == CONTENT
            target.unlink()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert target.read_bytes() == CONTENT and [path.name for path in home.iterdir()] == ["m.pth"]


def test_the_date_serves_where_there_is_no_strong_tag(server, tmp_path):
    server.validators = {"ETag": 'W/"weak"', "Last-Modified": "Wed, 05 Apr 2023 16:00:00 GMT"}
    broken_off(server, tmp_path)
    fetch("m", tmp_path)
    assert server.sent == [BREAK, len(CONTENT) - BREAK]


def test_a_file_that_changed_on_the_server_is_fetched_from_the_start(server, tmp_path):
    server.content = bytes(len(CONTENT))
    broken_off(server, tmp_path)
    server.content, server.validators = CONTENT, {"ETag": '"second"'}
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert server.sent == [BREAK, len(CONTENT)]


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    broken_off(server, tmp_path)
    server.ranges = False
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert server.sent == [BREAK, len(CONTENT)]


def test_a_server_without_any_tag_sends_all_of_it_again(server, tmp_path):
    server.validators = {}
    broken_off(server, tmp_path)
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "m.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "m.pth.part.tag").write_text('"first"')
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_part_that_is_whole_is_only_checked(server, tmp_path, monkeypatch, model):
    whole = NamedModel("m", "sam", "m.pth", "CC0", "a test", model.url, len(CONTENT), model.sha256)
    monkeypatch.setitem(MODELS, "m", whole)
    (tmp_path / "m.pth.part").write_bytes(CONTENT)
    assert fetch("m", tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_that_does_not_say_the_length(server, tmp_path):
    server.says_length = False
    totals: set[int | None] = set()
    assert fetch("m", tmp_path, lambda _, total: totals.add(total)).read_bytes() == CONTENT
    assert totals == {None}


def test_a_damaged_file_in_the_folder_is_replaced(server, tmp_path):
    (tmp_path / "m.pth").write_bytes(CONTENT[:-9])
    assert fetch("m", tmp_path).read_bytes() == CONTENT


def test_the_models_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXSAM_HOME", str(tmp_path / "home"))
    assert fetch("m") == tmp_path / "home" / "m.pth"


# Transfers that fail


def test_a_wrong_checksum_removes_the_file(server, tmp_path, model):
    server.content = bytes(len(CONTENT))
    with pytest.raises(CheckpointError) as caught:
        fetch("m", tmp_path)
    assert str(caught.value) == (
        f"what came from {server.url} has another checksum, and was removed; expected sha256 {model.sha256}; "
        f"try again; if it stays so, download it elsewhere and put it at {tmp_path / 'm.pth'}"
    )
    assert not list(tmp_path.glob("m.pth*.part"))
    assert not (tmp_path / "m.pth").exists()
    server.content = CONTENT
    assert fetch("m", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_a_server_that_refuses(server, tmp_path, status, words):
    server.status = status
    with pytest.raises(FileError) as caught:
        fetch("m", tmp_path)
    assert str(caught.value) == (
        f"{server.url} could not be fetched ({words}); expected a connection to that address; "
        f"try again, or download it elsewhere and put it at {tmp_path / 'm.pth'}"
    )


def test_a_closed_port(tmp_path, monkeypatch, model):
    with socket.socket() as held:  # bound and not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/model.pth"
        monkeypatch.setitem(MODELS, "m", NamedModel("m", "sam", "m.pth", "CC0", "a test", url, None, model.sha256))
        with pytest.raises(FileError) as caught:
            fetch("m", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{url} could not be fetched (")
    assert "refused" in message
    assert message.endswith(f"download it elsewhere and put it at {tmp_path / 'm.pth'}")
    assert "\n" not in message


def test_a_name_that_does_not_resolve(tmp_path, monkeypatch, model):
    url = "http://nowhere.invalid/model.pth"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(MODELS, "m", NamedModel("m", "sam", "m.pth", "CC0", "a test", url, None, model.sha256))
    with pytest.raises(FileError, match="nowhere.invalid/model.pth could not be fetched"):
        fetch("m", tmp_path)


def test_a_disk_without_room_is_reported_before_the_transfer(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("voxsam.weights.registry.shutil.disk_usage", lambda _: usage)
    with pytest.raises(FileError, match=r"m.pth needs 3\.1 MB more and the disk has 1\.0 MB free; .* set VOXSAM_HOME"):
        fetch("m", tmp_path)
    assert not (tmp_path / "m.pth.part").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_disk_that_fills_up(tmp_path):
    (tmp_path / "m.pth.part").symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"m.pth could not be written \(No space left on device\); .*free some space"):
        fetch("m", tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"m.pth could not be written \(.*\); .* set VOXSAM_HOME to another folder"):
        fetch("m", tmp_path / "file" / "folder")


def test_an_unknown_name():
    with pytest.raises(CheckpointError, match="unknown model 'x'; expected one of voxsam-tiny, sam_vit_b"):
        fetch("x")


def test_the_authors_checkpoints_have_no_direct_address():
    with pytest.raises(UnsupportedError, match="3dsam-adapter has no direct address; .*by hand from their"):
        fetch("3dsam-adapter")


# The list


def test_the_list_says_where_each_model_is(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGED_FOLDER", tmp_path / "package")
    (tmp_path / "sam_vit_l_0b3195.pth").write_bytes(b"12345")
    rows = {row.name: row for row in list_models(tmp_path)}
    assert rows["voxsam-tiny"].where == "missing"
    assert rows["sam_vit_b"][1:4] == (375_042_383, "available", "Apache-2.0")
    assert rows["sam_vit_l"][1:3] == (5, "downloaded")
    assert rows["3dsam-adapter"][1:4] == (None, "by hand", "none stated")
    assert "project page, https://github.com/med-air/3DSAM-adapter" in rows["3dsam-adapter"].note
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "voxsam-tiny.safetensors").write_bytes(b"123")
    assert list_models(tmp_path)[0][:3] == ("voxsam-tiny", 3, "packaged")


def test_sams_addresses_are_metas():
    for size, code in (("vit_b", "01ec64"), ("vit_l", "0b3195"), ("vit_h", "4b8939")):
        model = MODELS[f"sam_{size}"]
        assert model.url == f"https://dl.fbaipublicfiles.com/segment_anything/sam_{size}_{code}.pth"
        assert re.fullmatch("[0-9a-f]{64}", str(model.sha256))


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"VOXSAM_HOME": "/data/models"}, "/data/models"),
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "/cache/voxsam"),
        ("linux", {}, "/home/ada/.cache/voxsam"),
        ("darwin", {"XDG_CACHE_HOME": "/cache"}, "/home/ada/Library/Caches/voxsam"),
    ],
)
def test_the_models_folder(monkeypatch, platform, environment, expected):
    for name in ("VOXSAM_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert models_folder() == Path(expected)


def test_a_path_is_taken_as_it_is(tmp_path):
    assert find_model(tmp_path / "sam_vit_b") == tmp_path / "sam_vit_b"
    assert find_model("folder/model") == Path("folder/model")
    assert find_model("model.safetensors") == Path("model.safetensors")
    assert find_model("~/model.safetensors") == Path.home() / "model.safetensors"
