"""Interventions at the operand: in one plane, in the whole feature, and what they stand beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.context import Context
from workbench.labelled_rows import read_flat
from workbench.plugins.circular import CircularConfig
from workbench.plugins.circular.bench import (
    Bench,
    draw_pairs,
    frequencies_text,
    of_length,
    outcome_row,
    pca_basis,
    random_basis,
    toward,
)
from workbench.plugins.circular.features import MOST_FREQUENCIES, Feature
from workbench.plugins.circular.prompts import Prompts
from workbench.probes.circles import CircleProbe
from workbench.probes.rings import Rings, class_means, fit_rings
from workbench.probes.statistics import bootstrap_weights

CHOOSING_RUNS = 200
N_GRID_PROMPTS = 12
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Fitted:
    """What is known of a hook point from the prompts that are not scored.

    Attributes
    ----------
    hook_point : str
        Which.
    X : np.ndarray
        [fitting prompts, width] activations at the operand.
    rings : Rings
        Of the class means there.
    """

    hook_point: str
    X: np.ndarray
    rings: Rings

    @property
    def means(self) -> np.ndarray:
        """Class means [period, width]."""
        return self.rings.points(np.arange(self.rings.period))


def fit_operand(context: Context, hook_point: str, prompts: Prompts) -> Fitted:
    """Read the operand's activations on the fitting prompts, and take their class means apart."""
    chosen = np.flatnonzero(~prompts.scoring)
    X = read_flat(context.store, hook_point, prompts.operand_row[chosen]).astype(np.float64)
    return Fitted(hook_point, X, fit_rings(class_means(X, prompts.a[chosen], prompts.period)))


def best_plane(context: Context, fitted: Fitted, prompts: Prompts, right: np.ndarray, feature: Feature) -> int:
    """Return the frequency whose plane alone moves most answers, on prompts that are not scored."""
    usable = np.flatnonzero(right & ~prompts.scoring)
    rng = context.rng(f"choosing a plane {prompts.name}")
    bench = Bench(context.subject(), fitted.hook_point, prompts, *draw_pairs(prompts, usable, CHOOSING_RUNS, rng))
    moved = {}
    for frequency in feature.by_share[:MOST_FREQUENCIES]:
        basis = feature.rings.basis([frequency])
        moved[frequency] = bench.run(bench.x + toward(bench.x, fitted.means[bench.goal], basis)).moved.mean()
    return max(moved, key=lambda f: moved[f])


def ways_of(
    context: Context, fitted: Fitted, feature: Feature, best: int, prompts: Prompts
) -> dict[str, tuple[int, Callable[[Bench], np.ndarray | None]]]:
    """Return each intervention by name: the dimension of what it replaces, and what it puts in place."""
    config: CircularConfig = context.config
    mean, means = fitted.X.mean(axis=0), fitted.means
    whole, plane = feature.rings.basis(), feature.rings.basis([best])
    pca = pca_basis(fitted.X, config.intervene.pca)
    width = fitted.X.shape[1]
    reader = CircleProbe(prompts.period, best, config.intervene.pca)
    probe = reader.fit(fitted.X, prompts.a[~prompts.scoring]).circle_

    def gentle(basis: np.ndarray) -> Callable[[Bench], np.ndarray]:
        return lambda bench: bench.x + toward(bench.x, means[bench.goal], basis)

    def only(basis: np.ndarray) -> Callable[[Bench], np.ndarray]:
        return lambda bench: mean + toward(np.broadcast_to(mean, bench.x.shape), means[bench.goal], basis)

    def without(basis: np.ndarray) -> Callable[[Bench], np.ndarray]:
        return lambda bench: bench.x - (bench.x - mean) @ basis.T @ basis

    def keeping(basis: np.ndarray) -> Callable[[Bench], np.ndarray]:
        return lambda bench: mean + (bench.x - mean) @ basis.T @ basis

    def random(basis: np.ndarray, number: int) -> Callable[[Bench], np.ndarray]:
        away = random_basis(len(basis), width, context.rng(f"random subspace {len(basis)} {number} {prompts.name}"))

        def moved(bench: Bench) -> np.ndarray:
            goal = means[bench.goal]
            length = np.linalg.norm(toward(bench.x, goal, basis), axis=1)
            return np.asarray(bench.x + of_length(toward(bench.x, goal, away), length))

        return moved

    ways: dict[str, tuple[int, Callable[[Bench], np.ndarray | None]]] = {
        "none": (0, lambda bench: None),
        "all: from a run with the other operand": (width, lambda bench: bench.swapped),
        f"PCA {len(pca)}: from that run": (
            len(pca), lambda bench: bench.x + toward(bench.x, bench.swapped, pca),
        ),
        "whole feature": (len(whole), gentle(whole)),
        "whole feature, rest at its mean": (len(whole), only(whole)),
        f"best plane ({frequencies_text([best])})": (len(plane), gentle(plane)),
        "best plane, rest at its mean": (len(plane), only(plane)),
        "circle probe's plane": (2, lambda bench: probe.place(bench.x, bench.goal)),
        "circle probe's plane, rest at its mean": (2, lambda bench: probe.place(bench.x, bench.goal, keep=False)),
        "best plane at its mean": (len(plane), without(plane)),
        "all but the best plane at its mean": (width - len(plane), keeping(plane)),
        "whole feature at its mean": (len(whole), without(whole)),
        "all but the whole feature at its mean": (width - len(whole), keeping(whole)),
        "all at its mean": (width, lambda bench: np.broadcast_to(mean, bench.x.shape)),
    }  # fmt: skip
    for frequency in feature.by_share[:MOST_FREQUENCIES]:
        basis = feature.rings.basis([frequency])
        ways[frequencies_text([frequency])] = (len(basis), gentle(basis))
    for number in range(config.intervene.controls):
        ways[f"random subspace {number + 1}, dimension and norm of the feature"] = (len(whole), random(whole, number))
        ways[f"random plane {number + 1}, norm of the best plane"] = (len(plane), random(plane, number))
    return ways


