"""A process that runs commands again and again, and stops them: `workbench.testing.interrupted` asks it to.

``python -m workbench.testing.stopping`` reads jobs and writes stories, JSON, one a line. Each child is forked from it,
after the imports, and stopped at one event of its own: a step of its progress, the making of a file in ``work``, the
writing of the manifest. A file that is opened to be written is stopped with nothing in it, one that is put in its place
by a rename is stopped before.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

PRELOADED = (
    "dask.array",  # by xarray, when it makes its first array
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "pyarrow.dataset",
    "ruamel.yaml",
    "workbench.cli.app",
    "workbench.dictionary",
    "workbench.execution",
    "workbench.report.build",
    "workbench.results_files",
    "workbench.subjects.sources",
    "workbench.zoo.loading",
)
BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"/>'


@dataclass(frozen=True)
class Stop:
    """Where a process is stopped.

    Attributes
    ----------
    event : str
        ``step`` (progress advances), ``work`` (a file in ``context.work`` is opened for writing, or renamed),
        ``manifest`` (all is computed and saved, and the manifest is about to be written).
    number : int
        Which of these events, counted from 1.
    signal : int
        SIGINT is Ctrl-C; SIGKILL cannot be heard.
    """

    event: Literal["step", "work", "manifest"]
    number: int
    signal: int


@dataclass(frozen=True)
class Stopped:
    """What became of a process.

    Attributes
    ----------
    event : str
        Where it was to be stopped; "" for one that was left alone.
    code : int
        Exit code, or the signal that killed it as a negative number.
    said : str
        On the terminal.
    work : list of str
        Files that were in ``context.work`` afterwards.
    pickles : list of str
        Files among those of the unfinished run that hold pickles.
    """

    event: str
    code: int
    said: str
    work: list[str]
    pickles: list[str]


def tell(stop: Stop, job: dict[str, Any]) -> None:
    """Have this process stopped at an event."""
    left = [stop.number]

    def happened(event: str, opened: str = "", flags: int = 0) -> None:
        if event == stop.event:
            left[0] -= 1
            if left[0] == 0:
                if opened:
                    os.close(os.open(opened, os.O_WRONLY | os.O_CREAT | flags & os.O_TRUNC))
                os.kill(os.getpid(), stop.signal)

    from workbench.progress import Ticker

    advance: Callable[[Ticker, int], None] = Ticker.advance

    def counted(self: Ticker, n: int = 1) -> None:
        advance(self, n)
        happened("step")

    Ticker.advance = counted  # type: ignore[method-assign]
    sys.addaudithook(listener(job, happened))


def listener(job: dict[str, Any], happened: Callable[..., None]) -> Callable[[str, tuple[Any, ...]], None]:
    """Make an audit hook that tells of files in ``work``, and of the manifest."""
    inside = job["work"] + os.sep

    def hear(event: str, about: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.fspath(about[1]).startswith(inside):
            happened("work")
        elif event == "open" and isinstance(about[0], str) and writes(about):
            if about[0] == job["manifest"]:
                happened("manifest")
            elif about[0].startswith(inside) and isinstance(about[1], str):
                happened("work", about[0], about[2])

    return hear


def writes(about: tuple[Any, ...]) -> bool:
    """True if a file is opened for writing."""
    _, mode, flags = about
    return bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))


def run_once(job: dict[str, Any], stop: Stop | None, log: Path) -> Stopped:
    """Run the command in a child, and see what becomes of it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("wb", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            leave_figures_blank()
            if stop is not None:
                tell(stop, job)
            code = run_command(job)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    from workbench.testing.running import pickles

    work = Path(job["work"])
    files = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()) if work.is_dir() else []
    found = pickles(work.parent) if work.is_dir() else []
    return Stopped(stop.event if stop else "", code, log.read_text("utf-8", "replace"), files, found)


def run_command(job: dict[str, Any]) -> int:
    """Run the command in this process; a fault is printed, as the interpreter does."""
    import traceback

    import torch

    from workbench.cli import main

    torch.set_num_threads(job["threads"])
    try:
        return main(job["words"])
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        traceback.print_exc()
        return 1


def follow(job: dict[str, Any]) -> list[Stopped]:
    """Run a job's command, stopped at each of its places in turn, and at last left alone.

    A job holds the ``words`` of the command, the folder ``work`` and the file ``manifest`` of its unfinished run, the
    ``stops``, how many ``threads`` compute, and the ``path`` and ``imports`` of the process that asks.
    """
    sys.path[:] = job["path"]
    for name in job["imports"]:
        importlib.import_module(name)
    log = Path(job["work"]).parents[1] / "said.txt"
    story: list[Stopped] = []
    for stop in [*(Stop(**stop) for stop in job["stops"]), None]:
        story.append(run_once(job, stop, log))
        if story[-1].code == 0 or story[-1].code == 1:
            break
    log.unlink()
    return story


def leave_figures_blank() -> None:
    """Have figures saved without drawing them: that takes longer than most quick runs, and shows nothing here."""
    from workbench.results import Figure

    def blank(self: Figure, form: str) -> bytes:
        return BLANK if self.figure is not None else self.images[form]

    Figure._image = blank  # type: ignore[method-assign]


def serve() -> None:
    """Take jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background inherits that it is ignored
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps([asdict(stopped) for stopped in follow(json.loads(line))]), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
