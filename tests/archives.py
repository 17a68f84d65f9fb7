"""DICOMweb archives for tests: a small one in pure Python, and Orthanc with its plug-in; with TLS or without."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pydicom

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
USER, PASSWORD = "reader", "pa55word"


class Certificate(NamedTuple):
    """PEM files: a hospital's own authority, and the key and certificate of a server at 127.0.0.1 that it signed."""

    authority: Path
    server: Path

    @classmethod
    def made(cls, folder: Path) -> Certificate:
        folder.mkdir()
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        new = "req -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
        for words in (
            f"{new} -x509 -days 2 -subj /CN=hospital -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem",
            f"{new} -subj /CN=archive -keyout server.key -out server.csr",
            "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.crt",
        ):
            subprocess.run([str(OPENSSL), *words.split()], cwd=folder, check=True, capture_output=True)
        both = (folder / "server.key").read_text() + (folder / "server.crt").read_text()
        (folder / "server.pem").write_text(both)
        return cls(folder / "ca.pem", folder / "server.pem")

    @property
    def context(self) -> ssl.SSLContext:
        """The server's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context


class SmallArchive(ThreadingHTTPServer):
    """Serves what it was given by QIDO, WADO and STOW; with `locked` only for USER and PASSWORD."""

    def __init__(self, locked: bool = False, certificate: Certificate | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if certificate is not None:
            self.socket = certificate.context.wrap_socket(self.socket, server_side=True)
        self.files: list[bytes] = []
        self.locked, self.full = locked, False
        scheme = "https" if certificate else "http"
        self.address = f"dicomweb+{scheme}://127.0.0.1:{self.server_port}/dicom-web"
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
def orthanc(folder: Path, certificate: Certificate) -> Iterator[str]:
    """Run Orthanc on a free local port with TLS, USER and PASSWORD, files in `folder`; yields its DICOMweb address."""
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
        with tls_before(port, certificate) as outside:
            yield f"dicomweb+https://127.0.0.1:{outside}/dicom-web"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def tls_before(port: int, certificate: Certificate) -> Iterator[int]:
    """The port of a TLS proxy that forwards to the local `port`: Debian 12's Orthanc crashes with its own TLS."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

    async def serve() -> None:
        async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=certificate.context) as server:
            found.append(server.sockets[0].getsockname()[1])
            is_open.set()
            await end.wait()

    found: list[int] = []
    is_open, end, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()], daemon=True)
    thread.start()
    try:
        assert is_open.wait(20)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(20)
