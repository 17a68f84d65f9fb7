"""Read an untrusted file in a separate process, which may crash, hang or ask for too much memory without harming ours.

Each file is read by a fresh process, so that one that corrupts a native parser's heap (ITK, GDCM, JPEG 2000) can
neither kill the caller nor alter another file's voxels. This guards against faults, not attackers: the process runs as
the same user, which is why its reply may be a pickle.

    request    stdin, one JSON line; stdin then stays open, and its end means that the caller has gone
    begun      stdout: uint64, the bytes that the process has read before it starts on the file
    reply      stdout: uint64 count and lengths, then as many pieces: a pickle, and the buffers that it refers to
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Required, TypedDict, Unpack

import numpy as np

import voxsam.errors
from voxsam.errors import FileError, InputError
from voxsam.io.checks import MAX_VOXELS, at_most
from voxsam.io.objects import MaskObject
from voxsam.volume import Volume

TIME_S = 120.0  # a whole-body CT in JPEG 2000 takes about half of this on a slow core
MAX_PIECES = 4096  # of one reply; each is an array
MIB = 1 << 20

Accept = Callable[[int], Any]
LOOK_S = 0.25  # between two progress reports


@dataclass(frozen=True)
class Reading:
    """Control of a file being read: `report` is called from another thread with the fraction of its bytes read, 0 to 1
    (on Linux), and setting `stop` ends the reading.
    """

    report: Callable[[float], None]
    stop: threading.Event = field(default_factory=threading.Event)


class MemoryNeeded(FileError):
    """Reading the file takes more memory than allowed."""


class How(TypedDict, total=False):
    """Options for reading a file: `memory_bytes` beyond what the process has when it starts, `time_s` seconds.

    `name` is what messages call the file. `accept` is called with the size of the reply in bytes before memory is
    allocated for it, and may raise. `temporary` is a folder for unpacked files, by default the system's; it is empty
    afterwards, however the process ended. `reading` can stop the process and is told its progress.
    """

    memory_bytes: Required[int]
    max_voxels: int
    time_s: float
    temporary: Path | None
    name: str | None
    accept: Accept
    reading: Reading | None


def read_volume(path: str | os.PathLike[str], *, labels: bool = False, series: str = "", **how: Unpack[How]) -> Volume:
    """As `voxsam.io.read_volume`, in a process of its own. Raises as it does, and FileError if the process fails or is
    stopped.
    """
    reply = _ask(Path(path), {"labels": labels, "series": series}, how)
    assert isinstance(reply, Volume)
    return reply


def read_objects(path: str | os.PathLike[str], scan: Volume, **how: Unpack[How]) -> list[MaskObject]:
    """As `voxsam.io.read_objects`, in a process of its own, otherwise as `read_volume` here."""
    place = base64.b64encode(pickle.dumps((scan.grid, scan.header))).decode()
    reply = _ask(Path(path), {"scan": place}, how)
    assert isinstance(reply, list)
    return reply


def _ask(path: Path, what: dict[str, Any], how: How) -> Any:
    """The reply of a new process to the request. Raises the InputError it replies with, or FileError if it fails."""
    assert how.keys() <= How.__annotations__.keys(), f"{sorted(how)} of {sorted(How.__annotations__)}"
    name, time_s, reading = how.get("name") or path.name, how.get("time_s", TIME_S), how.get("reading")
    limits = {"memory_bytes": how["memory_bytes"], "max_voxels": how.get("max_voxels", MAX_VOXELS)}
    with tempfile.TemporaryDirectory(prefix="voxsam-", dir=how.get("temporary")) as folder:
        process = _start(folder)
        assert process.stdin is not None and process.stdout is not None
        too_late = threading.Event()
        timer = threading.Timer(time_s, lambda: (too_late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        if reading is not None:
            threading.Thread(target=_kill_when, args=(reading.stop, process), daemon=True).start()
        try:
            process.stdin.write(json.dumps({"path": str(path.absolute()), **what, **limits}).encode() + b"\n")
            process.stdin.flush()
            (before,) = struct.unpack("<Q", _exactly(process.stdout, 8))
            if reading is not None:
                threading.Thread(target=_report_read, args=(process, before, path, reading.report), daemon=True).start()
            reply = _receive(process.stdout, how.get("accept"))
        except (OSError, EOFError) as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10.0)  # it is ending: wait for its status
            process.kill()
            raise _failed(name, process.wait(), time_s if too_late.is_set() else None) from error
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):  # it ended before it read all of the request
                process.stdin.close()
            process.stdout.close()
    if not isinstance(reply, tuple):
        return reply
    kind, given, expected, remedy, facts = reply
    found = MemoryNeeded if kind == "MemoryNeeded" else getattr(voxsam.errors, kind, FileError)
    error_type = found if isinstance(found, type) and issubclass(found, InputError) else FileError
    error = error_type(given.replace(path.name, name), expected, remedy)
    vars(error).update(facts)
    raise error


def _kill_when(stop: threading.Event, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        if stop.wait(0.2):
            process.kill()


def _report_read(process: subprocess.Popen[bytes], before: int, path: Path, report: Callable[[float], None]) -> None:
    """Report the fraction of the bytes that the process has read since `before`, as long as the system counts them."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):  # it may be removed meanwhile
            total += file.stat().st_size if file.is_file() else 0
    while total and process.poll() is None and (read := _bytes_read(process.pid)):
        report(min((read - before) / total, 1.0))
        time.sleep(LOOK_S)