def intervene(
    context: Context, hook_point: str, feature: Feature, prompts: Prompts, right: np.ndarray
) -> list[dict[str, Any]]:
    """Score every intervention at the operand, on scored prompts that the subject answers rightly."""
    config: CircularConfig = context.config
    fitted = fit_operand(context, hook_point, prompts)
    best = best_plane(context, fitted, prompts, right, feature)
    usable = np.flatnonzero(right & prompts.scoring)
    prompt, target = draw_pairs(prompts, usable, config.intervene.runs, context.rng(f"pairs {prompts.name}"))
    bench = Bench(context.subject(), hook_point, prompts, prompt, target)
    members, group = np.unique(prompts.group[prompt], return_inverse=True)
    weights = bootstrap_weights(len(members), config.draws, context.rng(f"problems {prompts.name}"))
    ways = ways_of(context, fitted, feature, best, prompts)
    rows = []
    with context.progress(len(ways), "interventions", prompts.name) as ticker:
        for way, (dimension, change) in ways.items():
            about = {"label": prompts.name, "hook_point": hook_point, "way": way, "dimension": dimension}
            outcome = outcome_row(bench.run(change(bench)), group, weights)
            rows.append({**about, "n_problems": len(members), "n_prompts": len(np.unique(prompt)), **outcome})
            ticker.advance()
    for row in rows:
        row["best_frequency"] = best
    return rows


def inside(
    context: Context, hook_point: str, feature: Feature, prompts: Prompts, right: np.ndarray, frequency: int | None
) -> dict[str, Any]:
    """Set the circle's point to a polar grid, and say which operand the answers then stand for.

    Parameters
    ----------
    context, hook_point, feature, prompts, right
        As for `intervene`.
    frequency : int, optional
        Of the plane; None moves all rings of the feature together, as an operand between the classes would.

    Returns
    -------
    dict
        ``radius`` [r] (1: where the classes lie), ``turn`` [t] share of the way round, ``operand`` [r, t] the operand
        for which most answers are right, ``agreement`` [r, t] share of prompts that say so.
    """
    fitted = fit_operand(context, hook_point, prompts)
    usable = np.flatnonzero(right & ~prompts.scoring)
    chosen = context.rng(f"grid {prompts.name}").permutation(usable)[:N_GRID_PROMPTS]
    basis = feature.rings.basis(None if frequency is None else [frequency])
    turn = np.arange(context.config.intervene.grid) / context.config.intervene.grid
    operands = turn * prompts.period / (frequency or 1)
    on_ring = fitted.rings.points(operands, None if frequency is None else [frequency]) - fitted.rings.mean
    places = [(r, t) for r in range(len(RADII)) for t in range(len(turn))]
    prompt = np.repeat(chosen, len(places))
    bench = Bench(context.subject(), hook_point, prompts, prompt, prompts.a[prompt])
    points = np.stack([fitted.rings.mean + RADII[r] * on_ring[t] for r, t in places])
    logits = bench.logits(bench.x + toward(bench.x, np.tile(points, (len(chosen), 1)), basis))
    guess = logits[:, prompts.tokens].argmax(axis=1)
    operand = (guess - bench.answer + prompts.a[prompt]) % prompts.period
    votes = np.zeros((len(places), prompts.period))
    np.add.at(votes, (np.tile(np.arange(len(places)), len(chosen)), operand), 1)
    shape = (len(RADII), len(turn))
    return {
        "radius": list(RADII),
        "turn": turn.tolist(),
        "operand": votes.argmax(axis=1).reshape(shape).tolist(),
        "agreement": (votes.max(axis=1) / len(chosen)).reshape(shape).tolist(),
    }
