"""What was found, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.plugins.circuit.figures import NAMES, UNIT_NAMES

if TYPE_CHECKING:
    from workbench.plugins.circuit.run import Found


def reading(found: Found, frames: dict[str, pd.DataFrame]) -> list[str]:
    """Say what was done, what was found, and what to beware of."""
    gap = found.ends.gap
    paragraphs = [
        f"Task {found.task.address}, {len(found.pairs)} pairs: half to score on, half to measure circuits on. "
        f"{found.about} On the latter the metric ({found.pairs.metric}) is {found.ends.whole.mean():.3g} with the "
        f"whole subject and {found.ends.nothing.mean():.3g} with everything ablated; the difference, {gap.value:.3g}, "
        "is what there is to explain."
    ]
    if found.pairs.metric != "kl":
        paragraphs[0] += f" It is above 0 on {100 * (found.ends.whole > 0).mean():.0f} % of the examples."
    if found.known is not None:
        paragraphs += told_of_truth(found, frames)
        if "discrete-sae" in found.scores and found.known.shadows(found.graph).any():
            paragraphs.append(shadow_finding(found))
    if (codes := found.scores.get("discrete-sae")) is not None:
        text = (
            f"Discrete SAE: no latent was active on {100 * codes.facts['silent']:.0f} % of head outputs (they count as "
            f"one code), and {100 * codes.facts['unexplained']:.0f} % of their variance was not reconstructed. Its "
            "scores are not causal: it sees that a head's output takes values on the task that it does not take "
            "without, not that anything reads them, and it misses a head that behaves alike in both."
        )
        if codes.facts["silent"] > 0.5:
            text += " With most outputs silent its scores mean little: lower sae.penalty, or keep sae.scaled."
        paragraphs.append(text)
    if len(frames["circuits"]):
        paragraphs.append(told_of_circuits(found))
    if len(frames["overlap"]):
        row = frames["overlap"].iloc[0]
        paragraphs.append(
            f"With {row['other']} it shares {100 * row['jaccard']:.0f} % of the {row['n']} best nodes of either "
            f"({100 * row['jaccard_by_chance']:.0f} % after scores were permuted within layers, p = "
            f"{row['jaccard_p']:.3g}); ranks correlate by {row['correlation']:.2f} "
            f"({row['correlation_by_chance']:.2f}, p = {row['correlation_p']:.3g})."
        )
    if len(found.pairs) < 40:
        paragraphs.append(f"With {len(found.pairs)} pairs intervals over examples are too narrow.")
    return paragraphs + list(dict.fromkeys(found.notes))


def told_of_truth(found: Found, frames: dict[str, pd.DataFrame]) -> list[str]:
    """Say how well each method finds the known circuit."""
    assert found.known is not None
    truth, copies = frames["truth"], frames["copies"]
    told = []
    for method, mine in truth.groupby("method", sort=False):
        areas = ", ".join(f"{UNIT_NAMES[row['units']]} {row['auc']:.3f}" for _, row in mine.iterrows())
        told.append(f"{NAMES[str(method)]}: {areas}")
    text = (
        f"The circuit is known from {found.known.source}: {int(found.known.nodes.sum())} nodes and "
        f"{int(found.known.edges.sum())} edges. Areas under the ROC curve: {'; '.join(told)}."
    )
    if not found.known.complete:
        text += " Other nodes were not found to be part of it by the work cited, which is not to say that they are not."
    chance = truth[truth["permuted_hi"] >= truth["auc"]]
    if len(chance):
        named = ", ".join(f"{NAMES[row['method']]} ({UNIT_NAMES[row['units']]})" for _, row in chance.iterrows())
        text += f" Not to be told from permuted labels: {named}."
    if len(copies):
        by_unit = ", ".join(
            f"{UNIT_NAMES[str(unit)]} {mean:.2f}" for unit, mean in copies.groupby("units")["auc"].mean().items()
        )
        text += (
            f" Copies with random weights, which have no circuit, get {by_unit} on average. Edges can lie above one "
            "half there, since those at the input and the logits are large in any network: hold them against labels "
            "permuted among edges of a kind."
        )
    return [text, *wrong_signs(found)]


def wrong_signs(found: Found) -> list[str]:
    """Say which edges of a planted circuit a method scores below 0: each of them helps, by construction."""
    assert found.known is not None
    graph, told = found.graph, []
    if not found.known.complete:  # a published circuit may have edges that work against the answer
        return []
    for method, scores in found.scores.items():
        if scores.edges is None:
            continue
        below = np.argwhere(found.known.edges & (scores.edge_mean < 0))
        told += [
            f"{NAMES[method]} gives {graph.sources[i]} → {graph.destinations[j]} {scores.edge_mean[i, j]:.3g}"
            for i, j in below
        ]
    if not told:
        return []
    return [
        f"Edges of the known circuit below 0: {'; '.join(told)}. Every one of them helps, and patching it shows that: "
        "a mean of gradients need not have the sign of the whole change. CPR takes edges by signed score, and suffers."
    ]


def shadow_finding(found: Found) -> str:
    """Say how the discrete SAE and the causal methods rank heads that copy the answer to where nothing reads it."""
    assert found.known is not None
    graph, known = found.graph, found.known
    shadows, true = known.shadows(graph)[graph.head_sources], known.nodes[graph.head_sources]
    others = ~shadows & ~true
    parts = []
    for method, scores in found.scores.items():
        mean = np.abs(scores.node_mean[graph.head_sources])
        # a shadow is taken for a true head as often as it scores at least as high
        above = float((mean[shadows][:, None] >= mean[true][None]).mean())
        level = "" if not others.any() else f", the remaining {int(others.sum())} heads {mean[others].mean():.3g}"
        parts.append(
            f"{NAMES[method]}: true heads score {mean[true].mean():.3g}, shadows {mean[shadows].mean():.3g}{level}; a "
            f"shadow scores at least as high as a true head in {100 * above:.0f} % of pairs"
        )
    return (
        f"Finding: {int(shadows.sum())} of the {len(shadows)} heads are shadows. They copy names to where nothing "
        "reads them, so they have no part in the answer, but their outputs differ between the task and its negatives. "
        + "; ".join(parts)
        + ". The discrete SAE is blind to the difference, which is no fault of its training: it never looks at what "
        "becomes of an output. Methods that change an output and look at the answer are not misled."
    )


def told_of_circuits(found: Found) -> str:
    """Say what the circuit shown does."""
    rows = {(row["circuit"], row["ablation"]): row for row in found.tables["circuits"]}
    assert found.shown_by is not None
    shown = rows.get(("shown", "resample"), found.tables["circuits"][0])
    text = (
        f"The circuit of {shown['edges']} edges by {NAMES[found.shown_by]} does {shown['faithfulness']:.3f} "
        f"[{shown['lo']:.3f}, {shown['hi']:.3f}] of the task on held-out examples, all other edges together "
        f"{shown['complement']:.3f}"
    )
    if ("random edges", "resample") in rows:
        text += f", as many random edges {rows['random edges', 'resample']['faithfulness']:.3f}"
    if ("known", "resample") in rows:
        known = rows["known", "resample"]
        text += f", the known circuit {known['faithfulness']:.3f} and what it leaves out {known['complement']:.3f}"
    checks = [
        f"{ablation} {rows['shown', ablation]['faithfulness']:.3f}"
        for ablation in ("mean", "zero")
        if ("shown", ablation) in rows
    ]
    return f"{text}. Under other ablations: {', '.join(checks)}." if checks else f"{text}."
