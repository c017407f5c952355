"""The head designs of planted subjects: the true ones of each task, and those that only look busy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.zoo.planted import (
    HEADS,
    LAYERS,
    N_CONTEXT,
    N_FILLERS,
    N_JUNK,
    SHADOW_SHARE,
    Design,
    HeadDesign,
    Recipe,
    Vectors,
    directions,
)

Terms = list[tuple[Vectors, Vectors, float]]  # queries and keys, one by one, and the weight of all


def design(recipe: Recipe) -> Design:
    """Place the task's heads at random increasing layers, and fill up with distractors, or shadows among them."""
    rng = recipe.rng("layout")
    true = TRUE_HEADS[recipe.task]()
    n_layers = int(rng.integers(max(LAYERS[0], len(true)), LAYERS[1] + 1))
    n_heads = int(rng.integers(HEADS[0], HEADS[1] + 1))
    layers = np.sort(rng.choice(n_layers, size=len(true), replace=False))
    heads = {(int(layer), int(rng.integers(n_heads))): each for layer, each in zip(layers, true, strict=True)}
    free = [(layer, head) for layer in range(n_layers) for head in range(n_heads) if (layer, head) not in heads]
    n_shadows = round(SHADOW_SHARE * len(free)) if recipe.shadows else 0
    shadowed = {free[i] for i in rng.choice(len(free), size=n_shadows, replace=False)}
    rng = recipe.rng("designs")
    for place in free:
        kinds = SHADOWS if place in shadowed else DISTRACTORS
        heads[place] = kinds[int(rng.integers(len(kinds)))](rng)
    return Design(n_layers, n_heads, dict(sorted(heads.items())))


def head(role: str, terms: Terms, read: Vectors, write: Vectors) -> HeadDesign:
    """Lay terms one below the other."""
    query, key = (np.concatenate([term[side] for term in terms]) for side in (0, 1))
    weight = np.concatenate([np.full(len(term[0]), term[2]) for term in terms])
    return HeadDesign(role, query, key, weight, read, write)


def match(query: str, key: str) -> tuple[Vectors, Vectors, float]:
    """Look for the key block's entry of the same number."""
    return directions(query), directions(key), 1.0


def rest(weight: float = 0.5) -> tuple[Vectors, Vectors, float]:
    """Look at the beginning where nothing matches; nothing is written from there."""
    return directions("one"), directions("bos"), weight


def back(offset: int) -> tuple[Vectors, Vectors, float]:
    """Look at the token some positions before."""
    return directions("P")[offset:], directions("P")[: N_CONTEXT - offset], 1.0


def not_itself() -> tuple[Vectors, Vectors, float]:
    """Look away from one's own position."""
    return directions("P"), directions("P"), -1.0


def everything(block: str) -> Vectors:
    """The sum of a block's directions [1, D_MODEL]."""
    return np.asarray(directions(block).sum(axis=0, keepdims=True))


# --- true heads ---------------------------------------------------------------------------------------------------
def previous() -> HeadDesign:
    """Only names look back; the gate keeps the filler after a name from carrying it too."""
    gate = (directions("isname"), directions("bos"), -1.0)
    return head("prev", [back(1), rest(1.5), gate], directions("N"), directions("S1"))


def induction() -> list[HeadDesign]:
    """A B ... A -> B."""
    return [previous(), head("ind", [match("N", "S1"), rest()], directions("N"), directions("O"))]


def hops() -> list[HeadDesign]:
    """A B, B C, C D ... A -> D."""
    return [
        previous(),
        head("hop1", [match("N", "S1"), rest()], directions("N"), directions("S2")),
        head("hop2", [match("S2", "S1"), rest()], directions("N"), directions("S3")),
        head("hop3", [match("S3", "S1"), rest()], directions("N"), directions("O")),
    ]


def ioi() -> list[HeadDesign]:
    """IO and S, S again, end -> IO: what is doubled is inhibited."""
    names = (directions("end"), directions("isname"), 1.0)
    inhibited = (directions("S2"), directions("N"), -1.0)
    return [
        head("dup", [match("N", "N"), not_itself(), rest()], directions("N"), directions("S1")),
        head("sinh", [(directions("end"), everything("S1"), 1.0), rest()], directions("S1"), directions("S2")),
        head("nm", [names, inhibited, rest()], directions("N"), directions("O")),
    ]


TRUE_HEADS: dict[str, Callable[[], list[HeadDesign]]] = {"induction": induction, "hops": hops, "ioi": ioi}


# --- heads that change nothing: they write junk only, and no true head reads it -------------------------------------
def junk(rng: np.random.Generator, n: int) -> Vectors:
    """Orthonormal directions [n, D_MODEL] of the junk block."""
    turned, _ = np.linalg.qr(rng.normal(size=(N_JUNK, N_JUNK)))
    return np.asarray(turned[:n] @ directions("J"))


def mixture(rng: np.random.Generator, n: int) -> Vectors:
    """Random unit vectors [n, D_MODEL] of fillers and positions."""
    both = np.concatenate([directions("F"), directions("P")])
    drawn = rng.normal(size=(n, len(both)))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True) @ both)


def filler_copy(rng: np.random.Generator) -> HeadDesign:
    """Copy the filler some positions back."""
    return head("distractor: filler copy", [back(int(rng.integers(1, 5)))], directions("F"), junk(rng, N_FILLERS))


def filler_match(rng: np.random.Generator) -> HeadDesign:
    """Look at the same filler seen before."""
    terms = [match("F", "F"), not_itself(), rest()]
    return head("distractor: filler match", terms, directions("F"), junk(rng, N_FILLERS))


def junk_reader(rng: np.random.Generator) -> HeadDesign:
    """Read junk of earlier heads, and write a little more of it.

    Weakly, and a part of it only: else junk would grow from layer to layer, and attention to it become so sharp that
    gradients along a path no longer add up.
    """
    terms = [(junk(rng, 8), junk(rng, 8), 0.25), rest()]
    return head("distractor: reads junk", terms, junk(rng, 4), junk(rng, 4))


def filler_mixture(rng: np.random.Generator) -> HeadDesign:
    """Look by random mixtures of filler and position, and read others."""
    terms = [(mixture(rng, 8), mixture(rng, 8), 1.0)]
    return head("distractor: mixture", terms, mixture(rng, N_FILLERS), junk(rng, N_FILLERS))


def shadow_by_position(rng: np.random.Generator) -> HeadDesign:
    """Copy the name some positions back, to where nothing reads it."""
    return head(
        "shadow: by position", [back(int(rng.integers(1, 5)))], directions("N"), junk(rng, len(directions("N")))
    )


def shadow_by_name(rng: np.random.Generator) -> HeadDesign:
    """Copy whatever names there are, to where nothing reads them."""
    terms = [(directions("one"), directions("isname"), 1.0)]
    return head("shadow: by name", terms, directions("N"), junk(rng, len(directions("N"))))


DISTRACTORS = (filler_copy, filler_match, junk_reader, filler_mixture)
SHADOWS = (shadow_by_position, shadow_by_name)
