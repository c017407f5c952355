"""Commits on a thread of their own, one at a time and in order, while the next shard fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from workbench.cache.errors import StoreError


class Committing(ABC):
    """A writer of shards that is a context manager and commits behind its caller's back.

    Parameters
    ----------
    thread : str
        Name of the thread.
    """

    def __init__(self, thread: str) -> None:
        self._commits = ThreadPoolExecutor(1, thread)
        self._pending: Future[None] | None = None

    def _wait(self) -> None:
        """Wait for the commit on the other thread; its error is raised here."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None  # only now: an interrupt while waiting must not forget it

    @abstractmethod
    def close(self) -> None:
        """Commit what is full, drop what is not; safe to repeat."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*(() if kind is None else (StoreError,))):  # the first error is the one to report
            self.close()
