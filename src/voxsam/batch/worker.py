"""Worker: one model, and the three overlapped steps of each scan: read and resample, segment, write."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from voxsam.atomic import make_folder
from voxsam.batch.listing import ScanTask
from voxsam.boxes import crop_to_objects
from voxsam.errors import InputError
from voxsam.interactive.automatic import OVERLAP
from voxsam.interactive.predictor import Prediction
from voxsam.interactive.segment import check_mode, opened, read_images
from voxsam.io import check_mask_output, write_mask
from voxsam.kernels.linear import Precision
from voxsam.kernels.warm_up import warm_up
from voxsam.network.tuning import tensors_sha256
from voxsam.report.metrics import longest_axial_diameter
from voxsam.seen import Seen
from voxsam.weights import load_model

Item = TypeVar("Item")
Read = TypeVar("Read")
Worked = TypeVar("Worked")
Written = TypeVar("Written")

AHEAD = 2  # items that are being read or wait for the middle step; as many are being written or wait for that


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Item, Read], Worked],
    write: Callable[[Item, Worked], Written],
    ahead: int = AHEAD,
) -> Iterator[tuple[Item, Written | Exception]]:
    """Yield every item, in order, with what `write` returned, or with the exception that one of its steps raised.

    `work` runs in the caller's thread, one item at a time; `read` and `write` run in others. At most 2 `ahead` + 1
    items are in memory. When the caller stops or is interrupted, steps that have not begun are dropped, and reads and
    writes in progress are waited for. With `ahead` 0, the steps run one after the other in the caller's thread.
    """
    if ahead == 0:
        yield from ((item, _tried(lambda item=item: write(item, work(item, read(item))))) for item in items)
        return
    queue = iter(items)
    reading: deque[tuple[Item, Future[Read]]] = deque()
    writing: deque[tuple[Item, Future[Written]]] = deque()
    readers, writers = ThreadPoolExecutor(ahead, "read"), ThreadPoolExecutor(ahead, "write")

    def read_next(count: int = 1) -> None:
        reading.extend((item, readers.submit(read, item)) for item in islice(queue, count))

    def passed_on(item: Item, future: Future[Read]) -> Future[Written]:
        """Work on an item that was read and submit its writing; the next read starts as soon as this one is done."""
        try:
            try:
                found = future.result()
            finally:
                read_next()
            return writers.submit(write, item, work(item, found))
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    try:
        read_next(ahead)
        while reading:
            item, future = reading.popleft()
            writing.append((item, passed_on(item, future)))
            del future  # it holds what was read
            while writing and (len(writing) > ahead or not reading or writing[0][1].done()):
                item, written = writing.popleft()
                yield item, _tried(written.result)
    finally:
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _tried(step: Callable[[], Written]) -> Written | Exception:
    try:
        return step()
    except Exception as error:
        return error


# If reading and writing take more than this fraction of the network's time, they get a core of their own.
FILES_MATTER = 0.5


@dataclass(frozen=True)
class BatchOptions:
    """How every scan of a cohort is segmented. `suffix` chooses the masks' format; for `ahead` see `overlapped`.

    `threads` is the number of CPU threads of each worker's network; None: torch's default.
    """

    model: str = "voxsam-tiny"
    device: str = "auto"
    precision: Precision = "float32"
    automatic: bool = False
    follow: bool = True
    overlap: float = OVERLAP
    suffix: str = ".nii.gz"
    ahead: int = AHEAD
    threads: int | None = None


@dataclass(frozen=True)
class ScanResult:
    """The result of one scan. Volume and diameter (RECIST 1.1, longest axial) are of the whole mask."""

    name: str
    scan: str
    status: Literal["done", "failed"]
    volume_ml: float | None = None
    diameter_mm: float | None = None
    class_name: str = ""  # the model's class that it looks like
    reading_s: float | None = None
    segmenting_s: float | None = None
    writing_s: float | None = None
    messages: str = ""
    error: str = ""
    key: str = ""  # of what the mask was made from; see run.key_of


Opened = tuple[Callable[[], Prediction], ScanResult]  # the network's part, and the row so far


class Worker:
    """Segments scans with one model. Raises InputError if it is missing, or does not fit `settings.automatic`."""

    def __init__(self, settings: BatchOptions) -> None:
        self.settings = settings
        self.model = load_model(settings.model, settings.device, settings.precision)
        check_mode(self.model.card, settings.automatic)
        self._seen = Seen(self.model.card.trained_on)
        self._ready = settings.automatic  # nothing to warm up without clicks

    @property
    def fingerprint(self) -> str:
        """What identifies this model, wherever it came from: a hash of its tensors, and its card."""
        return tensors_sha256(self.model.state_dict()) + self.model.card.model_dump_json()

    def run(self, jobs: Sequence[ScanTask], output: Path) -> Iterator[ScanResult]:
        """Yield a row for each scan, in order, as soon as its mask is written below `output` or it has failed."""
        ahead, before = self.settings.ahead, torch.get_num_threads()
        threads = self.settings.threads or before
        try:
            torch.set_num_threads(threads)
            if jobs and not self._ready:  # once, and only if there are scans: it takes seconds
                warm_up(self.model)
                self._ready = True
            for job, row in overlapped(jobs, self._open, self._segment, partial(self._finish, output), ahead):
                row = row if isinstance(row, ScanResult) else _failed(job, row)
                if ahead and next(self.model.parameters()).device.type == "cpu":
                    torch.set_num_threads(threads_beside(row, threads))
                yield row
        finally:
            torch.set_num_threads(before)

    def _open(self, job: ScanTask) -> Opened:
        start = time.perf_counter()
        images = read_images(job.images, self.model.config.channels)
        check_mask_output(images[0], Path(f"{job.name}{self.settings.suffix}"))
        points = [click.on(images[0].grid) for click in job.clicks]
        segment = opened(self.model, images, points, follow=self.settings.follow, overlap=self.settings.overlap)
        seen = self._seen.find(job.name, images[0])
        messages, seconds = f"the model was {seen}" if seen else "", round(time.perf_counter() - start, 3)
        return segment, ScanResult(job.name, str(job.images[0]), "done", messages=messages, reading_s=seconds)

    def _segment(self, job: ScanTask, opened: Opened) -> tuple[Prediction, ScanResult]:
        segment, row = opened
        start = time.perf_counter()
        found = segment()
        return found, replace(row, segmenting_s=round(time.perf_counter() - start, 3))

    def _finish(self, output: Path, job: ScanTask, segmented: tuple[Prediction, ScanResult]) -> ScanResult:
        found, row = segmented
        start = time.perf_counter()
        mask = found.mask
        target = mask_path(output, job, self.settings)
        make_folder(target.parent)
        write_mask(mask, target, model=self.model.card.name)
        tumour = crop_to_objects(mask)
        diameter = longest_axial_diameter(tumour)
        return replace(
            row,
            volume_ml=round(tumour.volume_ml, 4),
            diameter_mm=round(diameter.length_mm, 2) if diameter else 0.0,
            class_name=found.class_name or "",
            writing_s=round(time.perf_counter() - start, 3),
            messages="; ".join(filter(None, [*mask.remarks, row.messages])),
        )


def threads_beside(row: ScanResult, threads: int) -> int:
    """The number of network threads from here on, given how long a scan's steps took: all `threads`, or one fewer.

    A network's threads constantly wait for one another. If files keep a core busy, the thread on it holds up the rest,
    and overlapping gains nothing (docs/performance.md, "Whole scans and cohorts").
    """
    if row.reading_s is None or row.segmenting_s is None or row.writing_s is None:
        return threads
    files_matter = row.reading_s + row.writing_s > FILES_MATTER * row.segmenting_s
    return max(1, threads - 1) if files_matter else threads


def mask_path(output: Path, job: ScanTask, settings: BatchOptions) -> Path:
    """The path of a scan's mask."""
    return output / f"{job.name}{settings.suffix}"


def _failed(job: ScanTask, error: Exception) -> ScanResult:
    what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return ScanResult(job.name, str(job.images[0]), "failed", error=" ".join(what.split()))
