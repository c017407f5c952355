"""What a capture adds to the forward passes that it needs, beside SAELens's runner, on the same batches in one process.

    python benchmarks/capture.py [gpt2] [pycode] [saelens] [memory] [--rounds 7] [--tokens N] [--folder DIR]

`gpt2` is a checkpoint of GPT-2 small's size with random weights, made here; `pycode` the zoo's. Three hook points at
once. A capture is measured whole: from an empty folder to a finished store on the disk, its batches made, its rows
rounded, checked, written and synced; planning and labels are timed apart. The passes it is held against run the same
batches, made before, and keep nothing: once as far as the last hook point, once to the logits. On a busy machine these
times say little: what each step uses of the processors is told too. `memory` captures for longer and shows the
process's size on the way. Needs 3 GB on the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import capture_peer
import capture_steps
import torch
from measuring import Others, all_turns, machine

from workbench.cache import StoreWriter, open_store
from workbench.capture_passes import forward, make_batch
from workbench.capture_plan import Plan, Planner
from workbench.capture_rows import activation_spec
from workbench.capturing import capture
from workbench.datasets.loading import load_dataset
from workbench.datasets.protocol import Dataset
from workbench.subjects.protocol import Batch, Subject
from workbench.subjects.sources import load_subject

CONTEXT = 256
STOP, FULL = "passes to the last hook point", "passes to the logits"


@dataclass
class Case:
    """A subject, what is captured of it, and the batches.

    Attributes
    ----------
    name : str
        Of the subject, as it is printed.
    subject, dataset, plan : Subject, Dataset, Plan
        What a capture is made of.
    hooks : list of str
        Three hook points, in forward order.
    batch_size : int
        Sequences.
    plain : function
        From token ids to the values at the hook points, by PyTorch's own hooks.
    batches, selected : lists
        Of all that is captured; which positions of each batch are rows, bool [batch, pos].
    """

    name: str
    subject: Subject
    dataset: Dataset
    plan: Plan
    hooks: list[str]
    batch_size: int
    plain: Callable[[torch.Tensor], list[torch.Tensor]]
    batches: list[Batch] = field(default_factory=list)
    selected: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        examples = self.plan.examples
        for sequences in self.plan.batches(self.batch_size, 0):
            self.batches.append(make_batch(self.subject, self.dataset, self.plan, sequences))
            is_row = torch.zeros(self.batches[-1].mask.shape, dtype=torch.bool)
            for row, sequence in zip(is_row, sequences, strict=True):
                row[examples.positions_of(sequence)] = True
            self.selected.append(is_row)

    @property
    def n_rows(self) -> int:
        """Rows, one for each token."""
        return self.plan.examples.n_rows

    def passes(self, stop_after: str | None) -> None:
        """Run every batch and keep nothing."""
        for batch in self.batches:
            self.subject.run(batch, stop_after=stop_after)

    def capture(self, out: Path, dtype: str) -> None:
        """Run every batch into a finished store."""
        points = [self.subject.hook_points[name] for name in self.hooks]
        specs = {point.name: activation_spec(point, self.subject, CONTEXT, dtype) for point in points}
        with StoreWriter(out, specs, self.plan.examples, {}) as writer:
            forward(self.subject, self.dataset, self.plan, specs, writer, self.batch_size)


def hooked(blocks: list[torch.nn.Module], run: Callable[[torch.Tensor], object]) -> Callable:
    """Return a function from token ids to the output of some modules, by PyTorch's own hooks."""

    def outputs(tokens: torch.Tensor) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def note(module: torch.nn.Module, given: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            seen.append(out if isinstance(out, torch.Tensor) else out[0])

        handles = [block.register_forward_hook(note) for block in blocks]
        try:
            with torch.no_grad():
                run(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    return outputs


def gpt2(folder: Path, n_tokens: int) -> Case:
    """GPT-2 small's size, random weights, in Hugging Face's layout."""
    from transformers import AutoModelForCausalLM

    model = capture_peer.make_checkpoint(folder)
    subject, dataset = load_subject(f"hf:{model}", device="cpu"), load_dataset("python-stdlib")
    library = AutoModelForCausalLM.from_pretrained(model).eval()
    layers = (3, 7, 11)
    plain = hooked([library.transformer.h[i] for i in layers], lambda tokens: library(tokens, use_cache=False))
    plan = Planner(subject, dataset, context_length=CONTEXT).plan(n_tokens)
    hooks = [f"blocks.{i}.hook_resid_post" for i in layers]
    return Case("GPT-2 small's size, 12 layers of 768, random weights", subject, dataset, plan, hooks, 4, plain)


def pycode(folder: Path, n_tokens: int) -> Case:
    """The zoo's model of Python source."""
    subject, dataset = load_subject("zoo:pycode", device="cpu"), load_dataset("python-stdlib")
    layers = (1, 2, 3)
    network = subject.network
    plain = hooked(
        [network.stack.blocks[i] for i in layers], lambda tokens: subject.run(subject.batch(tokens.tolist()))
    )
    plan = Planner(subject, dataset, context_length=CONTEXT).plan(n_tokens)
    hooks = [f"blocks.{i}.hook_resid_post" for i in layers]
    return Case("zoo:pycode, 4 layers of 256", subject, dataset, plan, hooks, 32, plain)


CASES = {"gpt2": (gpt2, 6_000), "pycode": (pycode, 40_000)}


def check_equal(case: Case, folder: Path, dtype: str) -> None:
    """The captured rows are those of plain hooked passes over the same batches, rounded, bit for bit."""
    case.capture(folder / "checked", dtype)
    store = open_store(folder / "checked")
    assert store.verify() == []
    at = 0
    for batch, is_row in zip(case.batches, case.selected, strict=True):
        for name, want in zip(case.hooks, case.plain(batch.inputs), strict=True):
            rows = want[is_row].to(getattr(torch, dtype))
            if not torch.equal(store.read_tensor(name, slice(at, at + len(rows))), rows):
                raise SystemExit(f"{name}: rows {at} to {at + len(rows) - 1} are not those of a plain pass")
        at += int(is_row.sum())
    assert at == case.n_rows
    shutil.rmtree(folder / "checked")


def overhead(case: Case, folder: Path, rounds: int) -> None:
    """Print what captures cost beside the passes alone."""
    dtypes = ("float32", "float16")
    for dtype in dtypes:
        check_equal(case, folder, dtype)
    size = case.n_rows * len(case.hooks) * case.subject.d_model * 4 / 1e6
    print(
        f"\n{case.name}: {case.n_rows:,} tokens in {len(case.batches)} batches, {len(case.hooks)} hook points, ", end=""
    )
    print(f"{size:.0f} MB as float32; equal to plain hooked passes, bit for bit")
    out = folder / "acts"
    ways: dict[str, Callable[[], object]] = {
        STOP: partial(case.passes, case.hooks[-1]),
        FULL: partial(case.passes, None),
        **{f"captured as {dtype}": partial(case.capture, out, dtype) for dtype in dtypes},
    }

    def before(name: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()

    others = Others()
    seconds = all_turns(ways, rounds, before=before)
    print(f"  other processes took {others.share():.0%} of the cores")
    for name, found in seconds.items():
        beside = {
            other: [mine / its for mine, its in zip(found, seconds[other], strict=True)] for other in (STOP, FULL)
        }
        told = "; ".join(f"{statistics.median(ratios):.3f} x {other}" for other, ratios in beside.items())
        print(f"  {name:<32} {case.n_rows / statistics.median(found):8,.0f} tokens/s  {told}")
    print("  (medians of the ratios of each round)")
    for dtype in dtypes:
        before("steps")
        print(f"  captured as {dtype}, once more, by steps")
        capture_steps.run(case.subject, ways[f"captured as {dtype}"])


def whole_command(case: Case, folder: Path) -> None:
    """Print what else the command does, once."""
    out = folder / "whole"
    start = time.perf_counter()
    capture(case.subject, data=case.dataset, hooks=case.hooks, out=out, rows=case.n_rows, batch_size=case.batch_size)
    whole = time.perf_counter() - start
    shutil.rmtree(out)
    print(f"  the whole command, planning and labels too: {whole:.1f} s")


def memory(folder: Path, n_tokens: int) -> None:
    """Print the size of the process at points of a long capture."""
    case = pycode(folder, n_tokens)
    sizes: list[tuple[int, float]] = []
    run = case.subject.run

    def sized(batch, **options):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append((len(sizes), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
        return run(batch, **options)

    case.subject.run = sized
    case.capture(folder / "long", "float16")
    n = len(sizes)
    points = [round(share * (n - 1) / 10) for share in range(1, 11)]
    told = ", ".join(f"{sizes[i][1]:.0f}" for i in points)
    print(f"\nmemory over {case.n_rows:,} tokens ({n} batches), MiB at each tenth: {told}")


def main() -> None:
    """Run the parts asked for, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="gpt2, pycode, saelens, memory; by default all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, help="in a capture; by default 6000 of gpt2, 40000 of pycode")
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's temporary folder")
    asked = parser.parse_args()
    known = [*CASES, "saelens", "memory"]
    if unknown := set(asked.parts) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="capture-benchmark-", dir=asked.folder) as name:
        folder = Path(name)
        for part in asked.parts or known:
            if part in CASES:
                make, n_tokens = CASES[part]
                case = make(folder, asked.tokens or n_tokens)
                overhead(case, folder, asked.rounds)
                whole_command(case, folder)
            elif part == "saelens":
                capture_peer.run(folder, asked.tokens or 6_000, asked.rounds)
            else:
                memory(folder, asked.tokens or 600_000)
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
