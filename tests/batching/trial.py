"""A plugin for tests of batches: quick, and it fails in every way that a job can."""

from __future__ import annotations

import os
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


@dataclass(frozen=True)
class TrialConfig:
    """What happens."""

    n: Annotated[int, Option("number", ge=0, le=100_000)] = 0
    label: Annotated[str | None, Option("a name")] = None
    way: Annotated[Literal["well", "error", "once", "wrong", "exit", "leave", "greed"], Option("how it ends")] = "well"
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

        from workbench.errors import UserError
        from workbench.report.figures import new_figure
        from workbench.results import Result

        config: TrialConfig = context.config
        begun = 1
        if config.notes is not None:
            name = f"{config.n}-{config.label}-{config.way}-{context.seed}"
            with (Path(config.notes) / name).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
            begun = len((Path(config.notes) / name).read_text(encoding="utf-8").splitlines())
        time.sleep(config.seconds)
        if config.way == "error" or (config.way == "once" and begun < 2):
            raise ZeroDivisionError(f"n={config.n} cannot be done")
        if config.way == "wrong":
            raise UserError(f"n={config.n} has too few rows")
        if config.way == "exit":
            os._exit(1)
        if config.way == "leave":
            sys.exit("left")
        if config.way == "greed":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 16)
                time.sleep(0.01)
        value = config.n + context.rng("value").random()
        result = Result()
        tail = f".{config.label}" if config.label else ""
        result.add_metric(f"score{tail}.k1", value, description="number and noise", lo=value - 1, hi=value + 1)
        result.add_table("rows", pd.DataFrame({"n": [config.n], "value": [value]}), description="one row")
        figure, (axes,) = new_figure()
        axes.plot([0, config.n], [0, value])
        result.add_figure("line", figure, description="a line")
        return result


class StoreTrial(Trial):
    """Reads a store."""

    name = "store-trial"
    help = "reads a store"
    needs = Needs(store=True)


@hookimpl
def provide_plugins() -> list[type[Plugin]]:
    """Offer the plugins."""
    return [Trial, StoreTrial]
