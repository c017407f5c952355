"""Metrics and tables of a run of `sae`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.plugins.sae.activity import DENSE, Activity, Densities
from workbench.plugins.sae.figures import explained_curve, loss_curves, thinned
from workbench.plugins.sae.latents import Around
from workbench.plugins.sae.metrics import Reconstruction
from workbench.plugins.sae.splicing import Spliced
from workbench.plugins.sae.split import Split
from workbench.plugins.sae.trainer import HISTORY, Trainer
from workbench.probes.statistics import Interval
from workbench.results import Result

SHOWN = {
    "explained_variance": "share of the held-out rows' variance that the reconstruction keeps",
    "mse": "mean squared error of an entry, in the subject's own scale",
    "cosine": "mean cosine between a held-out row and its reconstruction",
    "l0": "mean number of active latents on a held-out row",
}
OVER_DOCUMENTS = "95 % interval over documents"
NAMES = {
    "dictionary": "this dictionary",
    "random": "random dictionary",
    "mean": "mean of the training rows",
    "zero": "zeros",
}


def add_quality(
    result: Result,
    quality: dict[str, dict[str, Interval]],
    spliced: Spliced | None,
    found: Reconstruction,
    split: Split,
) -> None:
    """Add how good the dictionary is, and a table with the controls beside it."""
    for name, description in SHOWN.items():
        add(result, name, quality["dictionary"][name], description, unit="latents" if name == "l0" else "")
    if spliced is not None:
        add_losses(result, spliced)
    result.add_metric(
        "held_out_documents",
        len(found.n_rows),
        unit="documents",
        description=f"documents that the numbers above come from, {found.n_rows.sum():.0f} rows: {split.how}",
    )
    rows = {NAMES[way]: {name: interval.value for name, interval in row.items()} for way, row in quality.items()}
    columns = ["explained_variance", "mse", "cosine", "l0"]
    units = {"l0": "latents"}
    if spliced is not None:
        for way, recovered in spliced.recovered.items():
            row = rows.setdefault(NAMES[way], {})
            row |= {"loss": spliced.loss[way].value, "loss_recovered": recovered.value}
            if way in spliced.divergence:
                row["divergence"] = spliced.divergence[way].value
        rows["subject as it is"] = {"loss": spliced.loss["clean"].value, "loss_recovered": 1.0}
        columns += ["loss", "loss_recovered", *(["divergence"] if spliced.divergence else [])]
        units |= {"loss": loss_unit(spliced), "divergence": "nats"} if spliced.divergence else {}
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    result.add_table(
        "comparison",
        frame.rename_axis("in place of the activation").reset_index(),
        description="The dictionary beside its controls, on the same held-out rows: random directions of the same "
        "shape and k, the mean, zeros. A dictionary that is not far above the random one has learned nothing.",
        units={name: unit for name, unit in units.items() if name in columns},
    )


def add_losses(result: Result, spliced: Spliced) -> None:
    """Add the subject's losses under each condition."""
    what = (
        "next-token cross-entropy"
        if spliced.measure == "cross-entropy"
        else "squared distance of the output from itself"
    )
    scope = f"{spliced.n_predictions:,} predictions in {spliced.n_documents} held-out documents"
    conditions = {
        "clean": "as the subject is",
        "dictionary": "with the reconstruction spliced in",
        "random": "with a random dictionary's reconstruction",
        "mean": "with the training mean",
        "zero": "with zeros",
    }
    for name, how in conditions.items():
        add(result, f"loss_{name}", spliced.loss[name], f"{what} {how}; {scope}", unit=loss_unit(spliced))
    share = "share of the loss under zero-ablation that is saved: 1 as the clean subject, 0 as with zeros"
    add(result, "loss_recovered", spliced.recovered["dictionary"], f"{share}; this dictionary")
    add(result, "loss_recovered_random", spliced.recovered["random"], f"{share}; random dictionary, the control")
    add(result, "loss_recovered_mean", spliced.recovered["mean"], f"{share}; mean-ablation")
    if spliced.divergence:
        description = "Kullback–Leibler divergence of the next-token distribution from the clean one"
        add(result, "divergence", spliced.divergence["dictionary"], description, unit="nats")


