"""Three hundred malformed requests and files from one seed, as a broken or malicious client might send them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

KEY = "right-key"
COUNT = 300


@dataclass(frozen=True)
class Bad:
    """A request that must be refused. `file`: it is uploaded first, and then opened. `raw`: sent as is."""

    what: str
    method: str = "GET"
    path: str = "/"
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {KEY}"})
    file: tuple[str, bytes] | None = None
    raw: bytes | None = None


Maker = Callable[[np.random.Generator, str], Bad]


def three_hundred(seed: int, session: str) -> Iterator[Bad]:
    """Use each maker in turn, with random numbers of its own. `session` is the id of an open session."""
    rng = np.random.default_rng(seed)
    for number in range(COUNT):
        yield MAKERS[number % len(MAKERS)](rng, session)


# Requests


def _garbage_head(rng, session) -> Bad:
    """A request with some of its bytes changed, or bytes that are not HTTP at all."""
    head = bytearray(f"GET /api/info HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}x\r\n\r\n".encode())
    for at in rng.integers(0, len(head) - 4, 6):
        head[at] = rng.choice([0, 10, 13, 58, 127, 255])
    return Bad("a fuzzed head", raw=bytes(head) if rng.random() < 0.7 else rng.bytes(200) + b"\r\n\r\n")


def _truncated_body(rng, session) -> Bad:
    path = rng.choice(["/api/sessions", "/api/uploads?name=ct.nii.gz", f"/api/sessions/{session}/prompts"])
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-length: 9000\r\n\r\n"
    return Bad("a truncated body", raw=head.encode() + b'{"prompts": [' + rng.bytes(int(rng.integers(0, 400))))


def _wrong_length(rng, session) -> Bad:
    length = rng.choice(["-1", "1e9", "99999999999999999999", "five", "0x10", "4, 5"])
    head = f"POST /api/uploads?name=a.nii HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    return Bad("a wrong length", raw=f"{head}content-length: {length}\r\n\r\n".encode() + bytes(10))


def _wrong_key(rng, session) -> Bad:
    key = rng.bytes(12).hex() if rng.random() < 0.8 else KEY[:-1]
    path = rng.choice(["/api/info", "/metrics", f"/api/sessions/{session}", f"/api/sessions/{session}/scan"])
    return Bad("a wrong key", path=path, headers={"authorization": f"Bearer {key}"})


def _foreign(rng, session) -> Bad:
    headers = {"authorization": f"Bearer {KEY}"}
    headers |= {"host": "evil.example"} if rng.random() < 0.5 else {"origin": "https://evil.example"}
    return Bad("a foreign host or site", "POST", f"/api/sessions/{session}/reset", headers=headers)


def _unknown(rng, session) -> Bad:
    path = rng.choice(
        ["/api/nothing", "/api/sessions/../../etc", f"/api/sessions/{session}/nothing", "/api/sessions/x"]
    )
    method = str(rng.choice(["GET", "POST", "PUT", "DELETE", "BREW"]))
    return Bad("an unknown route or session", method, f"{path}{rng.integers(99)}")


# Paths


def _traversal(rng, session) -> Bad:
    steps = rng.choice(["../", "..%2f", "%2e%2e/", "..\\", "....//", "./../", "/", "x/../../"]) * int(
        rng.integers(1, 6)
    )
    target = f"{steps}{rng.choice(['outside/secret.nii.gz', 'etc/passwd', 'link.nii.gz', 'linked/secret.nii.gz'])}"
    target = str(rng.choice([target, "link.nii.gz", "linked/secret.nii.gz", "linked"]))
    if rng.random() < 0.5:
        body = json.dumps({"source": {"folder": "0", "path": target}}).encode()
        return Bad(f"the path {target}", "POST", "/api/sessions", body)
    return Bad(f"the folder {target}", path=f"/api/files?folder=0&path={target}")


def _page_traversal(rng, session) -> Bad:
    path = "/" + rng.choice(["../", "..%2f", "%2e%2e/", "assets/../../", "//"]) * 4 + "outside/secret.nii.gz"
    head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"  # a client's library would tidy it up
    return Bad(f"the page's {path}", raw=head.encode())


def _upload_id(rng, session) -> Bad:
    upload = str(rng.choice(["../works", "..", "/etc", "a" * 24, session, "%00" * 9]))
    if rng.random() < 0.5:
        return Bad("a false upload", "POST", "/api/sessions", json.dumps({"source": {"upload": upload}}).encode())
    return Bad("a false upload", "POST", f"/api/uploads?name=a.nii&upload={upload}", b"12")


# Bodies


def _prompt(rng, session) -> Bad:
    good = {"kind": "point", "index": [1, 2, 3], "positive": True}
    number = rng.choice([1e300, -1e300, 5000, -1, 2**53])
    body = rng.choice(
        [
            json.dumps({"prompts": [{**good, "index": [float(number), 0, 0]}]}),
            json.dumps({"prompts": [{"kind": "box", "low": [0, 0, 0], "high": [float(number), 1, 1]}]}),
            json.dumps({"prompts": [{"kind": "scribble", "voxels": [[int(number), 0, 0]]}]}),
            json.dumps({"prompts": [{**good, "index": "abc"}]}),
            json.dumps({"prompts": [{**good, "positive": "perhaps"}]}),
            json.dumps({"prompts": [good] * 300}),
            json.dumps({"prompts": [{"kind": "point"}]}),
            json.dumps({"prompts": {}}),
            '{"prompts": [{"kind": "point", "index": [NaN, 1, Infinity]}]}',
            "[" * 5000,
            '{"prompts": ' * 1000,
            "null",
            "",
            json.dumps({"prompts": [good]})[: int(rng.integers(1, 50))],
        ]
    )
    return Bad(f"the prompt {body[:60]}", "POST", f"/api/sessions/{session}/prompts", str(body).encode())


def _binary_body(rng, session) -> Bad:
    path = rng.choice(["/api/sessions", f"/api/sessions/{session}/prompts"])
    return Bad("a body of random bytes", "POST", path, rng.bytes(int(rng.integers(1, 3000))))


def _source(rng, session) -> Bad:
    source = rng.choice(
        ['{"demo": false}', '{"folder": "9", "path": ""}', '{"url": "http://x"}', "[]", '{"folder": "0"}']
    )
    return Bad(f"the source {source}", "POST", "/api/sessions", f'{{"source": {source}}}'.encode())


# Files


def _nifti(rng: np.random.Generator, shape=(12, 11, 10)) -> bytearray:
    array = rng.normal(0, 200, shape).astype(np.int16)
    return bytearray(nib.Nifti1Image(array, np.diag([2, 3, 4, 1.0])).to_bytes())


# Offset in the header, and values that cannot stand there: sizes, kind, spacing, where the voxels begin, magic.
SPACING = 80
BREAKS = (
    (40, "<h", (-1, 0, 9, 2, 255)),
    (42, "<h", (0, -5, 32767)),
    (70, "<h", (0, 3, 128, 2304, -7)),
    (SPACING, "<f", (0.0, -2.0, float("nan"), float("inf"))),
    (108, "<f", (float("nan"), 1e30, -1e9)),
    (344, "<4s", (b"none", b"ni1\0", b"\xff" * 4)),
)


def _broken_header(rng, session) -> Bad:
    data = _nifti(rng)
    offset, kind, values = BREAKS[rng.integers(len(BREAKS))]
    struct.pack_into(kind, data, offset, values[rng.integers(len(values))])
    if offset == SPACING:
        struct.pack_into("<2h", data, 252, 0, 0)  # neither qform nor sform: the spacing is all there is
    packed = rng.random() < 0.5
    name, content = ("ct.nii.gz", gzip.compress(data)) if packed else ("ct.nii", bytes(data))
    return Bad(f"a NIfTI header broken at {offset}", file=(name, content))


def _huge(rng, session) -> Bad:
    """A header that declares far more than any memory can hold, with almost no data."""
    data = _nifti(rng)
    struct.pack_into("<3h", data, 42, *rng.choice([32767, 30000, 20000], 3))
    return Bad("huge dimensions", file=("ct.nii.gz", gzip.compress(data)))


def _bomb(rng, session) -> Bad:
    """A little data that unpacks to very much: possible for a deflate stream, but more than this server reads."""
    data = _nifti(rng)
    struct.pack_into("<3h", data, 42, 512, 512, 100)
    return Bad("a gzip bomb", file=("ct.nii.gz", gzip.compress(bytes(data) + bytes(512 * 512 * 100 * 2), 1)))


def _cut(rng, session) -> Bad:
    data = gzip.compress(_nifti(rng))
    return Bad("a file cut off", file=("ct.nii.gz", data[: int(rng.integers(1, len(data) - 8))]))


def _text_header(rng, session) -> Bad:
    if rng.random() < 0.5:
        sizes = rng.choice(["0 0 0", "-1 2 3", "99999 99999 99999", "1e9 2 2", "a b c", "10 10"])
        text = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: {rng.choice(['raw', 'gzip', 'hex'])}\n\n"
        )
        return Bad(f"an NRRD of {sizes}", file=("ct.nrrd", text.encode() + rng.bytes(100)))
    sizes = rng.choice(["0 0 0", "-4 4 4", "99999 99999 99999", "4 4", "x"])
    kind = rng.choice(["MET_SHORT", "MET_NONSENSE"])
    where = rng.choice(["LOCAL", "/etc/passwd", "../../outside/secret.nii.gz"])
    text = f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = {kind}\nElementDataFile = {where}\n"
    return Bad(f"an MHA of {sizes} in {where}", file=("ct.mha", text.encode() + bytes(64)))


def _zip(rng, session) -> Bad:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        what = rng.integers(3)
        if what == 0:
            archive.writestr("../../outside/written.dcm", bytes(128) + b"DICM" + rng.bytes(500))
        elif what == 1:
            archive.writestr("bomb.dcm", bytes(128) + b"DICM" + bytes(80 << 20))
        else:
            archive.writestr("a.dcm", rng.bytes(3000))
    data = bytearray(memory.getvalue())
    if rng.random() < 0.3:
        data = data[: int(rng.integers(10, len(data)))]
    return Bad("a zip", file=("series.zip", bytes(data)))


def _dicom(rng, session) -> Bad:
    return Bad("a DICOM file of noise", file=("1.dcm", bytes(128) + b"DICM" + rng.bytes(int(rng.integers(10, 2000)))))


def _noise(rng, session) -> Bad:
    name = rng.choice(["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.zip", "ct.png", "ct", "../../outside/x.nii"])
    return Bad(f"noise named {name}", file=(str(name), rng.bytes(int(rng.integers(1, 5000)))))


MAKERS: tuple[Maker, ...] = (
    *(_garbage_head, _truncated_body, _wrong_length, _wrong_key, _foreign, _unknown, _traversal, _page_traversal),
    *(
        _upload_id,
        _prompt,
        _binary_body,
        _source,
        _broken_header,
        _huge,
        _bomb,
        _cut,
        _text_header,
        _zip,
        _dicom,
        _noise,
    ),
    *(_prompt, _broken_header, _traversal, _text_header, _garbage_head),
)
