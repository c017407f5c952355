"""How close the store's shuffle is to a uniform one: what lies beside what, and what it does to a dictionary.

    python benchmarks/shuffle.py [--rows 200000] [--seeds 5] [--epochs 2] [--store DIR]

Captures `zoo:pycode` once (or takes a store of it), then goes through it in four orders: a uniform permutation of all
rows in memory, the store's shuffle with a buffer for several windows and with one for a few chunks, and the rows' own
order. TopK dictionaries are trained on each from the same start, on the same rows, for the same number of steps; a
seed decides start and order. The rows' own order is the control: it must come out worse.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import machine
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import t

import workbench as wb
from workbench.cache import Store, open_store
from workbench.plugins.sae import SaeConfig, TrainConfig
from workbench.plugins.sae.settings import Settings, choose_settings
from workbench.plugins.sae.sites import Site, measured
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.weights import start

HOOK_POINT = "blocks.2.hook_resid_post"
BATCH_ROWS, LATENTS, K = 1024, 1024, 16
SAMPLE_ROWS = 16_384
UNIFORM, OWN_ORDER = "uniform, in memory", "the rows' own order"

Mask = NDArray[np.bool_]
Order = Callable[[int, int], "Iterator[tuple[NDArray[np.int64], torch.Tensor]]"]
"""From seed and epoch to (row numbers, rows) of each batch."""


def held_out(store: Store) -> Mask:
    """Return which rows belong to documents that the dataset holds out."""
    flags = np.array([bool(fields.get("held_out")) for fields in store.document_fields])
    found: Mask = flags[store.origins["document"]]
    return found


def uniform(x: torch.Tensor, rows: NDArray[np.int64], seed: int, epoch: int) -> Iterator:
    """Give rows that are in memory by a permutation of them all."""
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))
    for first in range(0, len(order), BATCH_ROWS):
        batch = order[first : first + BATCH_ROWS]
        yield rows[batch], x[batch]


def in_order(x: torch.Tensor, rows: NDArray[np.int64], seed: int, epoch: int) -> Iterator:
    """Give them one after another."""
    for first in range(0, len(rows), BATCH_ROWS):
        yield rows[first : first + BATCH_ROWS], x[first : first + BATCH_ROWS]


def shuffled(store: Store, train: Mask, buffer_bytes: int, seed: int, epoch: int) -> Iterator:
    """Give them as the store shuffles them."""
    passing = store.shuffled(
        HOOK_POINT, batch_rows=BATCH_ROWS, seed=seed, epoch=epoch, rows=train, buffer_bytes=buffer_bytes
    )
    for batch in passing:
        yield passing.rows, batch


def together(groups: NDArray[np.int64]) -> float:
    """Return how often two rows of a batch are of one group: the mean over all pairs."""
    sizes = np.unique(groups, return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / (len(groups) * (len(groups) - 1)))


def largest(groups: NDArray[np.int64]) -> float:
    """Return the share of a batch that its most frequent group has."""
    return float(np.unique(groups, return_counts=True)[1].max() / len(groups))


def print_order(name: str, order: Order, store: Store, rows: NDArray[np.int64], chunk_rows: int) -> None:
    """Check that an epoch gives each row once, and print what lies beside what in it."""
    batches = [numbers for numbers, _ in order(0, 0)]
    given = np.concatenate(batches)
    if not np.array_equal(np.sort(given), rows):
        raise SystemExit(f"{name}: an epoch does not give every row once")
    ranks = np.searchsorted(rows, given).astype(np.float64)
    correlation = np.corrcoef(ranks[:-1], ranks[1:])[0, 1]  # of ranks, so Spearman's
    documents, whole = store.origins["document"], [batch for batch in batches if len(batch) == BATCH_ROWS]
    by_chunk, by_document = (
        [of(batch) for batch in whole] for of in (lambda b: b // chunk_rows, documents.__getitem__)
    )
    print(
        f"  {name:<34} {correlation:12.4f} {np.mean([largest(b) for b in by_chunk]):14.3f} "
        f"{np.mean([together(b) for b in by_chunk]):14.4f} {np.mean([largest(b) for b in by_document]):14.3f} "
        f"{np.mean([together(b) for b in by_document]):14.4f}"
    )


def train(order: Order, settings: Settings, sample: torch.Tensor, check: torch.Tensor, seed: int) -> float:
    """Train a dictionary on an order, and return the share of held-out variance that it leaves unexplained."""
    place = measured(HOOK_POINT, sample)
    site = Site((place,), (place,))
    x, _ = site.take({HOOK_POINT: sample}, torch.device("cpu"))
    variance = float((x - x.mean(0)).pow(2).mean())
    weights = start(x, x, settings, torch.Generator().manual_seed(seed))
    trainer = Trainer(settings, weights, site, variance, {HOOK_POINT: check})
    epoch = 0
    while trainer.rows_done < settings.rows:
        for _, batch in order(seed, epoch):
            trainer.one_step({HOOK_POINT: batch})
        epoch += 1
    assert trainer.step == settings.n_steps
    return 1 - trainer.explained_variance()


def print_losses(losses: dict[str, list[float]]) -> None:
    """Print each order's losses, and their differences from the uniform order's with 95 % intervals, seed by seed."""
    print(f"\n  {'order':<34} {'loss':>10} {'more than uniform':>18} {'95 % interval':>24} {'of the loss':>12}")
    for name, found in losses.items():
        more = [mine - other for mine, other in zip(found, losses[UNIFORM], strict=True)]
        mean, loss = statistics.mean(more), statistics.mean(found)
        line = f"  {name:<34} {loss:10.5f}"
        if name != UNIFORM:
            half = statistics.stdev(more) / math.sqrt(len(more)) * t.ppf(0.975, len(more) - 1)
            line += f" {mean:18.5f} {f'{mean - half:+.5f} to {mean + half:+.5f}':>24} {mean / loss:12.2%}"
        print(line)


def main() -> None:
    """Capture, look at the orders, train on each, and tell the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--store", type=Path, help=f"where the capture is, or is put; it has {HOOK_POINT}")
    asked = parser.parse_args()
    if asked.seeds < 2 or asked.epochs < 1 or asked.rows < 10 * SAMPLE_ROWS:
        parser.error(f"--seeds must be at least 2, --epochs at least 1, --rows at least {10 * SAMPLE_ROWS}")
    with tempfile.TemporaryDirectory(prefix="shuffle-benchmark-") as folder:
        out = asked.store or Path(folder) / "acts"
        wb.capture(
            "zoo:pycode", data="python-stdlib", hooks=HOOK_POINT, out=out, rows=asked.rows, store_dtype="float16"
        )
        compare(open_store(out), asked.seeds, asked.epochs)
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")


