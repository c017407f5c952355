"""The run: discover, name, intervene, and put the result together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.encoding import check_dictionary, latents_of_rows
from workbench.errors import UserError
from workbench.plugins.circular import CircularConfig
from workbench.plugins.circular.bench import right_prompts
from workbench.plugins.circular.clusters import find_clusters, mean_cosine
from workbench.plugins.circular.details import plane_rows, stability_row
from workbench.plugins.circular.discovery import Ranked, discover
from workbench.plugins.circular.features import Cyclic, Feature, Naming, cyclic_labels, find_features, name_cloud
from workbench.plugins.circular.interventions import fit_operand, inside, intervene
from workbench.plugins.circular.planes import Reconstructions
from workbench.plugins.circular.present import present
from workbench.plugins.circular.profile import probe_rows, profile_rows
from workbench.plugins.circular.prompts import LEAST_PROMPTS, Prompts, find_prompts, label_pairs
from workbench.plugins.circular.removal import remove
from workbench.plugins.circular.work import once

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.results import Result


@dataclass
class Findings:
    """All that was found.

    Attributes
    ----------
    hook_point : str
        That the dictionary reconstructs.
    rows : np.ndarray
        Rows of the store that were read.
    reconstructions : Reconstructions
        Of any cluster, on those rows.
    ranked : Ranked
        Clusters.
    namings : list of Naming or None
        The label of each.
    permuted : list of Naming or None
        The same with labels permuted over rows.
    features : list of Feature
        What clusters of one label make up.
    tables : dict of str to list of dict
        Rows of the result's tables.
    grids : list
        Label, classes and grid of each polar grid.
    notes : list of str
        For the report.
    """

    hook_point: str
    rows: np.ndarray
    reconstructions: Reconstructions
    ranked: Ranked
    namings: list[Naming | None]
    permuted: list[Naming | None]
    features: list[Feature]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    grids: list[tuple[str, tuple[str, ...], dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(context: Context) -> Result:
    """Find circular features in a dictionary, and see whether the subject computes with them.

    Raises
    ------
    UserError
        If dictionary and store do not belong together, or no cluster has enough rows.
    """
    config: CircularConfig = context.config
    store, dictionary = context.store, context.dictionary()
    check_dictionary(store, dictionary)
    if len(dictionary.hooks_out) != 1:
        raise UserError(
            f"dictionary {dictionary.address} reconstructs {dictionary.hook_out}: circular needs one hook point"
        )
    rows = drawn_rows(context)
    labels = cyclic_labels(store, rows, config.label)
    every = cyclic_labels(store, rows, None)
    pairs = label_pairs(every, config.intervene.operand, config.intervene.answer)  # what is wrong is said before work
    codes = latents_of_rows(store, dictionary, rows, context.torch_device)
    directions = dictionary.W_dec.detach().cpu().double().numpy() / dictionary.scale
    reconstructions = Reconstructions(codes, directions)
    clusters = find_clusters(config.clusters, directions, reconstructions.density > 0, context.seed)
    context.log.info("%d clusters of %d active latents", len(clusters), int((reconstructions.density > 0).sum()))
    ranked = discover(context, reconstructions, clusters)
    namings = [name_cloud(each.cloud, labels) for each in ranked.found]
    rng = context.rng("permuted labels")
    permuted = [name_cloud(each.cloud, labels, rng) for each in ranked.found]
    features = find_features(context, dictionary.hook_out, rows, reconstructions, ranked.found, namings)
    findings = Findings(dictionary.hook_out, rows, reconstructions, ranked, namings, permuted, features)
    look_closely(context, findings)
    live(context, findings, pairs)
    return present(context, findings)


def drawn_rows(context: Context) -> np.ndarray:
    """Return ordinary rows of the store, those of whole documents in a seeded order until there are enough."""
    store = context.store
    rows = np.flatnonzero(store.ordinary)
    if len(rows) <= context.config.rows:
        return rows
    document = store.origins["document"][rows]
    order = context.rng("documents").permutation(len(store.documents))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    counts = np.bincount(document, minlength=len(order))[order]
    n = int(np.searchsorted(np.cumsum(counts), context.config.rows, side="right"))
    return np.asarray(rows[place[document] < max(n, 1)])


def look_closely(context: Context, findings: Findings) -> None:
    """Add the tables of clusters and planes."""
    documents = context.store.origins["document"][findings.rows]
    ranked, directions = findings.ranked, findings.reconstructions.directions
    shown = ranked.found[: context.config.shown]
    planes: list[dict[str, Any]] = []
    for rank, each in enumerate(shown, start=1):
        make = partial(plane_rows, context, rank, each, findings.namings[rank - 1], documents)
        planes += once(context, f"planes {each.cluster.latents.tolist()}", make)
    findings.tables["planes"] = planes
    clusters = []
    for rank, (each, naming, p_holm, q) in enumerate(
        zip(ranked.found, findings.namings, ranked.p_holm, ranked.q, strict=True), start=1
    ):
        kept = [plane for plane in each.planes if plane.mixture >= 0.01] or each.planes
        row = {
            "rank": rank,
            "label": naming.label.name if naming is not None and naming.names else "",
            "n_latents": len(each.cluster.latents),
            "n_rows": len(each.cloud.rows),
            "score": each.score,
            "separability": float(np.mean([plane.separability for plane in kept])),
            "mixture": float(np.mean([plane.mixture for plane in kept])),
            "circularity": each.circularity,
            "p": each.p,
            "p_isotropic": each.p_isotropic,
            "p_holm": float(p_holm),
            "q": float(q),
            "n_draws": each.n_draws,
            "cutoff": each.cluster.cutoff,
            "mean_cosine": mean_cosine(directions, each.cluster.latents),
            "coverage": naming.coverage if naming else 0.0,
            "explained": naming.explained if naming else 0.0,
            "latents": " ".join(map(str, each.cluster.latents[:40])),
        }
        if rank <= len(shown):
            row |= stability_row(context, rank, each, documents)
        clusters.append(row)
    findings.tables["clusters"] = clusters
    findings.tables["frequencies"] = [
        {
            "label": feature.label.name,
            "frequency": frequency,
            "share": float(share),
            "named": frequency in feature.named,
            "chance": feature.chance,
            "p_order": feature.p_order,
            "clusters": ", ".join(map(str, feature.ranks)),
        }
        for feature in findings.features
        for frequency, share in zip(feature.rings.frequencies, feature.rings.shares, strict=True)
    ]


def live(context: Context, findings: Findings, pairs: Sequence[tuple[Cyclic, Cyclic]]) -> None:
    """Run what needs prompts and the subject; say in a note what could not be run, and why."""
    if context.store.examples.modality != "text":
        findings.notes.append("Images have no prompts: nothing was intervened on.")
        return
    if not pairs:
        findings.notes.append("No labels NAME_operand and NAME_answer: nothing was intervened on.")
    for operand, answer in pairs:
        prompts = find_prompts(context, context.store, findings.rows, operand, answer)
        if isinstance(prompts, str):
            findings.notes.append(f"{operand.name}: no interventions: {prompts}.")
            continue
        add_task(context, findings, operand, prompts)


def add_task(context: Context, findings: Findings, operand: Cyclic, prompts: Prompts) -> None:
    """Add one task's tables: probes, interventions, removal, profile, and the grid inside the circle."""
    config: CircularConfig = context.config
    feature = feature_for(findings.features, operand)
    shape = context.store.hook_points[findings.hook_point].shape
    hook_points = [name for name, spec in context.store.hook_points.items() if spec.shape == shape]
    named = [f for f in (feature.named if feature else ()) if f != 1][:1]
    frequencies = [1, *named]

    def add(table: str, rows: list[dict[str, Any]]) -> None:
        findings.tables.setdefault(table, []).extend(rows)

    add(
        "probes",
        once(context, f"probes {prompts.name}", lambda: probe_rows(context, hook_points, prompts, frequencies)),
    )
    if why := why_not_live(context, findings.hook_point):
        findings.notes.append(f"{prompts.name}: no interventions: {why}.")
        return
    right = np.array(once(context, f"right {prompts.name}", lambda: right_prompts(context.subject(), prompts).tolist()))
    scored = int((right & prompts.scoring).sum())
    add("prompts", [prompts_row(prompts, right)])
    if min(scored, int((right & ~prompts.scoring).sum())) < LEAST_PROMPTS:
        findings.notes.append(
            f"{prompts.name}: the subject answers {int(right.sum())} of {len(prompts)} prompts rightly, {scored} of "
            "them scored ones: too few to intervene on."
        )
        return
    add(
        "profile",
        once(
            context, f"profile {prompts.name}", lambda: profile_rows(context, hook_points, prompts, right, frequencies)
        ),
    )
    if feature is None:
        findings.notes.append(f"{prompts.name}: no found feature goes round with it, so none was intervened on.")
        return
    place = findings.hook_point
    moved = once(context, f"moved {prompts.name}", lambda: intervene(context, place, feature, prompts, right))
    add("interventions", moved)
    rings = fit_operand(context, place, prompts).rings
    add(
        "removal",
        once(context, f"removal {prompts.name}", lambda: remove(context, place, feature, rings, prompts, right)),
    )
    if config.intervene.grid:
        for frequency in (int(moved[0]["best_frequency"]), None):
            make = partial(inside, context, place, feature, prompts, right, frequency)
            grid = once(context, f"grid {prompts.name} {frequency}", make)
            title = f"{prompts.name}: " + (f"frequency {frequency}" if frequency else "whole feature")
            findings.grids.append((title, prompts.words, {**grid, "whole": frequency in (None, 1)}))


