"""What must hold of runs that are stopped: continued by the same command, they end with the same numbers.

Another process forks a child for each stop: it has imported what plugins need, so that a child costs what it computes.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from workbench import configuration
from workbench.runs import load_run, part_of
from workbench.testing.comparing import differences
from workbench.testing.running import Finished, told
from workbench.testing.stopping import Stop, Stopped
from workbench.testing.wrong_input import WrongInputChecks

FEWEST_STEPS = 2


@dataclass(frozen=True)
class Story:
    """What became of a run that was stopped again and again.

    Attributes
    ----------
    stops : list of Stopped
        One for each process, the last of which came to the end.
    folder : Path
        Of the run.
    """

    stops: list[Stopped]
    folder: Path


@functools.cache
def stopper() -> subprocess.Popen[str]:
    """Start the process that runs and stops commands: one for all plugins, for its imports take seconds."""
    words = [sys.executable, "-m", "workbench.testing.stopping"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # it ends where its input does
    return process


def follow(job: dict[str, Any]) -> list[Stopped]:
    """Have a command run, stopped and continued."""
    process = stopper()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process that stops others ended with {process.wait()}"
    return [Stopped(**stopped) for stopped in json.loads(answer)]


class InterruptedChecks(WrongInputChecks):
    """Checks of interrupted runs."""

    @classmethod
    def stops(cls, steps: int) -> list[Stop]:
        """Return where a run of so many steps is stopped, in turn; override it to stop elsewhere."""
        return [
            Stop("step", 1, signal.SIGINT),
            Stop("work", 1, signal.SIGKILL),
            Stop("step", max(1, (3 * steps) // 4), signal.SIGKILL),
            Stop("manifest", 1, signal.SIGKILL),
        ]

    @pytest.fixture(scope="class")
    @classmethod
    def story(cls, inputs: dict[str, str], finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Story:
        """Stop a run several times, each time by the same command, until it comes to its end."""
        if not hasattr(os, "fork"):
            pytest.skip("processes are stopped in the midst of their work by fork and signals, which this system lacks")
        import torch

        folder = tmp_path_factory.mktemp("conformance")
        asked = {"plugin": cls.name(), "seed": 0, "device": "cpu", **inputs, "set": cls.options}
        (folder / "run.yaml").write_text(configuration.write_yaml(asked), encoding="utf-8")
        own = cls.registered().__module__
        job = {
            "words": ["run", "--config", str(folder / "run.yaml"), "--out", str(folder / "run")],
            "work": str(part_of(folder / "run") / "work"),
            "manifest": str(part_of(folder / "run") / "manifest.json"),
            "stops": [asdict(stop) for stop in cls.stops(finished.steps)],
            "path": sys.path,
            "threads": torch.get_num_threads(),
            "imports": [name for name in sys.modules if name == own or name.startswith(own + ".")],
        }
        return Story(follow(job), folder / "run")

    def test_it_shows_its_progress(self, finished: Finished) -> None:
        """The quick run has steps, between which it can be stopped and after which time left is shown."""
        assert finished.steps >= FEWEST_STEPS, (
            f"progress advanced {finished.steps} times: use context.progress(total, unit, description), and give "
            "quick options with which it has several steps"
        )

    def test_ctrl_c_ends_with_code_130(self, story: Story) -> None:
        """A run that a person stops says that the same command continues it."""
        first = story.stops[0]
        why = f"let KeyboardInterrupt through; a run stopped by Ctrl-C ended with exit code {first.code}:\n{first.said}"
        assert first.code == 130, why
        assert "the same command continues" in first.said, why
        assert "Traceback" not in first.said, why

    def test_what_is_done_is_kept(self, story: Story) -> None:
        """Where a run is killed after most of its steps, `context.work` holds what it did."""
        last_step = [stopped for stopped in story.stops if stopped.event == "step"][-1]
        kept = last_step.work or last_step.code == 0
        assert kept, (
            "killed after three quarters of its steps, the run had left nothing in context.work: write there what each "
            "step gave, and look there first"
        )

    def test_stopped_and_continued_it_gives_the_same_numbers(self, story: Story, finished: Finished) -> None:
        """Stopped while it keeps its work, in the midst and at the end, it goes on as if it had not been."""
        last = story.stops[-1]
        assert last.code == 0, (
            "stopped and continued, it failed: write each file in context.work under another name and rename it, so "
            f"that it is there whole or not at all. Exit code {last.code}:\n{last.said}"
        )
        other = differences(load_run(story.folder).result, finished.run.result, self.varies, drawings=False)
        assert not other, (
            "stopped and continued, it gave another result: draw the numbers of each step from a generator of its own, "
            f"context.rng(f'step {{n}}'), or keep the generator's state with what the step gave: {told(other)}"
        )
        assert load_run(story.folder).identity == finished.run.identity

    def test_stopped_runs_leave_nothing_behind(self, story: Story) -> None:
        """Beside the run folder there is nothing, and in it no work; nothing that is taken up again is a pickle."""
        left = sorted(path.name for path in story.folder.parent.iterdir())
        assert left == ["run", "run.yaml"], f"beside the run folder there is more than was given: {left}"
        assert not (story.folder / "work").exists()
        pickled = [name for stopped in story.stops for name in stopped.pickles]
        assert not pickled, f"{pickled[0]} holds a pickle: keep JSON, Parquet, HDF5 or safetensors in context.work"
