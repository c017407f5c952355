"""Dictionaries of one run side by side: a table, figures, and whether seeds find the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd

from workbench.context import Context
from workbench.plugins.sae.figures import curves_of_many, frontier
from workbench.plugins.sae.outcome import NAMES
from workbench.plugins.sae.stability import FOUND, matched_cosines
from workbench.plugins.sae.sweep import Variant, shown, swept
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.weights import unit_rows
from workbench.probes.statistics import Interval, bootstrap_weights, percentile_interval
from workbench.results import Metric, Result, Weights

ENDS = ("explained_variance", "l0", "loss_recovered")  # metrics whose intervals are columns, too
WHOLE = ("k", "latents", "seed")
# the same for all, unless hook points differ
SAID_ONCE = ("training_rows", "held_out_documents", "loss_clean", "loss_zero", "loss_mean", "loss_recovered_mean")


@dataclass(frozen=True)
class Outcome:
    """What has become of one dictionary of a run.

    Attributes
    ----------
    variant : Variant
        Which.
    trainer : Trainer
        At its end.
    metrics : dict of str to Metric
        As if it were the only one; empty if its training failed.
    random : float
        Explained variance of its control.
    weights : Weights, optional
        None if its training failed.
    """

    variant: Variant
    trainer: Trainer
    metrics: dict[str, Metric] = field(default_factory=dict)
    random: float = float("nan")
    weights: Weights | None = None

    def point(self, name: str) -> tuple[str, str, Metric, Metric]:
        """Return where it is in the figure of a metric; see `figures.frontier`."""
        return self.variant.line, self.variant.family, self.metrics["l0"], self.metrics[name]

    def __str__(self) -> str:
        if self.weights is None:
            return f"{self.variant.name}: {self.trainer.failed}"
        said = [f"{name.replace('_', ' ')} {self.metrics[name].value:.4g}" for name in ENDS if name in self.metrics]
        return f"{self.variant.name}: {', '.join(said)}"

    @classmethod
    def of(cls, variant: Variant, trainer: Trainer, result: Result) -> Outcome:
        """Keep of a result what is compared; figures and tables of many would fill the memory."""
        comparison = result.tables["comparison"].set_index("in place of the activation")
        random = float(comparison["explained_variance"][NAMES["random"]])
        return cls(variant, trainer, dict(result.metrics), random, result.weights["dictionary"])


def compare(context: Context, found: Sequence[Outcome]) -> Result:
    """Return the dictionaries of a run, a table with a row for each, figures, and how stable seeds are."""
    result, done = Result(), [each for each in found if each.weights is not None]
    result.add_metric(
        "dictionaries", len(done), description=f"dictionaries trained, of {len(found)} that were asked for"
    )
    values = {name: {each.metrics[name].value for each in done if name in each.metrics} for name in SAID_ONCE}
    shared = [name for name, different in values.items() if len(different) == 1]
    result.metrics |= {name: done[0].metrics[name] for name in shared}
    frame = pd.DataFrame([row_of(each, list(swept(context.config)), shared) for each in found])
    whole = [key for key in WHOLE if key in frame]
    result.add_table(
        "dictionaries",
        frame.astype(dict.fromkeys(whole, "Int64")),  # whole numbers, missing ones among them
        description="Each dictionary on the same held-out rows; lo and hi are ends of 95 % intervals over documents, "
        "random is the explained variance of a random dictionary with the same shape and as many active latents. "
        "--dictionary RUN#NAME takes one.",
        units={name: metric.unit for name, metric in done[0].metrics.items() if metric.unit and name not in shared},
    )
    add_stability(context, result, done)
    for name, description in (
        ("explained_variance", "Explained variance of held-out rows over active latents of a row"),
        ("loss_recovered", "Share of the damage by zeros that the spliced-in reconstruction avoids, over the same"),
    ):
        if all(name in each.metrics for each in done):
            result.add_figure(
                name.replace("_", "-"),
                frontier([each.point(name) for each in done], name),
                description=f"{description}, with 95 % intervals over documents; upper left is better.",
            )
    result.add_figure(
        "training",
        curves_of_many({each.variant.name: each.trainer.checks for each in found if each.trainer.checks}),
        description="Explained variance of held-out rows over the training.",
    )
    for each in done:
        assert each.weights is not None
        weights = each.weights
        result.add_weights(each.variant.name, weights, description=weights.description, config=weights.config)
    return result


def row_of(outcome: Outcome, keys: Sequence[str], shared: Sequence[str]) -> dict[str, Any]:
    """Return a dictionary's row of the table: what it has of the options swept, and metrics that are not shared."""
    values = outcome.variant.values
    row: dict[str, Any] = {"dictionary": outcome.variant.name}
    row |= {key: shown(values[key]) if isinstance(values.get(key), tuple) else values.get(key) for key in keys}
    row = {("weight of the penalty" if key == "sparsity" else key): value for key, value in row.items()}
    for name, metric in outcome.metrics.items():
        if name in shared:
            continue
        row[name] = metric.value
        if name in ENDS and metric.lo is not None:
            row |= {f"{name}, lo": metric.lo, f"{name}, hi": metric.hi}
        if name == "explained_variance":
            row[f"{name}, random"] = outcome.random
    return row | ({"failed": outcome.trainer.failed} if outcome.trainer.failed else {})


def add_stability(context: Context, result: Result, done: Sequence[Outcome]) -> None:
    """Add how far dictionaries that differ in their seeds alone have the same latents, where there are such."""
    families: dict[str, list[Outcome]] = {}
    for each in done:
        if "seed" in each.variant.values:
            families.setdefault(each.variant.family, []).append(each)
    rows = []
    for family, members in families.items():
        of_family = [stability(context, one, other) for one, other in combinations(members, 2)]
        rows += [{"dictionaries": family or "all", **row} for row in of_family]
    if rows:
        frame = pd.DataFrame(rows)
        for name, column, what in (
            ("stability", "cosine", ""),
            ("stability_random", "cosine, random", "; with random directions, the control"),
        ):
            result.add_metric(
                name,
                frame[column].mean(),
                description=f"mean cosine of decoder rows of two seeds, matched one to one{what}; over {len(rows)} "
                f"pair{'s' * (len(rows) > 1)} of seeds",
            )
        result.add_table(
            "stability",
            frame,
            description="Pairs of seeds: decoder rows matched one to one so that their cosines are as large as can be. "
            "cosine: their mean, with its 95 % interval over latents; found: share of latents whose match is at "
            f"least {FOUND}; random: the same against random directions.",
        )


def stability(context: Context, one: Outcome, other: Outcome) -> dict[str, Any]:
    """Return how far two dictionaries have the same latents, beside the first with random directions."""
    seeds = [each.variant.values["seed"] for each in (one, other)]
    assert one.weights is not None
    assert other.weights is not None
    a, b = one.weights["W_dec"], other.weights["W_dec"]
    control = unit_rows(len(b), b.shape[1], context.torch_rng(f"stability {seeds}"))
    cosine, by_chance = matched_cosines(a, b), matched_cosines(a, control)
    draws = context.config.evaluate.draws
    weights = bootstrap_weights(len(cosine), draws, context.rng(f"latents {seeds}"))
    interval = Interval(float(cosine.mean()), *percentile_interval(weights @ cosine / len(cosine)))
    return {
        "seed": seeds[0],
        "other seed": seeds[1],
        "cosine": interval.value,
        "cosine, lo": interval.lo,
        "cosine, hi": interval.hi,
        "found": float((cosine >= FOUND).mean()),
        "cosine, random": float(by_chance.mean()),
        "found, random": float((by_chance >= FOUND).mean()),
    }