def loss_unit(spliced: Spliced) -> str:
    """Return the unit of a loss."""
    return "nats" if spliced.measure == "cross-entropy" else ""


def add(result: Result, name: str, interval: Interval, description: str, unit: str = "") -> None:
    """Add a metric with its interval over documents, where there is one."""
    ends: dict[str, Any] = (
        {"lo": interval.lo, "hi": interval.hi} if np.isfinite([interval.lo, interval.hi]).all() else {}
    )
    result.add_metric(name, interval.value, unit=unit, description=f"{description}; {OVER_DOCUMENTS}", **ends)


def add_latents(result: Result, active: Activity, around: Around, trainer: Trainer | None, spread: Densities) -> None:
    """Add a table with a row per latent, and counts of dead, silent and dense ones; dead ones only after a training."""
    density, n = active.density, len(active.density)
    dead = None
    if trainer is not None:
        dead = trainer.dead_mask().cpu().numpy()
        description = f"latents not active on the last {trainer.settings.dead_after:,} training rows, of {n:,}"
        result.add_metric("dead_latents", int(dead.sum()), unit="latents", description=description)
    description = f"latents never active on {active.n_rows:,} held-out rows, of {n:,}"
    result.add_metric("silent_latents", int((density == 0).sum()), unit="latents", description=description)
    description = f"latents active on more than {DENSE:.0%} of held-out rows, of {n:,}"
    add(result, "dense_latents", spread.dense, description, unit="latents")
    columns: dict[str, Any] = {
        "latent": np.arange(n),
        "density": density,
        "density_lo": spread.lo,
        "density_hi": spread.hi,
        "mean_activation": active.mean(),
        "max_activation": active.largest(),
        **({} if dead is None else {"dead": dead}),
        "nearest_latent": around.neighbour[:, 0],
        "nearest_cosine": around.cosine[:, 0],
    }
    if around.labels:
        best = np.abs(around.correlation).argmax(1)
        columns["nearest_label"] = np.array(around.labels)[best]
        columns["label_correlation"] = around.correlation[np.arange(n), best]
        result.add_array(
            "label-correlation",
            xr.DataArray(around.correlation, dims=("latent", "label"), coords={"label": around.labels}),
            description="Correlation of each latent's activation with each yes/no label, and with each value of the "
            "others, on held-out rows.",
        )
    result.add_table(
        "latents",
        pd.DataFrame(columns),
        description="Every latent on held-out rows: how often it is active (with the 95 % interval over documents), "
        "how strongly, the nearest other decoder direction and the nearest label.",
    )


def add_training(result: Result, trainer: Trainer, random: float) -> None:
    """Add the history of the training as a table, thinned, and as figures.

    Parameters
    ----------
    result : Result
        Added to.
    trainer : Trainer
        That has come to its end.
    random : float
        Explained variance of the random dictionary.
    """
    settings = trainer.settings
    history = trainer.history.numpy()
    means, steps = thinned(history)
    frame = pd.DataFrame(means, columns=list(HISTORY))
    frame.insert(0, "step", steps + 1)
    result.add_table(
        "training",
        frame,
        description=f"{settings.n_steps:,} steps over {settings.rows:,} rows, in means over stretches of steps.",
        units={
            "step": "steps",
            "error": "share of variance",
            "auxiliary": "share of the rest",
            "l0": "latents",
            "dead": "latents",
        },
    )
    result.add_metric(
        "training_rows", settings.rows, unit="rows", description="rows shown in training, with repetition"
    )
    result.add_figure(
        "loss-curves",
        loss_curves(history, settings.rows / settings.n_steps),
        description="Training: what the reconstruction leaves of the variance, the auxiliary loss on what the dead "
        "latents make of the rest; how many latents are active on a row; how many are dead.",
    )
    result.add_figure(
        "explained-variance",
        explained_curve(trainer.checks, random),
        description="Explained variance of held-out rows over the training.",
    )
