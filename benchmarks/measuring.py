"""Timing ways of doing the same thing in turns, and telling them with the machine; shared by the benchmarks."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Way = Callable[[], object]


def in_turns(
    ways: Mapping[str, Way],
    repeats: int,
    *,
    fewer: Mapping[str, int] | None = None,
    before: Callable[[str], object] | None = None,
) -> dict[str, float]:
    """Return the median seconds of each way; ways take turns, so that a drift of the machine hits all of them.

    See `all_turns`.
    """
    found = all_turns(ways, repeats, fewer=fewer, before=before)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def all_turns(
    ways: Mapping[str, Way],
    repeats: int,
    *,
    fewer: Mapping[str, int] | None = None,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round.

    Parameters
    ----------
    ways : mapping of str to callable
        What to time.
    repeats : int
        Rounds.
    fewer : mapping of str to int, optional
        Ways that take part in the first few rounds only, because they are slow.
    before : callable, optional
        Called with the way's name before each turn, outside the clock: drops caches, removes files.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            if turn >= (fewer or {}).get(name, repeats):
                continue
            if before is not None:
                before(name)
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_rates(
    title: str, seconds: Mapping[str, float], n_bytes: int, *, floor: str, peers: Mapping[str, str]
) -> None:
    """Print gigabytes per second and the ratio to the floor, and ours to each peer.

    Parameters
    ----------
    title : str
        What was measured.
    seconds : mapping of str to float
        Medians, from `in_turns`.
    n_bytes : int
        Bytes that each way moves.
    floor : str
        The way that does nothing but move the bytes.
    peers : mapping of str to str
        Of our ways to what each is held against.
    """
    print(f"\n{title}")
    for name, found in seconds.items():
        print(f"  {name:<44} {n_bytes / found / 1e9:8.3f} GB/s  {seconds[floor] / found:6.3f} x {floor}")
    for ours, peer in peers.items():
        if ours in seconds and peer in seconds:
            print(f"  {ours} is {seconds[peer] / seconds[ours]:.2f} times as fast as {peer}")


class Others:
    """How much of the processors other processes take from now on: what runs on every core suffers first."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float:
        """Return their share of all cores since the start; NaN where the system does not tell."""
        start, now = self._start, self._seconds()
        if start is None or now is None:
            return float("nan")
        busy, own, wall = (after - before for before, after in zip(start, now, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        try:
            user, nice, system, _, _, irq, softirq, steal = map(
                int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
            )
        except OSError:
            return None  # not Linux
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy, sum(os.times()[:4]), time.perf_counter()


def machine() -> str:
    """Return processor, cores, memory and system in a line."""
    name, memory = platform.processor() or platform.machine(), 0.0
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError, AttributeError):
        pass  # not Linux: less is known
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
