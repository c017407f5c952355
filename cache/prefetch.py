"""A thread that stays a few items ahead of its consumer, and ends with it."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
LOOK_S = 0.05


class Prefetcher(Generic[T]):
    """Runs a generator on a background thread.

    An error of the generator is raised in the consumer, after the items before it. `close`, the end of the items, the
    end of the process, and dropping the last reference all stop the thread and close the generator.

    Parameters
    ----------
    items : generator
        What to run; must hold no reference to the consumer, or dropping that would not stop it.
    depth : int
        Items kept ready, >= 1.
    """

    def __init__(self, items: Generator[T, None, None], depth: int = 2) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        stop = threading.Event()
        thread = threading.Thread(target=_pump, args=(items, self._queue, stop), name="store-prefetch", daemon=True)
        self._halt = weakref.finalize(self, _halt, self._queue, stop, thread)
        thread.start()

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if not self._halt.alive:
            raise StopIteration
        item, error = self._queue.get()
        if error is not None:
            self.close()
            raise error
        if item is None:
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the thread and wait for its end; safe to repeat."""
        self._halt()


def _pump(items: Generator[T, None, None], ready: queue.Queue[Any], stop: threading.Event) -> None:
    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=LOOK_S)
            except queue.Full:
                continue

    try:
        for item in items:
            put((item, None))
            if stop.is_set():
                break
        items.close()
        put((None, None))
    except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the consumer
        put((None, error))


def _halt(ready: queue.Queue[Any], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    while True:  # a thread that waits for room goes on at once
        try:
            ready.get_nowait()
        except queue.Empty:
            break
    if thread is not threading.current_thread():
        thread.join()
