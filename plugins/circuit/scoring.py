"""Scores of nodes and edges by each method, by example or by autoencoder, kept as they are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit import CircuitConfig, Method
from workbench.plugins.circuit.attribution import attribute
from workbench.plugins.circuit.discrete_sae import SaeSettings, discrete_codes, node_via_pairs
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.head_outputs import Tokens, mean_head_outputs
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import patch_nodes
from workbench.plugins.circuit.tasks.task import Prompts
from workbench.subjects.protocol import Subject

if TYPE_CHECKING:
    from workbench.context import Context

GROUPS = 8  # of examples: scores of edges are kept, and resampled, by them
CAUSAL: tuple[Method, ...] = ("noising", "denoising", "eap", "eap-ig")
WITH_EDGES: tuple[Method, ...] = ("eap-ig", "eap")  # the better one first
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scores:
    """What one method gave.

    Attributes
    ----------
    method : str
        Its name.
    nodes : array [sample, source]
        Scores of nodes, by example, or by autoencoder; NaN where the method gives none (the input; MLPs, by the
        discrete SAE).
    edges : array [group, source, destination] or None
        Scores of edges, means over groups of examples.
    weights : array [group] or None
        Examples of each group.
    pairs : array [sample, head, head] or None
        Pairs of codes, by autoencoder.
    via : array [sample, source] or None
        Heads' scores by their pairs, by autoencoder.
    facts : mapping
        What else there is to say, a number each.
    """

    method: Method
    nodes: np.ndarray
    edges: np.ndarray | None = None
    weights: np.ndarray | None = None
    pairs: np.ndarray | None = None
    via: np.ndarray | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def node_mean(self) -> np.ndarray:
        """Mean scores of nodes [source]."""
        return np.asarray(self.nodes.mean(axis=0))

    @property
    def edge_mean(self) -> np.ndarray:
        """Mean scores of edges [source, destination]."""
        assert self.edges is not None
        assert self.weights is not None
        return np.asarray(np.tensordot(self.weights / self.weights.sum(), self.edges, axes=1))


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return arrays that a file holds; made, and written whole or not at all, where there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **make())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    with np.load(path, allow_pickle=False) as held:
        return {key: held[key] for key in held.files}


def score(
    context: Context,
    subject: Subject,
    graph: Graph,
    method: Method,
    pairs: Pairs,
    prompts: Prompts,
    folder: Path,
    advance: Callable[[], object],
) -> Scores:
    """Score by one method, going on with the samples that `folder` does not hold."""
    config: CircuitConfig = context.config
    if method == "discrete-sae":
        return score_codes(context, subject, graph, prompts, folder, advance)
    groups = groups_of(len(pairs))
    found = []
    for number, at in enumerate(groups):
        group = pairs.take(at)
        found.append(
            kept(folder / f"{number:02d}.npz", lambda group=group: causal(config, subject, graph, method, group))  # type: ignore[misc]
        )
        advance()
    nodes = np.concatenate([each["nodes"] for each in found])
    edges = np.stack([each["edges"] for each in found]) if "edges" in found[0] else None
    nodes[:, 0] = np.nan  # the input is the whole difference, and no part to be found
    return Scores(method, nodes, edges, np.array([len(at) for at in groups], dtype=np.float64))


def groups_of(n: int) -> list[np.ndarray]:
    """Part examples into groups, as equal as may be."""
    return np.array_split(np.arange(n), min(n, GROUPS))


def causal(config: CircuitConfig, subject: Subject, graph: Graph, method: Method, pairs: Pairs) -> Arrays:
    """Score some examples by patching or attribution."""
    if method == "noising" or method == "denoising":
        nodes = patch_nodes(subject, pairs, graph, direction=method, batch_size=config.batch_size)
        return {"nodes": nodes}
    assert method != "discrete-sae"
    found = attribute(
        subject, pairs, graph, method=method, steps=config.steps, rule=config.rule, batch_size=config.batch_size
    )
    return {"nodes": found.nodes, "edges": found.edges}


def score_codes(
    context: Context,
    subject: Subject,
    graph: Graph,
    prompts: Prompts,
    folder: Path,
    advance: Callable[[], object],
) -> Scores:
    """Score heads by the codes of several autoencoders."""
    config: CircuitConfig = context.config
    settings = sae_settings(config, len(prompts.pairs) + len(prompts.negatives))
    outputs: list[np.ndarray] = []  # made for the first autoencoder that is not there yet

    def train(seed: int) -> Arrays:
        if not outputs:
            outputs.append(head_outputs(subject, prompts, config.batch_size))
        rngs = [context.rng(f"discrete SAE {seed}")]
        try:
            codes = discrete_codes(outputs[0], len(prompts.pairs), rngs, settings)
        except ValueError as error:
            raise UserError(f"discrete-sae: {error}") from error
        pairs = codes.pair_scores()
        return {
            "nodes": codes.node_scores(share=config.sae.share)[0],
            "pairs": pairs[0],
            "via": node_via_pairs(pairs)[0],
            "silent": codes.silent,
            "unexplained": codes.unexplained,
        }

    found = []
    for seed in range(config.sae.seeds):
        found.append(kept(folder / f"{seed:02d}.npz", lambda seed=seed: train(seed)))  # type: ignore[misc]
        advance()
    nodes, via = (np.full((len(found), len(graph.sources)), np.nan) for _ in range(2))
    for values, key in ((nodes, "nodes"), (via, "via")):
        values[:, graph.head_sources] = [each[key] for each in found]
    facts = {key: float(np.mean([each[key] for each in found])) for key in ("silent", "unexplained")}
    pairs = np.stack([each["pairs"] for each in found])
    return Scores("discrete-sae", nodes, pairs=pairs, via=via, facts=facts)


def head_outputs(subject: Subject, prompts: Prompts, batch_size: int) -> np.ndarray:
    """Return mean outputs of heads on positive, then negative prompts [example, head, d_model]."""
    both: tuple[Tokens, Tokens] = prompts.positives, prompts.negatives
    return np.concatenate([mean_head_outputs(subject, tokens, batch_size) for tokens in both])


def sae_settings(config: CircuitConfig, n_prompts: int) -> SaeSettings:
    """Return how autoencoders are trained; on fewer prompts than asked for where there are no more."""
    sae = config.sae
    return SaeSettings(
        latents=sae.latents,
        penalty=sae.penalty,
        steps=sae.steps,
        lr=sae.lr,
        train_examples=min(sae.train_examples, n_prompts),
        scaled=sae.scaled,
    )
