"""A plugin for tests of batches: quick, and it fails in every way that a job can."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from workbench.hookspecs import hookimpl
from workbench.plugin import Needs, Option, Plugin

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result


WAYS = (
    "well",
    "error",
    "once",
    "wrong",
    "exit",
    "leave",
    "greed",
    "kill",
    "once killed",
    "hang",
    "half",
    "interrupt",
    "unpicklable",
    "unprintable",
    "huge",
    "strange",
)
STRANGE = "a lone \udc80, a NUL \0, an \x1b[31mescape\x1b[0m, [bold]markup[/], <script>alert(1)</script>"


class UnpicklableError(Exception):
    """Cannot be sent anywhere."""

    def __reduce__(self):
        raise TypeError("stays here")


class UnprintableError(Exception):
    """Has no text."""

    def __str__(self):
        raise RuntimeError("says nothing")


@dataclass(frozen=True)
class TrialConfig:
    """What happens."""

    n: Annotated[int, Option("number", ge=0, le=100_000)] = 0
    label: Annotated[str | None, Option("a name")] = None
    way: Annotated[Literal[*WAYS], Option("how it ends")] = "well"
    hook_point: Annotated[str | None, Option("a hook point, of a plugin that reads a store")] = None
    poisons: Annotated[str | None, Option("JSON file: the way of some, by hook point, label and seed")] = None
    seconds: Annotated[float, Option("that it takes", unit="s", ge=0)] = 0.0
    notes: Annotated[str | None, Option("folder in which every start is noted")] = None


class Trial(Plugin):
    """Does nothing of use."""

    name = "trial"
    help = "does nothing of use"
    Config = TrialConfig

    def run(self, context: Context) -> Result:
        """Return numbers that depend on n, label and seed."""
        import pandas as pd

        from workbench.report.figures import new_figure
        from workbench.results import Result

        config: TrialConfig = context.config
        begun = 1
        if config.notes is not None:
            name = f"{config.n}-{config.label}-{config.way}-{context.seed}"
            name += "" if config.hook_point is None else f"-{config.hook_point}"
            with (Path(config.notes) / name).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
            begun = len((Path(config.notes) / name).read_text(encoding="utf-8").splitlines())
        time.sleep(config.seconds)
        way = config.way
        if config.poisons is not None:
            poisons = json.loads(Path(config.poisons).read_text(encoding="utf-8"))
            way = poisons.get(f"{config.hook_point} {config.label} {context.seed}", "well")
        go_wrong(way, begun, config.n, context)
        value = config.n + context.rng("value").random()
        if config.hook_point is not None:
            told, defined = context.store.label(config.label)
            value += float(context.store.read(config.hook_point)[defined & (told > 0)].mean())
        result = Result()
        tail = f".{config.label}" if config.label else ""
        result.add_metric(f"score{tail}.k1", value, description="number and noise", lo=value - 1, hi=value + 1)
        result.add_table("rows", pd.DataFrame({"n": [config.n], "value": [value]}), description="one row")
        figure, (axes,) = new_figure()
        axes.plot([0, config.n], [0, value])
        result.add_figure("line", figure, description="a line")
        return result


def go_wrong(way: str, begun: int, n: int, context: Context) -> None:
    """End a job before its time, in one of `WAYS`."""
    from workbench.errors import UserError

    if way == "error" or (way == "once" and begun < 2):
        raise ZeroDivisionError(f"n={n} cannot be done")
    if way == "wrong":
        raise UserError(f"n={n} has too few rows")
    if way == "exit":
        os._exit(1)
    if way == "leave":
        sys.exit("left")
    if way == "kill" or (way == "once killed" and begun < 2):
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "hang":
        time.sleep(1e6)
    if way == "half":
        part = context.work.parent
        (part / "metrics.json").write_text("{")
        (part / "tables").mkdir(exist_ok=True)
        (part / "tables" / "half.parquet").write_bytes(b"PAR1")
        os._exit(1)
    if way == "interrupt":
        raise KeyboardInterrupt("of the plugin")
    if way == "unpicklable":
        raise UnpicklableError("cannot travel")
    if way == "unprintable":
        raise UnprintableError
    if way == "huge":
        raise RuntimeError("\n\nbegins " + 2_000_000 * "x" + " ends")
    if way == "strange":
        raise RuntimeError(STRANGE)
    if way == "greed":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 16)
            time.sleep(0.01)


class StoreTrial(Trial):
    """Reads a store."""

    name = "store-trial"
    help = "reads a store"
    needs = Needs(store=True)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer the plugins."""
    return [Trial, StoreTrial]
