"""The result: tables, figures, the circuit for other programs, and what to make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtrit

from workbench.plugins.circuit.controls import layers
from workbench.plugins.circuit.drawing import MOST_EDGES, draw_circuit
from workbench.plugins.circuit.exports import circuit_record, to_graphml, to_json
from workbench.plugins.circuit.figures import curve_figure, minimality_figure, nodes_figure, truth_figure
from workbench.plugins.circuit.reading import reading
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.plugins.circuit.run import Found

MOST_ROWS = 1000
OVER = "95 % interval over examples"
TABLES = {
    "truth": "Scores held against the known circuit. auc: area under the ROC curve, ties counting one half "
    "(Mann–Whitney), with its 95 % interval over examples (discrete SAE: over autoencoders, auc_sd their standard "
    "deviation); auc_staircase: ties against the scores, as in ACDC; precision, recall and f1 of as many units as "
    "are true; best_f1 at the best threshold, with best_n units; paper_f1: harmonic mean of the true positive rate "
    "and 1 − the false one. permuted: areas after labels were exchanged among units of a kind (for edges: of source "
    "and destination), their 95 % range, and p. Edges leave out those that carry the same on clean and corrupted "
    "prompts; pairs are of heads in different layers; node-via-pairs is what the discrete SAE's paper calls edges.",
    "curve": "What circuits of each size do on examples that their scores did not see. order: edges by size of score, "
    "by signed score, or nodes with all edges between them; complement: what all other edges do.",
    "areas": "CPR: area under faithfulness, edges by signed score, may exceed 1. CMD: area under its distance from 1, "
    f"edges by size of score, 0 is best. From 0.1 % to all edges on a linear axis; {OVER}.",
    "circuits": "The circuit shown, the known one and random edges, and their complements, with absent edges carrying "
    "what they carry on the corrupted prompt (resample), the mean of that (a check), or nothing (far from what the "
    "subject is used to).",
    "minimality": "Faithfulness that the circuit shown loses as each node leaves it.",
    "copies": "Copies of the subject with random weights, scored like the subject and held against the circuit that "
    "they do not have.",
    "overlap": "Two tasks' scores of nodes: shared among the n best of each (Jaccard) and rank correlation, beside "
    "their means over permutations within layers, and the share of those that reach as much.",
    "crossed": "What is left of each task (faithfulness) without a circuit's edges.",
}


def present(found: Found) -> Result:
    """Put the result together."""
    frames = {name: pd.DataFrame(found.tables.get(name, [])) for name in TABLES}
    nodes, edges = node_frame(found), edge_frame(found)
    result = Result()
    add_metrics(result, found, frames)
    result.add_section("how-to-read", "text", reading(found, frames), "What was done, and how far to trust it.")
    add_figures(result, found, frames)
    result.add_table(
        "nodes",
        nodes,
        description="Scores of every head and MLP by each method (mean over examples; discrete SAE: over "
        "autoencoders), and its rank by size of score. known: whether it is of the known circuit; role: what is "
        "known of it.",
    )
    if len(edges):
        result.add_table("edges", edges, description=f"The {len(edges)} edges with the largest scores, best first.")
    for name, description in TABLES.items():
        if len(frames[name]):
            result.add_table(name, frames[name], description=description)
    for method, scores in found.scores.items():
        if scores.edges is not None:
            data = xr.DataArray(
                scores.edge_mean,
                {"source": list(found.graph.sources), "destination": list(found.graph.destinations)},
                ["source", "destination"],
            )
            result.add_array(
                f"edges.{method}", data, description="what the metric loses without the edge, as estimated"
            )
        if scores.pairs is not None:
            heads = [found.graph.sources[at] for at in found.graph.head_sources]
            data = xr.DataArray(scores.pairs.mean(axis=0), {"head": heads, "other": heads}, ["head", "other"])
            result.add_array(f"pairs.{method}", data, description="pairs of codes on positive examples only")
    add_files(result, found)
    return result


def node_frame(found: Found) -> pd.DataFrame:
    """Return one row for each head and MLP."""
    graph, known = found.graph, found.known
    columns: dict[str, Any] = {"node": graph.sources[1:], "layer": layers(graph)[1:]}
    if known is not None:
        columns["known"] = known.nodes[1:]
        columns["role"] = [known.roles.get(name, "") for name in graph.sources[1:]]
    for method, scores in found.scores.items():
        mean = scores.node_mean[1:]
        columns[method] = mean
        columns[f"{method} rank"] = pd.Series(np.abs(mean)).rank(ascending=False, method="min").to_numpy()
    frame = pd.DataFrame(columns)
    main = found.shown_by or next(iter(found.scores))
    return frame.sort_values(f"{main} rank", kind="stable", ignore_index=True)


def edge_frame(found: Found) -> pd.DataFrame:
    """Return the edges with the largest scores by the method that is shown, with the others' scores."""
    graph, known = found.graph, found.known
    if found.shown_by is None:
        return pd.DataFrame()
    main = found.scores[found.shown_by].edge_mean
    places = np.argwhere(graph.real)
    places = places[np.argsort(-np.abs(main[tuple(places.T)]), kind="stable")][:MOST_ROWS]
    at = tuple(places.T)
    columns: dict[str, Any] = {
        "source": [graph.sources[source] for source in at[0]],
        "destination": [graph.destinations[destination] for destination in at[1]],
    }
    if known is not None:
        columns["known"] = known.edges[at]
        columns["structural"] = known.structural[at]
    columns |= {method: each.edge_mean[at] for method, each in found.scores.items() if each.edges is not None}
    if found.circuit is not None:
        columns["in circuit"] = found.circuit[at]
    return pd.DataFrame(columns)


