"""How long the `sae` plugin's own training loop takes on a store, in units of one float32 product of its encoder.

    python benchmarks/sae_loop.py [--rows 1000000] [--width 768] [--latents 16384] [--k 32] [--dense] [--folder KEPT]

Reading, decoder normalisation, gradient projection, looks at held-out rows and the checkpoint at the end are all in the
time; the auxiliary loss is on, as by default, and costs what the number of dead latents makes it cost. The floor is
``torch.mm(x, W.T, out=...)`` on as many rows as a step has, timed in between every few steps, its time taken out.
`--dense` trains with dense gradients and torch's fused Adam instead, as the plugin does where it must.

The store is made first, of float16 rows that are sparse sums of features, which takes a while; with `--folder` it is
kept, and used again. At base size it has 1.5 GB.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import Others, machine
from store_data import DataSet
from topk_sae_data import SparseSums

from workbench.cache import Store, StoreWriter, open_store
from workbench.kernels.choice import in_use
from workbench.plugins.sae import SaeConfig, TrainConfig
from workbench.plugins.sae.settings import Settings, choose_settings
from workbench.plugins.sae.sites import Site, measured
from workbench.plugins.sae.topk import TopK
from workbench.plugins.sae.trainer import HISTORY, Trainer
from workbench.plugins.sae.training import Training
from workbench.plugins.sae.weights import start
from workbench.progress import progress

HOOK = "blocks.0.hook_resid_post"
BATCH_ROWS = 4096
FLOOR_EVERY = 12  # steps
SAMPLE_ROWS, HELD_OUT_ROWS = 16_384, 2048  # as the plugin takes them


def store_of(folder: Path, rows: int, width: int) -> Store:
    """Open the store in a folder; write it if there is none."""
    data = DataSet(folder, rows, width)
    path = folder / f"acts-{rows}-{width}"
    if not path.exists():
        sums, numbers = SparseSums(width), torch.Generator().manual_seed(1)
        model = {"model": {"address": "none", "fingerprint": "m"}}
        with StoreWriter(path, {HOOK: data.spec}, data.plan(), model) as writer:
            while writer.next_row < rows:
                n = min(BATCH_ROWS, rows - writer.next_row)
                writer.append({HOOK: sums.draw(n, numbers).half().numpy()})
    return open_store(path)


class Watched:
    """A pass over the store, between whose batches the floor is timed, and the waiting for rows.

    Attributes
    ----------
    floors, waits : list of float
        Seconds of each product, and of each wait for a batch.
    """

    def __init__(self, batches: Any, settings: Settings) -> None:
        self.batches = batches
        self.floors: list[float] = []
        self.waits: list[float] = []
        self.x = torch.randn(settings.batch_rows, settings.width)
        self.W = torch.randn(settings.latents, settings.width)
        self.out = torch.empty(settings.batch_rows, settings.latents)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while True:
            if len(self.waits) % FLOOR_EVERY == 0:
                self.time_floor()
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append(time.perf_counter() - begun)
            yield batch

    def time_floor(self) -> None:
        """Take the time of one product."""
        begun = time.perf_counter()
        torch.mm(self.x, self.W.T, out=self.out)
        self.floors.append(time.perf_counter() - begun)

    def state(self) -> Any:
        """See `training.Pass.state`."""
        return self.batches.state()


def make_trainer(store: Store, asked: argparse.Namespace) -> Trainer:
    """Return a training before its first step, as the plugin makes it."""
    rows = store.shuffled([HOOK], batch_rows=BATCH_ROWS, seed=0).n_rows  # special tokens are left out
    train = TrainConfig(rows=rows, batch_rows=BATCH_ROWS)
    settings = choose_settings(SaeConfig(latents=asked.latents, k=asked.k, train=train), asked.width, rows)
    sample = next(iter(store.shuffled([HOOK], batch_rows=SAMPLE_ROWS, seed=1)))
    place = measured(HOOK, sample[HOOK])
    site = Site((place,), (place,))
    x, _ = site.take(sample, torch.device("cpu"))
    weights = start(x, x, settings, torch.Generator().manual_seed(0))
    held_out = {HOOK: sample[HOOK][:HELD_OUT_ROWS]}
    return Trainer(settings, weights, site, float((x - x.mean(0)).pow(2).mean()), held_out)


def main() -> None:
    """Train once, and tell the time of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="a multiple of 250")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dense", action="store_true", help="with dense gradients")
    parser.add_argument("--folder", type=Path, help="where the store is kept")
    parser.add_argument("--prepare", action="store_true", help="make the store, and stop")
    asked = parser.parse_args()
    logging.getLogger("workbench").setLevel(logging.WARNING)
    TopK.factored = not asked.dense
    with nullcontext(asked.folder) if asked.folder else tempfile.TemporaryDirectory(prefix="sae-loop-") as folder:
        store = store_of(Path(folder), asked.rows, asked.width)
        if not asked.prepare:
            measure(store, make_trainer(store, asked), Path(folder))


def measure(store: Store, trainer: Trainer, folder: Path) -> None:
    """Train to the end and print what it took."""
    settings = trainer.settings
    watched = Watched(store.shuffled([HOOK], batch_rows=settings.batch_rows, seed=0), settings)
    watched.time_floor()
    watched.floors.clear()  # the first one touches the memory
    training = Training([trainer], folder / "checkpoint.safetensors")
    with progress(settings.rows, "rows", "training", logging.getLogger("sae_loop")) as ticker:
        others, begun = Others(), time.perf_counter()
        training.run(lambda epoch, state: watched, 1e9, ticker)
        seconds, share = time.perf_counter() - begun - sum(watched.floors), others.share()
    begun = time.perf_counter()
    training.save()
    saving = time.perf_counter() - begun
    training.checkpoint.unlink()
    floor, steps = statistics.median(watched.floors), settings.rows / settings.batch_rows
    optimiser = type(trainer.optimiser).__name__
    print(f"\n{settings.rows:,} rows, width {settings.width}, {settings.latents} latents, k {settings.k}; {optimiser}")
    print(f"  floor, one float32 product         {1e3 * floor:8.1f} ms (median of {len(watched.floors)})")
    print(
        f"  loop, for as many rows             {1e3 * seconds / steps:8.1f} ms {seconds / steps / floor:6.2f} x floor"
    )
    print(f"    of which waiting for rows        {1e3 * sum(watched.waits) / steps:8.1f} ms")
    print(f"    of which a checkpoint at the end {1e3 * saving / steps:8.1f} ms ({saving:.1f} s)")
    dead = trainer.history[:, HISTORY.index("dead")]
    print(f"  explained variance {trainer.checks[-1][1]:.3f}; dead latents {int(dead.max())} at most")
    print(f"  other processes took {share:.0%} of the cores")
    print(f"\n{machine()}; {torch.get_num_threads()} threads; torch {torch.__version__}; {in_use()['topk_encode']}")


if __name__ == "__main__":
    main()
