"""Plugins with a fault each, and one without: what the conformance suite must tell apart."""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from typing import Annotated

from workbench.errors import UserError
from workbench.hookspecs import hookimpl
from workbench.plugin import Option, Plugin
from workbench.results import Result

STEPS = 4


@dataclass(frozen=True)
class Config:
    """Options of all of them."""

    k: Annotated[int, Option("how many", unit="things", ge=1, le=9)] = 2
    label: Annotated[str | tuple[str, ...] | None, Option("which one")] = None


class Sound(Plugin):
    """Counts, and keeps what it counted."""

    name = "sound"
    help = "what does a sound plugin look like?"
    Config = Config
    counter = itertools.count()

    def run(self, context):
        if context.config.label is not None:
            raise UserError(f"label={context.config.label}: there are no labels")
        done = self.taken_up(context)
        with context.progress(STEPS, "steps", self.name, done=len(done)) as ticker:
            while len(done) < STEPS:
                done.append(float(context.rng(f"step {len(done)}").random()))
                self.keep(context, done)
                ticker.advance()
        return self.result(context, done)

    def taken_up(self, context):
        kept = context.work / "done.json"
        return json.loads(kept.read_text()) if kept.is_file() else []

    def keep(self, context, done):
        part = context.work / "done.part"
        part.write_text(json.dumps(done))
        part.replace(context.work / "done.json")

    def result(self, context, done):
        import pandas as pd

        result = Result()
        result.add_metric("mean", sum(done) / STEPS, description="mean of the steps")
        result.add_table("steps", pd.DataFrame({"step": range(STEPS), "value": done}), description="every step")
        return result


class TornWork(Sound):
    """Writes what it keeps in place: killed in the midst, it cannot read it again."""

    name = "torn-work"

    def keep(self, context, done):
        (context.work / "done.json").write_text(json.dumps(done))


class NoWork(Sound):
    """Keeps nothing."""

    name = "no-work"

    def keep(self, context, done):
        pass


class OtherNumbers(Sound):
    """Draws anew for what was done already."""

    name = "other-numbers"

    def taken_up(self, context):
        return [each / 2 for each in super().taken_up(context)]


class Unseeded(Sound):
    """Gives other numbers each time."""

    name = "unseeded"

    def result(self, context, done):
        return super().result(context, [each + next(self.counter) for each in done])


class Undescribed(Sound):
    """Says nothing about a number."""

    name = "undescribed"

    def result(self, context, done):
        result = super().result(context, done)
        result.add_metric("bare", 1, description=" ")
        return result


class OfThisMachine(Sound):
    """Has a folder of the machine in its result."""

    name = "of-this-machine"

    def result(self, context, done):
        result = super().result(context, done)
        result.add_section("where", "text", f"computed in {context.work}", "where")
        return result


class Strange(Sound):
    """Has a section that no report can show."""

    name = "strange"

    def result(self, context, done):
        result = super().result(context, done)
        result.add_section("where", "maps", {"x": 1}, "a map")
        return result


class Careless(Sound):
    """Takes any label."""

    name = "careless"

    def run(self, context):
        context.config = dataclasses.replace(context.config, label=None)
        return super().run(context)


class Raw(Sound):
    """Answers wrong input with a traceback."""

    name = "raw"

    def run(self, context):
        assert context.config.label is None
        return super().run(context)


class Silent(Sound):
    """Shows no progress."""

    name = "silent"

    def run(self, context):
        done = [float(context.rng(f"step {step}").random()) for step in range(STEPS)]
        return self.result(context, done)


class Rounding(Sound):
    """Reads its options otherwise than they are written."""

    name = "rounding"

    @dataclass(frozen=True)
    class Config:
        k: Annotated[int, Option("how many", ge=1)] = 2
        share: Annotated[float, Option("how much", ge=0, le=1)] = 0.5

        def __post_init__(self):
            object.__setattr__(self, "share", self.share / 2)


class Thawed(Sound):
    """Has a configuration that can be changed."""

    name = "thawed"

    @dataclass
    class Config:
        k: Annotated[int, Option("how many", ge=1)] = 2


class Unbounded(Sound):
    """Has a default that its own range refuses."""

    name = "unbounded"

    @dataclass(frozen=True)
    class Config:
        k: Annotated[int, Option("how many", ge=1)] = 0


class Boundless(Sound):
    """Has a number that may be anything."""

    name = "boundless"

    @dataclass(frozen=True)
    class Config:
        k: Annotated[int, Option("how many")] = 2
        shares: Annotated[tuple[float, ...] | None, Option("how much of each", ge=0)] = None


class Demanding(Sound):
    """Has an option that must be given."""

    name = "demanding"

    @dataclass(frozen=True)
    class Config:
        k: Annotated[int, Option("how many", ge=1)]


class Wordy(Sound):
    """Has two lines of help."""

    name = "wordy"
    help = "one line\nand another"


ALL = [each for each in globals().values() if isinstance(each, type) and issubclass(each, Sound)]


@hookimpl
def provide_plugins():
    """Offer all of them."""
    return ALL
