"""The result: tables, figures, and what to make of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from workbench.plugins.circular.bench import frequencies_text
from workbench.plugins.circular.figures import (
    Panel,
    bars_figure,
    clusters_figure,
    frequencies_figure,
    inside_figure,
    profile_figure,
    ranking_figure,
)
from workbench.plugins.circular.planes import PlaneScore
from workbench.plugins.circular.words import strongest_tokens
from workbench.probes.circles import roundness
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.circular.discovery import Found
    from workbench.plugins.circular.run import Findings

LEVEL = 0.05  # of p-values, after correction
OVER = "95 % interval over problems (an operand and an offset, in all phrasings)"
TABLES = {
    "clusters": "Clusters of latents, best first: score, the mean of (1 - M)·S over planes. circularity: the "
    "largest (1 - M)·S times the plane's share of the variance and 1 minus the variation of its radius; p: of that, "
    "against random clusters of equal size and activation densities (NaN: too large a part of the dictionary to draw "
    "others); p_isotropic: against clouds that look alike from "
    "all directions; p_holm and q: the "
    "larger of the two, corrected for all clusters. label: the cyclic label that tells at least half of the variance "
    "on at least half of the rows. score_least, score_most, angle: scores of random halves of the documents, and the "
    "largest principal angle between their first planes, degrees.",
    "planes": "Planes of the clusters shown. separability and mixture with 95 % intervals over documents; bias: what a "
    "histogram of so many rows adds at most; mixture_upper: no band holds a larger share; radius_variation: 0 on a "
    "circle; coverage: 1 minus the widest gap of angles; frequency, share: of the class means in this plane (0: no "
    "label); order: circular rank correlation of the classes with their angles, 1 for a circle of frequency 1.",
    "frequencies": "Rings of each feature: share of the variance between the class means. named: it stands out among "
    "random orders of the classes, and has a fiftieth of the variance; chance: what the largest share of a random "
    "order reaches in 5 %.",
    "prompts": "Prompts of each task, and how many the subject answers rightly: the likeliest of all tokens.",
    "interventions": "What the subject answers when the operand's activation is changed. moved: the answer for the "
    "other operand; kept: the prompt's own answer; logits: logit of the former minus the latter; each with its "
    + OVER + ".",
    "removal": "Accuracy with frequencies taken out wherever the feature's label stands, on prompts that the subject "
    "answers rightly: each row without its class's point on their rings, or with its mean in their planes. as far "
    "along …: moved by the same length on the rings of others.",
    "profile": "The same by hook point and position, fitted on the rows there by the label: where circles can be "
    "moved.",
    "probes": "Supervised circle probes: R² on scored prompts. shuffled: of a label permuted over problems (should be "
    "0 or below).",
}  # fmt: skip


def present(context: Context, findings: Findings) -> Result:
    """Put the result together."""
    frames = {name: pd.DataFrame(findings.tables.get(name, [])) for name in TABLES}
    if len(frames["clusters"]):
        frames["clusters"].insert(2, "tokens", strongest_tokens(context, findings))
    result = Result()
    add_metrics(result, findings, frames)
    result.add_section(
        "how-to-read",
        "text",
        reading(findings, frames, context.config.null.draws),
        "What was done, and how far to trust it.",
    )
    add_figures(context, result, findings, frames)
    for name, description in TABLES.items():
        if len(frames[name]):
            result.add_table(
                name, frames[name].drop(columns="best_frequency", errors="ignore"), description=description
            )
    for feature in findings.features:
        result.add_weights(
            f"feature.{feature.label.name}",
            {
                "mean": torch.from_numpy(feature.rings.mean.copy()),
                "parts": torch.from_numpy(feature.rings.parts.copy()),
            },
            description=f"rings of {feature.label.name} at {findings.hook_point}: parts [frequency, 2, width]",
            config={
                "label": feature.label.name,
                "hook_point": findings.hook_point,
                "period": feature.rings.period,
                "named": list(feature.named),
                "latents": feature.latents.tolist(),
            },
        )
    return result


def add_metrics(result: Result, findings: Findings, frames: dict[str, pd.DataFrame]) -> None:
    """Add the ranks of what was named, the main interventions, and the negative controls."""
    clusters = frames["clusters"]
    good = int((clusters["p_holm"] < LEVEL).sum()) if len(clusters) else 0
    result.add_metric(
        "clusters",
        len(clusters),
        description=f"clusters ranked; {findings.ranked.n_candidates} with those that are nearly a better one",
    )
    result.add_metric("circular", good, description="clusters that are rounder than chance, p < 0.05 by Holm")
    for feature in findings.features:
        name = feature.label.name
        result.add_metric(f"rank.{name}", feature.ranks[0], description=f"best place of a cluster named {name}")
        result.add_metric(
            f"share.{name}",
            float(feature.rings.shares.max()),
            description=f"of the variance between the means of {name} at its strongest frequency, "
            f"{feature.by_share[0]}; named: {', '.join(map(str, feature.named)) or 'none'}",
        )
    moves = frames["interventions"]
    for label in dict.fromkeys(moves["label"]) if len(moves) else []:
        mine = moves[moves["label"] == label].set_index("way")
        chosen = {
            "feature": mine.loc["whole feature"],
            "plane": mine[mine.index.str.startswith("best plane (")].iloc[0],
            "random": mine[mine.index.str.startswith("random subspace")].sort_values("moved").iloc[-1],
        }
        words = {
            "feature": "the whole found feature set to another operand",
            "plane": "the best single plane set to another operand",
            "random": "the worst of the random subspaces of equal dimension and norm",
        }
        for kind, row in chosen.items():
            result.add_metric(
                f"moved.{kind}.{label}",
                row["moved"],
                lo=row["moved_lo"],
                hi=row["moved_hi"],
                description=f"share of answers that move as intended, {words[kind]}, at {row['hook_point']}; "
                f"{row['n']} runs of {row['n_prompts']} scored prompts; {OVER}",
            )
    named = [each for each in findings.permuted if each is not None and each.names]
    result.add_metric(
        "negative_control",
        len(named),
        description="clusters named by a label that was permuted over their rows; should be 0",
    )


def add_figures(context: Context, result: Result, findings: Findings, frames: dict[str, pd.DataFrame]) -> None:
    """Add the figures that there is something for."""
    if not findings.ranked.found:
        return
    result.add_figure(
        "clusters",
        clusters_figure(panels(context, findings)),
        description="The best clusters' reconstructions in the plane of two principal components that is roundest; "
        "named clusters are coloured by the label's class.",
    )
    result.add_figure(
        "ranking",
        ranking_figure(frames["clusters"]),
        description="Separability against mixture, means over planes. Irreducible features are at the upper right.",
    )
    if len(frames["frequencies"]):
        result.add_figure(
            "frequencies",
            frequencies_figure(frames["frequencies"]),
            description="Share of each frequency in the variance between the classes; orange: named; dashed: what the "
            "largest share of a random order of the classes reaches in 5 %.",
        )
    if len(frames["interventions"]):
        result.add_figure(
            "interventions",
            bars_figure(frames["interventions"], "moved", "moved_lo", "moved_hi", "share of answers moved as intended"),
            description="Share of answers that are right for the other operand, with its interval. Grey: random.",
        )
    if len(frames["removal"]):
        result.add_figure(
            "removal",
            bars_figure(frames["removal"], "right", "lo", "hi", "share of answers that stay right"),
            description="What is left of the accuracy when frequencies are taken out. Grey: as many others, or random.",
        )
    if findings.grids:
        result.add_figure(
            "inside",
            inside_figure(findings.grids),
            description="Inside the circle: which operand the answers stand for when its point is set to a place of a "
            "polar grid. Dotted: where the operands themselves lie; paler: the prompts disagree.",
        )
    if len(frames["probes"]):
        result.add_figure(
            "profile",
            profile_figure(frames["profile"], frames["probes"]),
            description="By hook point: where circle probes read operand and answer (frequency 1, held out), and where "
            "moving the point moves the answer.",
        )


def panels(context: Context, findings: Findings) -> list[Panel]:
    """Return the best plane of each cluster that is shown."""
    found = []
    for rank, (each, naming) in enumerate(zip(findings.ranked.found, findings.namings, strict=True), start=1):
        if rank > context.config.shown:
            break
        best = roundest(each)
        named = naming is not None and naming.names
        label = naming.label if naming is not None and named else None
        classes = label.classes[each.cloud.rows] if label else np.full(len(each.cloud.rows), -1)
        title = f"{rank}. {label.name if label else 'no label'}, components {best.axes[0] + 1} and {best.axes[1] + 1}"
        found.append(
            Panel(
                each.cloud.scores[:, list(best.axes)],
                classes,
                label.words if label else (),
                f"{title}\nS {best.separability:.2f}, M {best.mixture:.2f}",
            )
        )
    return found


def roundest(found: Found) -> PlaneScore:
    """Return the plane that `circularity` is of."""
    variance = found.cloud.variance

    def value(plane: PlaneScore) -> float:
        around = roundness(found.cloud.scores[:, list(plane.axes)]).variation
        return plane.value * float(variance[list(plane.axes)].sum()) * max(1e-3, 1 - around)

    return max(found.planes, key=value)


def reading(findings: Findings, frames: dict[str, pd.DataFrame], n_draws: int) -> list[str]:
    """Say in words what was found, and what to beware of; `n_draws` random clusters at most were drawn for each."""
    clusters = frames["clusters"]
    said = [
        "Latents whose directions are near each other make up clusters. What a cluster reconstructs is scored in "
        "the planes of its principal components: separability S (0: two independent features share the plane) and "
        "ε-mixture M (near 1: features that do not occur together). Cyclic labels give names; the ranking knows none."
    ]
    good = clusters[clusters["p_holm"] < LEVEL] if len(clusters) else clusters
    if len(good):
        told = ", ".join(f"{row['rank']} ({row['label'] or 'no label'})" for _, row in good.iterrows())
        said.append(f"Rounder than chance after correction for {len(clusters)} clusters: {told}.")
    else:
        said.append(
            f"None of {len(clusters)} clusters is rounder than chance after correction: nothing circular was found."
        )
    n_tested = int(clusters["p"].notna().sum()) if len(clusters) else 0
    lowest = n_tested / (n_draws + 1)
    if lowest >= LEVEL:
        said[-1] += (
            f" With null.draws={n_draws} no p-value lies below {1 / (n_draws + 1):.2g}, nor below {min(lowest, 1):.2g} "
            f"after correction for {n_tested} clusters: none could pass. Set it to {int(n_tested / LEVEL)} or more."
        )
    for feature in findings.features:
        names = frequencies_text(feature.named) if feature.named else "no frequency"
        shares = ", ".join(f"{f}: {feature.rings.shares[f - 1]:.2f}" for f in feature.by_share[:6])
        said.append(
            f"{feature.label.name} (cluster {', '.join(map(str, feature.ranks))}): what stands out among random orders "
            f"of the classes is {names}; shares {shares}."
        )
    moves = frames["interventions"]
    for label in dict.fromkeys(moves["label"]) if len(moves) else []:
        mine = moves[moves["label"] == label].set_index("way")
        prompts = frames["prompts"].set_index("label").loc[label]
        told = "; ".join(f"{way}: {_share(mine.loc[way])}" for way in mine.index if _told(way))
        said.append(
            f"{label}: the subject answers {prompts['n_right']} of {prompts['n']} prompts; scored are "
            f"{prompts['n_scored_right']} that it answers ({prompts['scored']}), of {mine['n_problems'].iloc[0]} "
            f"problems, which are the trials of the intervals. Answers moved as intended: {told}."
        )
    removal = frames["removal"]
    for label in dict.fromkeys(removal["label"]) if len(removal) else []:
        mine = removal[removal["label"] == label]
        first = mine[mine["way"].str.startswith("without frequenc")]
        told = "; ".join(
            f"{row['way']}: {row['right']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]" for _, row in first.iterrows()
        )
        others = mine[mine["way"].str.contains("draw")]
        least = f"; the least of random and other ones: {others['right'].min():.3f}" if len(others) else ""
        said.append(f"{label}, accuracy when taken out at its tokens: {told}{least}.")
    return said + findings.notes


def _told(way: str) -> bool:
    """Return whether an intervention is told in words: what is moved, what it is held against, and what is random."""
    return way == "none" or way.startswith(("all: from", "whole feature", "best plane", "random subspace"))


def _share(row: pd.Series[Any]) -> str:
    value = f"{row['moved']:.2f}"
    return value if math.isnan(row["moved_lo"]) else f"{value} [{row['moved_lo']:.2f}, {row['moved_hi']:.2f}]"
