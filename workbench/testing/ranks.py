"""Several ranks in one process, a thread each: for tests of what processes do together, without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from workbench.ranks import Ranks

T = TypeVar("T")


class Threaded:
    """One of several ranks that are threads; see `workbench.ranks.Ranks`."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self._table, self._barrier = table, barrier

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Ranks.gather`."""
        return [each.clone() for each in self._exchange(tensor.detach().clone())]

    def tell(self, value: str) -> str:
        """See `Ranks.tell`."""
        return str(self._exchange(value)[0])

    def _exchange(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait()
        found = list(self._table)
        self._barrier.wait()  # nobody writes before all have read
        return found


def on_threads(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """Call a function on each of several ranks at once, and return what each gives, by rank; raises what one raises."""
    table: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def one(rank: int) -> T:
        try:
            return work(Threaded(rank, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        waiting = [threads.submit(one, rank) for rank in range(size)]
        errors = [error for each in waiting if (error := each.exception()) is not None]
        first = next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), None)
        if first is not None:
            raise first
        return [each.result() for each in waiting]