def add_metrics(result: Result, found: Found, frames: dict[str, pd.DataFrame]) -> None:
    """Add areas against the known circuit, faithfulness, and the negative control."""
    for _, row in frames["truth"].iterrows():
        kind = str(row["units"]).replace("-", "_")
        known = {"lo": row["lo"], "hi": row["hi"]} if row["lo"] <= row["hi"] else {}
        over = "autoencoders" if row["method"] == "discrete-sae" else "examples"
        result.add_metric(
            f"auc.{kind}.{row['method']}",
            row["auc"],
            description=f"area under the ROC curve of {row['method']}'s {row['units']} against the known circuit, "
            f"{row['n_true']} of {row['n']}, ties counting one half; 95 % interval over {over}",
            **known,
        )
    gap = found.ends.gap
    result.add_metric(
        "metric.gap",
        gap.value,
        description=f"{found.pairs.metric}, mean over examples, of the whole subject less everything ablated; two "
        "standard errors to either side",
        lo=gap.lo,
        hi=gap.hi,
    )
    circuits = frames["circuits"]
    if len(circuits):
        for name in ("shown", "known", "random edges"):
            rows = circuits[(circuits["circuit"] == name) & (circuits["ablation"] == "resample")]
            for _, row in rows.iterrows():
                result.add_metric(
                    f"faithfulness.{name.replace(' ', '_')}",
                    row["faithfulness"],
                    description=f"what the circuit ({name}, {row['edges']} edges) does of the task on held-out "
                    f"examples; its complement does {row['complement']:.3f}; {OVER}",
                    lo=row["lo"],
                    hi=row["hi"],
                )
    for _, row in frames["areas"].iterrows():
        meaning = "under faithfulness" if row["area"] == "CPR" else "under the distance of faithfulness from 1"
        result.add_metric(
            f"{row['area'].lower()}.{row['method']}",
            row["value"],
            description=f"area {meaning}, edges by {row['method']}; {OVER}",
            lo=row["lo"],
            hi=row["hi"],
        )
    copies = frames["copies"]
    if len(copies):
        mean, lo, hi = over_copies(copies)
        result.add_metric(
            "negative_control",
            mean,
            description=f"mean area of nodes over all methods and {copies['copy'].nunique()} copies with random weights"
            "; 95 % interval over copies (Student's), which should contain 0.5",
            lo=lo,
            hi=hi,
        )
    elif len(frames["areas"]):
        areas = frames["areas"]
        (value,) = areas[(areas["method"] == "random") & (areas["area"] == "CMD")]["value"]
        result.add_metric(
            "negative_control",
            value,
            description="CMD of random scores: what a method must lie below to have found anything",
        )


