"""What scores would be worth that know nothing: labels permuted among their like, and copies of the subject with
random weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped

from workbench.errors import UserError
from workbench.plugins.circuit.graph import Graph
from workbench.subjects.protocol import Subject

ROLES = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")


def node_kinds(graph: Graph) -> Int[np.ndarray, " source"]:
    """Return a number for each kind of source: input, head, MLP."""
    return np.array(["iam".index(name[0]) for name in graph.sources])


def layers(graph: Graph) -> Int[np.ndarray, " source"]:
    """Return each source's layer, and -1 for the input."""
    per_layer = np.repeat(np.arange(graph.n_layers), graph.per_layer)
    return np.append(-1, per_layer)


def edge_kinds(graph: Graph) -> Int[np.ndarray, "source destination"]:
    """Return a number for each pair of kinds: of the source, and of the destination (q, k, v, MLP, logits)."""
    ends = [name[-2] if name.endswith(">") else name[0] for name in graph.destinations]
    of_end = np.array(["qkvml".index(end) for end in ends])
    return np.asarray(node_kinds(graph)[:, None] * 5 + of_end)


def permuted_within(
    labels: Shaped[np.ndarray, " units"], kinds: Int[np.ndarray, " units"], rng: np.random.Generator
) -> Shaped[np.ndarray, " units"]:
    """Exchange labels, or scores, among units of the same kind at random."""
    out = labels.copy()
    for kind in np.unique(kinds):
        at = np.flatnonzero(kinds == kind)
        out[at] = labels[rng.permutation(at)]
    return out


def random_copy(subject: Subject, rng: np.random.Generator) -> Subject:
    """Return a copy of a subject whose heads and MLPs have random weights, each matrix as large as it was.

    Embeddings, norms, biases and unembedding stay.

    Raises
    ------
    UserError
        If the subject cannot be copied, or gives its weights as copies, so that they cannot be changed.
    """
    try:
        other = copy.deepcopy(subject)
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"{subject.address} cannot be copied ({error})") from error
    for layer in range(subject.n_layers):
        for role in roles_of(subject, layer):
            weight = other.weights(role, layer)
            if weight is None or not weight.numel():
                continue
            size = float(weight.detach().float().pow(2).mean().sqrt())
            values = torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)) * size
            with torch.no_grad():
                weight.copy_(values.to(weight))
            if not torch.equal(other.weights(role, layer), weight):
                raise UserError(f"{subject.address} gives {role} of layer {layer} as a copy, which cannot be changed")
    return other


def roles_of(subject: Subject, layer: int) -> Sequence[str]:
    """Return the weights of heads and MLP that a layer has."""
    return [role for role in ROLES if subject.weight_or_none(role, layer) is not None]


def heads_matrix(graph: Graph, edges: Bool[np.ndarray, "source destination"]) -> Bool[np.ndarray, "head head"]:
    """Return which heads feed which, by any of query, key and value, heads by layer, then head."""
    heads = graph.head_sources
    between = edges.astype(int) @ graph.owners.astype(int)
    return np.asarray(between[np.ix_(heads, heads)] > 0)


def later_pairs(graph: Graph) -> Bool[np.ndarray, "head head"]:
    """Return the pairs of heads of which the second is in a later layer."""
    layer = np.repeat(np.arange(graph.n_layers), graph.n_heads)
    return np.asarray(layer[:, None] < layer[None])
