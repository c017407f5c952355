"""What the steps of a capture take of the processors, each on its own thread: hardly moved by other processes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from workbench import capture_passes
from workbench.cache import StoreWriter
from workbench.cache.open_shard import OpenShard
from workbench.capture_rows import RowsOnTheWay
from workbench.subjects.protocol import Subject

PASSES = "forward passes"


def steps(subject: Subject) -> list[tuple[str, Any, str]]:
    """Return the name of each step, and the function that takes it, as its owner and attribute; none calls another."""
    return [
        (PASSES, subject, "run"),
        ("batches made", capture_passes, "make_batch"),
        ("rows taken out", capture_passes, "rows_of"),
        ("rounded", RowsOnTheWay, "__init__"),
        ("looked through for overflow", RowsOnTheWay, "array"),
        ("checksummed and written", StoreWriter, "append"),
        ("shards synced", OpenShard, "put_in_place"),
        ("store opened", StoreWriter, "__init__"),
        ("store finished", StoreWriter, "close"),
    ]


def run(subject: Subject, capture: Callable[[], object]) -> None:
    """Print the seconds of each step of one capture.

    They are of the thread that takes the step: where PyTorch shares out a step, the passes above all, other threads
    take as long again. The sum of all but the passes, beside the passes, is what a capture would add if nothing
    overlapped and the disk took no time.
    """
    took: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for name, owner, attribute in steps(subject):
            stack.enter_context(patch.object(owner, attribute, counted(getattr(owner, attribute), name, took)))
        capture()
    passes = took.pop(PASSES)
    print(f"  seconds on a core: passes {passes:.2f}, all else {sum(took.values()):.3f}", end="")
    print(f" ({sum(took.values()) / passes:.1%}): {', '.join(f'{name} {found:.3f}' for name, found in took.items())}")


def counted(work: Callable[..., Any], name: str, into: dict[str, float]) -> Callable[..., Any]:
    """Return a function that does the same, and adds what its thread used."""

    def timed(*given: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return work(*given, **named)
        finally:
            into[name] += time.thread_time() - start

    return timed
