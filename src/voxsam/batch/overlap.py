"""Three steps of many items at once: while the middle one works, the next items are read and the last ones written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Worked = TypeVar("Worked")
Written = TypeVar("Written")

AHEAD = 2  # items that are read, or wait for the middle step, at any time; as many are written or wait for it


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Item, Read], Worked],
    write: Callable[[Item, Worked], Written],
    ahead: int = AHEAD,
) -> Iterator[tuple[Item, Written | Exception]]:
    """Every item, in order, with what `write` returned, or with the exception that one of its steps raised.

    `work` runs in the caller's thread, one item at a time; `read` and `write` in others. At most 2 `ahead` + 1 items
    are in memory. When the caller stops, or is interrupted, what has not begun is not done, and what is being read or
    written is waited for. With `ahead` 0 one step follows the other, in the caller's thread.
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

    try:
        read_next(ahead)
        while reading:
            item, future = reading.popleft()
            writing.append((item, _passed_on(item, future, read_next, work, write, writers)))
            del future  # it holds what was read
            while writing and (len(writing) > ahead or writing[0][1].done()):
                yield _finished(writing.popleft())
        while writing:
            yield _finished(writing.popleft())
    finally:
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _passed_on(
    item: Item,
    reading: Future[Read],
    read_next: Callable[[], None],
    work: Callable[[Item, Read], Worked],
    write: Callable[[Item, Worked], Written],
    writers: ThreadPoolExecutor,
) -> Future[Written]:
    """The item on its way from reading to writing; the next one is read as soon as this one leaves its place."""
    try:
        read = reading.result()
    except Exception as error:
        return _failed(error)
    finally:
        read_next()
    try:
        return writers.submit(write, item, work(item, read))
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _finished(pair: tuple[Item, Future[Written]]) -> tuple[Item, Written | Exception]:
    item, future = pair
    return item, _tried(future.result)


def _tried(step: Callable[[], Written]) -> Written | Exception:
    try:
        return step()
    except Exception as error:
        return error