def over_copies(copies: pd.DataFrame) -> tuple[float, float | None, float | None]:
    """Return the mean area of nodes over copies with random weights, and its interval where there are several.

    Methods look at the same copies, so a copy counts once, by its mean over methods.
    """
    each = copies[copies["units"] == "nodes"].groupby("copy")["auc"].mean()
    mean, n = float(each.mean()), len(each)
    if n < 2:
        return mean, None, None
    half = float(stdtrit(n - 1, 0.975) * each.std(ddof=1) / n**0.5)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def add_figures(result: Result, found: Found, frames: dict[str, pd.DataFrame]) -> None:
    """Add the figures."""
    graph, known = found.graph, found.known
    if found.circuit is not None and found.shown_by is not None:
        scores = found.scores[found.shown_by].edge_mean
        n = int(found.circuit.sum())
        told = "" if n <= MOST_EDGES else f", of which the {MOST_EDGES} strongest are drawn"
        colours = "" if known is None else " Green: of the known circuit; red: not; dashed outline: missed."
        result.add_figure(
            "circuit",
            draw_circuit(graph, found.circuit, scores, known),
            description=f"The circuit by {found.shown_by}: {n} edges{told}, from early layers on the left to the "
            f"logits. Width: size of score; dashed: below 0, as of an edge that works against the answer.{colours}",
        )
    if len(frames["truth"]):
        result.add_figure(
            "truth",
            truth_figure(frames["truth"], frames["copies"]),
            description="How well scores tell the known circuit. Grey bars: where 95 % of areas lie after labels were "
            "exchanged among units of a kind; crosses: copies of the subject with random weights.",
        )
    framed = "" if known is None else " Framed: of the known circuit; dotted: shadows, which copy what nothing reads."
    result.add_figure(
        "nodes",
        nodes_figure(graph, {method: each.node_mean for method, each in found.scores.items()}, known),
        description=f"Scores of nodes by method: what the metric ({found.pairs.metric}) loses without the node; "
        f"discrete SAE: codes that occur on the task only.{framed}",
    )
    if len(frames["curve"]):
        result.add_figure(
            "curve",
            curve_figure(frames["curve"], [*found.scores, "random"]),
            description="What circuits of each size do on examples that their scores did not see; 1 is the whole "
            f"subject, 0 what it does with everything ablated. Bands: {OVER}.",
        )
    if len(frames["minimality"]):
        roles = {} if known is None else known.roles
        result.add_figure(
            "minimality",
            minimality_figure(frames["minimality"], roles),
            description=f"What the circuit loses as each of its nodes leaves it; {OVER}.",
        )


def add_files(result: Result, found: Found) -> None:
    """Add the circuit as JSON and GraphML."""
    if found.circuit is None or found.shown_by is None:
        return
    scores = found.scores[found.shown_by]
    about = {
        "subject": found.subject.address,
        "task": found.task.address,
        "method": found.shown_by,
        "metric": found.pairs.metric,
    }
    record = circuit_record(found.graph, found.circuit, scores.edge_mean, scores.node_mean, found.known, about)
    result.add_file("circuit.json", to_json(record), description="the circuit shown: nodes and edges with their scores")
    result.add_file(
        "circuit.graphml", to_graphml(record, found.graph), description="the same for networkx, Gephi and yEd"
    )
