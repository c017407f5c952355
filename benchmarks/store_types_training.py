"""What rounding costs a sparse autoencoder: the same training on the same rows, stored in each type.

Order of the rows, start and number of steps are the same for every type; what is measured is always float32 rows of
documents that were held out. So the difference to float32 at equal seed is what rounding did, and what a training makes
of any small change: `moved` shows how much that is. Two controls with too coarse a scale must lose.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from store_types_data import Form, Kind, captured, write_as

import workbench as wb
from workbench.cache import Store
from workbench.dictionary import Dictionary

BASE = "float32"
WAYS = {
    BASE: Form("float32"),
    "float32, last bit moved": Form("float32", moved=True),
    "float16": Form("float16"),
    "bfloat16": Form("bfloat16"),
    "int8": Form("int8"),
    "int8, one factor": Form("int8", per_channel=False),
    "control: 4 bits": Form("int8", coarser=16),
    "control: 2 bits": Form("int8", coarser=64),
}
PLAIN_RUN = {"pages.latents": 0, "evaluate.splice_tokens": 0, "evaluate.labels": 0, "evaluate.draws": 10}
BATCH_ROWS = 256


def run(kind: Kind, folder: Path, n_rows: int, *, training_rows: int, latents: int, seeds: int) -> None:
    """Train on every form with every seed and print what each loses against float32 at equal seed."""
    store, hook = captured(kind, folder, n_rows), kind.hook_point
    held_out = np.array([bool(fields.get("held_out")) for fields in store.document_fields])[store.origins["document"]]
    truth = store.read_tensor(hook, held_out & store.ordinary)
    folder = folder / f"{store.folder.name}-trained"
    print(f"\n{kind}: {len(store.origins):,} rows, {len(truth):,} of documents held out; {training_rows:,} rows shown")
    print(f"to TopK autoencoders with {latents} latents, k 32; {seeds} seeds; lost: mean over seeds and 95 % interval")
    print(f"  {'stored as':<26}{'explained':>11}{'lost':>31}{'of a channel':>15}{'lost':>31}")
    found: dict[str, NDArray[np.float64]] = {}
    for name, form in WAYS.items():
        stored = write_as(store, folder / name.replace(": ", "-").replace(", ", "-").replace(" ", "-"), form)
        assert np.array_equal(order(stored, hook), order(store, hook)), f"{name}: rows come in another order"
        quality = []
        for seed in range(seeds):
            options = {"hook_point": hook, "latents": latents, "k": 32, "train.rows": training_rows} | PLAIN_RUN
            options["train.batch_rows"] = BATCH_ROWS
            result = wb.run("sae", store=stored, out=folder / f"{stored.folder.name}-{seed}", seed=seed, set=options)
            quality.append(explained(wb.load_dictionary(result.folder), truth))
        found[name] = np.array(quality)
        (all_, of_all), (channels, of_channels) = (told(found[name][:, i], found[BASE][:, i]) for i in (0, 1))
        print(f"  {name:<26}{all_:>11}{of_all:>31}{channels:>15}{of_channels:>31}", flush=True)
    for name in WAYS:
        if name.startswith("control") and interval(found[name][:, 1], found[BASE][:, 1])[0] <= 0:
            print(f"  {name} has not lost: nothing can be concluded from this table")


def order(store: Store, hook_point: str) -> NDArray[np.int64]:
    """Return the numbers of the rows of an epoch in the order in which a training has them."""
    batches = store.shuffled(hook_point, batch_rows=BATCH_ROWS, seed=0)
    return np.concatenate([batches.rows.copy() for _ in batches])


def interval(values: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return low end, mean and high end of what was lost: paired by seed, Student's t, 95 %."""
    lost, n = base - values, len(values)
    half = float(stats.t.ppf(0.975, n - 1) * lost.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return lost.mean() - half, float(lost.mean()), lost.mean() + half


def told(values: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[str, str]:
    """Write the mean and what was lost."""
    low, mean, high = interval(values, base)
    return f"{values.mean():.5f}", f"{mean:+.5f} ({low:+.5f}, {high:+.5f})"


@torch.no_grad()
def explained(dictionary: Dictionary, x: torch.Tensor) -> tuple[float, float]:
    """Return the explained share of all variance, and the mean over channels of the share of each channel's.

    The second counts small channels as much as those that have most of the variance.
    """
    error = torch.zeros(x.shape[1], dtype=torch.float64)
    for rows in x.split(4096):
        error += (rows - dictionary.reconstruct(rows)).double().pow(2).sum(0)
    variation = (x.double() - x.double().mean(0)).pow(2).sum(0)
    return float(1 - error.sum() / variation.sum()), float((1 - error / variation).mean())
