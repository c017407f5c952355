"""The circuit of a planted subject, read off the designs of its heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from workbench.zoo.planted import CONSTANT, D_HEAD, D_MODEL, N_CONTEXT, N_FILLERS, N_NAMES, OF_INPUT, Recipe
from workbench.zoo.planted_heads import design

PARAMETERS_PER_HEAD = 4 * D_MODEL * D_HEAD
ABOUT = {
    "induction": "constructed: A B ... A -> B by a previous-token and an induction head",
    "hops": "constructed: A B, B C, C D ... A -> D by a previous-token head and three hops",
    "ioi": "constructed: IO and S, S again -> IO by duplicate-token, inhibition and name-mover heads",
}


@dataclass(frozen=True)
class Truth:
    """The circuit of a planted subject, by the names of its graph.

    Attributes
    ----------
    heads : tuple of str
        ``a1.h3``, in order.
    roles : dict of str to str
        What every head does, distractors and shadows included.
    edges : frozenset of (str, str)
        Source and destination of what carries the task's content: it differs between clean and corrupted prompts.
    structural : frozenset of (str, str)
        Edges that carry positions and constants alone: needed, but the same in both prompts, so in neither class.
    """

    heads: tuple[str, ...]
    roles: dict[str, str]
    edges: frozenset[tuple[str, str]]
    structural: frozenset[tuple[str, str]]


def truth(name: str) -> Truth:
    """Return the circuit of a planted subject, from its design.

    Parameters
    ----------
    name : str
        ``planted-ioi-3``, with or without ``zoo:``.

    Raises
    ------
    UserError
        For a name that is no planted subject.
    """
    found = design(Recipe.of(name.removeprefix("zoo:")))
    roles = {f"a{layer}.h{head}": each.role for (layer, head), each in found.heads.items()}
    true = {f"a{layer}.h{head}": each for (layer, head), each in found.heads.items() if each.is_true}
    edges: set[tuple[str, str]] = set()
    structural: set[tuple[str, str]] = set()
    writers = {"input": OF_INPUT} | {at: each.blocks("write") for at, each in true.items()}
    for at, each in true.items():
        sides: dict[str, Literal["query", "key", "read"]] = {"q": "query", "k": "key", "v": "read"}
        for which, side in sides.items():
            for source, written in writers.items():
                carried = each.blocks(side) & written
                if carried and source != at:
                    (structural if carried <= CONSTANT else edges).add((source, f"{at}<{which}>"))
        if "O" in each.blocks("write"):
            edges.add((at, "logits"))
    return Truth(tuple(true), roles, frozenset(edges), frozenset(structural))


def planted_record(name: str) -> dict[str, Any]:
    """Return what `workbench zoo list` says of a planted subject."""
    recipe = Recipe.of(name)
    found, heads = design(recipe), truth(name).heads
    n_tokens = 2 + N_NAMES + N_FILLERS
    shadows = sum(each.role.startswith("shadow") for each in found.heads.values())
    return {
        "name": f"zoo:{name}",
        "about": f"{ABOUT[recipe.task]}; any other seed for the 0",
        "n_parameters": len(found.heads) * PARAMETERS_PER_HEAD + (2 * n_tokens + N_CONTEXT) * D_MODEL,
        "summary": f"{len(heads)} true heads of {len(found.heads)}" + f", {shadows} shadows" * bool(shadows),
    }
