"""DICOMweb archives for tests: a small one of Python alone, and Debian's Orthanc with its plug-in."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pydicom

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
USER, PASSWORD = "reader", "pa55word"


class SmallArchive(ThreadingHTTPServer):
    """QIDO, WADO and STOW of what it was given; with `locked` only for USER and PASSWORD."""

    def __init__(self, locked: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: list[bytes] = []
        self.locked, self.full = locked, False
        self.address = f"dicomweb+http://127.0.0.1:{self.server_port}/dicom-web"
        self.asked: list[str] = []

    def add(self, folder: Path) -> None:
        self.files += [file.read_bytes() for file in sorted(folder.iterdir())]

    def found(self, **uids: str) -> Iterator[tuple[bytes, pydicom.Dataset]]:
        for file in self.files:
            dataset = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)
            if all(str(dataset.get(keyword)) == uid for keyword, uid in uids.items() if uid):
                yield file, dataset


class _Handler(BaseHTTPRequestHandler):
    server: SmallArchive

    def log_message(self, *args) -> None:
        pass

    def _give(self, status: int, body: bytes, media: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_in(self) -> bool:
        shown = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if self.server.locked and shown != f"{USER}:{PASSWORD}":
            self._give(401, b"", "text/plain")
            return False
        return True

    def do_GET(self) -> None:
        path, _, query = self.path.removeprefix("/dicom-web").partition("?")
        self.server.asked.append(path)
        if not self._is_in():
            return
        study, series = (re.search(rf"/{level}/([0-9.]+)", path) for level in ("studies", "series"))
        named = re.search(r"SeriesInstanceUID=([0-9.]+)", query)
        uids = {
            "StudyInstanceUID": study[1] if study else "",
            "SeriesInstanceUID": series[1] if series else named[1] if named else "",
        }
        found = list(self.server.found(**uids))
        if series:
            parts = b"".join(b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file, _ in found)
            media = 'multipart/related; type="application/dicom"; boundary=edge'
            self._give(200 if found else 404, parts + b"--edge--\r\n", media)
            return
        key = "SeriesInstanceUID" if path.endswith("series") else "StudyInstanceUID"
        listed = {str(dataset[key].value): dataset.to_json_dict() for _, dataset in found}
        self._give(200, json.dumps(list(listed.values())).encode(), "application/dicom+json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_in():
            return
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        files = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in body.split(b"--" + boundary)[1:-1]]
        answer = pydicom.Dataset()
        if self.server.full:
            failed = pydicom.Dataset()
            failed.FailureReason = 0xA700
            answer.FailedSOPSequence = [failed]
        else:
            self.server.files += files
        self._give(202 if self.server.full else 200, answer.to_json().encode(), "application/dicom+json")


@contextmanager
def small_archive(**options) -> Iterator[SmallArchive]:
    with SmallArchive(**options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Orthanc on a free port of this machine, with USER and PASSWORD, its files in `folder`; its DICOMweb address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            assert time.monotonic() < end and process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                httpx.get(f"http://127.0.0.1:{port}/dicom-web/studies", auth=(USER, PASSWORD)).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield f"dicomweb+http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(20)