def compare(store: Store, n_seeds: int, epochs: int) -> None:
    """Print what each order is, and what it does."""
    out = held_out(store)
    rows, chunk_rows = np.flatnonzero(~out & store.ordinary), store.manifest["chunk_rows"]
    x = store.read_tensor(HOOK_POINT, rows)
    check = store.read_tensor(HOOK_POINT, np.random.default_rng(0).permutation(np.flatnonzero(out))[:SAMPLE_ROWS])
    sample = x[torch.from_numpy(np.random.default_rng(1).permutation(len(rows))[:SAMPLE_ROWS])]
    n_chunks = -(-store.n_rows // chunk_rows)
    chunk_bytes = chunk_rows * (16 + 2 * x.shape[1])  # as the loader counts: values, number and place of a row
    orders: dict[str, Order] = {UNIFORM: partial(uniform, x, rows)}
    for windows in (4, 12):
        per_window = -(-n_chunks // windows)
        orders[f"the store's, {windows} windows of {per_window} chunks"] = partial(
            shuffled, store, ~out, 2 * per_window * chunk_bytes
        )
    orders[OWN_ORDER] = partial(in_order, x, rows)
    print(f"{len(rows):,} rows of {x.shape[1]} float16 in {n_chunks} chunks of {chunk_rows}; batches of {BATCH_ROWS}\n")
    titles = (
        f"{'neighbours':>12}",
        *(f"{title:>14}" for title in ("one chunk", "two of a chunk", "one document", "two of one")),
    )
    print(f"  {'':<34} {' '.join(titles)}")
    for name, order in orders.items():
        print_order(name, order, store, rows, chunk_rows)
    print("  (rank correlation of neighbours; share of a batch of its commonest chunk and document; pairs of a batch)")
    config = SaeConfig(latents=LATENTS, k=K, train=TrainConfig(rows=epochs * len(rows), batch_rows=BATCH_ROWS))
    settings = choose_settings(config, x.shape[1], len(rows))
    losses: dict[str, list[float]] = {name: [] for name in orders}
    trainings = [(seed, name) for seed in range(n_seeds) for name in orders]
    for seed, name in track(trainings, "Training"):
        losses[name].append(train(orders[name], settings, sample, check, seed))
    print(f"\n{LATENTS} latents, k={K}, {settings.n_steps} steps, {n_seeds} seeds; loss: held-out variance unexplained")
    print_losses(losses)


if __name__ == "__main__":
    main()