def feature_for(features: list[Feature], operand: Cyclic) -> Feature | None:
    """Return the feature whose label says the same as an operand's label wherever that is defined."""
    there = operand.classes >= 0
    for feature in features:
        same = feature.label.classes[there] == operand.classes[there]
        if feature.label.period == operand.period and same.mean() > 0.95:
            return feature
    return None


def why_not_live(context: Context, hook_point: str) -> str | None:
    """Say why the subject cannot be run on prompts, if it cannot."""
    if not context.config.intervene.runs:
        return "intervene.runs=0"
    if not context.has_subject:
        return "the store does not say which model it is of, and none was given (--model)"
    subject = context.subject()
    if not subject.causal:
        return f"{subject.address} predicts no next token"
    if subject.hook_points[hook_point].axes[:2] != ("batch", "pos"):
        return f"{hook_point} has no value of its own at each position"
    return None


def prompts_row(prompts: Prompts, right: np.ndarray) -> dict[str, Any]:
    """Return how many prompts there are, and how many the subject answers."""
    return {
        "label": prompts.name,
        "n": len(prompts),
        "n_right": int(right.sum()),
        "n_scored": int(prompts.scoring.sum()),
        "n_scored_right": int((right & prompts.scoring).sum()),
        "scored": "documents held out from the subject" if prompts.held_out else "half of the problems",
    }