def _bytes_read(process: int | str) -> int:
    """The bytes that a process has read from any file; 0 if the system does not count them."""
    try:
        return int(Path(f"/proc/{process}/io").read_text().split()[1])  # "rchar: N"
    except (OSError, ValueError, IndexError):
        return 0


def _start(temporary: str) -> subprocess.Popen[bytes]:
    """Start the process with this package, on one thread, with `temporary` as its folder for temporary files."""
    package = str(Path(voxsam.errors.__file__).parents[1])
    places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")
    folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "voxsam.io.guarded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **threads, **folders, "PYTHONPATH": os.pathsep.join(places)},
    )


def _receive(stream: IO[bytes], accept: Accept | None) -> Any:
    """The reply of the process. Raises EOFError if it ends too early, and what `accept` raises."""
    (count,) = struct.unpack("<Q", _exactly(stream, 8))
    if count > MAX_PIECES:
        raise EOFError(f"{count} pieces")
    lengths = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    if accept is not None:
        accept(sum(lengths))
    pickled, *buffers = (_exactly(stream, length) for length in lengths)
    try:
        return pickle.loads(pickled, buffers=buffers)  # noqa: S301, from our own process: see the top
    except Exception as error:  # a process with a corrupted heap may send anything
        raise EOFError("a reply that is damaged") from error


def _exactly(stream: IO[bytes], length: int) -> memoryview:
    view = np.empty(length, dtype=np.uint8).data
    done = 0
    while done < length:
        count = stream.readinto(view[done : done + 16 * MIB])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{done} of {length} bytes")
        done += count
    return view


def _failed(name: str, status: int, time_s: float | None) -> FileError:
    if time_s is not None:
        given = f"{name} took more than {time_s:g} s to read"
    else:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        given = f"{name} made its reader fail ({how})"
    return FileError(given, "a file that is read at once", "convert it to .nii.gz on your machine, or export it again")


# In the process


def main() -> None:
    """Read one request, reply to it and exit."""
    from voxsam.io import read_volume as read
    from voxsam.io.objects import read_objects as read_mask

    # Replies have a stream to themselves: what a library prints is discarded.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    import nibabel  # noqa: F401, what is imported later would count towards the file's memory
    import SimpleITK  # noqa: F401

    from voxsam.io.dicom import series  # noqa: F401

    np.linalg.inv(np.eye(4))  # OpenBLAS allocates its buffers now: later, without memory, it would kill the process
    _limit_memory(request["memory_bytes"])
    path = Path(request["path"])
    replies.write(struct.pack("<Q", _bytes_read("self")))
    replies.flush()
    try:
        with at_most(request["max_voxels"]):
            if "scan" in request:
                grid, header = pickle.loads(base64.b64decode(request["scan"]))  # noqa: S301, from our caller
                scan = Volume(np.broadcast_to(np.uint8(0), grid.shape), grid, header=header)
                _send(replies, read_mask(path, scan))
            else:
                _send(replies, read(path, labels=request["labels"], series=request["series"]))
    except InputError as error:
        facts = {name: value for name, value in vars(error).items() if name in ("series", "numbers")}
        _send(replies, (type(error).__name__, error.given, error.expected, error.remedy, facts))
    except MemoryError:
        given = f"{path.name} needs more than {request['memory_bytes'] // MIB} MiB of memory to be read"
        remedy = "crop it, or start the server with more --memory"
        _send(replies, ("MemoryNeeded", given, "a smaller scan", remedy, {}))
    os._exit(0)  # nothing is left to do, and a library with a corrupted heap may not shut down cleanly


def _send(stream: IO[bytes], reply: object) -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(reply, protocol=5, buffer_callback=buffers.append)
    pieces: Sequence[Any] = [pickled, *(buffer.raw() for buffer in buffers)]
    stream.write(struct.pack(f"<Q{len(pieces)}Q", len(pieces), *map(len, pieces)))
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def _limit_memory(nbytes: int) -> None:
    """Limit this process to `nbytes` more memory than it has now, where the system allows it (Linux)."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_caller() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
