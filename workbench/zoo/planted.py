"""`zoo:planted-TASK-SEED`: attention-only subjects whose circuit is known, because their weights are constructed.

A planted subject is a list of head designs. Each head is a sum of rank-one terms over named directions: which
query direction looks for which key direction, and which direction that it reads is written where. The weights
(`workbench.zoo.planted_weights`) and the true circuit both follow from the designs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from workbench.errors import UserError, nearest

Task = Literal["induction", "hops", "ioi"]

N_NAMES, N_FILLERS, N_CONTEXT, N_JUNK = 16, 12, 16, 24
BLOCKS = {
    "one": 1, "bos": 1, "end": 1, "isname": 1, "N": N_NAMES, "F": N_FILLERS, "P": N_CONTEXT,
    "S1": N_NAMES, "S2": N_NAMES, "S3": N_NAMES, "O": N_NAMES, "J": N_JUNK,
}  # fmt: skip
D_MODEL, D_HEAD = sum(BLOCKS.values()), 40
CONSTANT = {"one", "bos", "end", "isname", "P"}  # the same in a clean and a corrupted prompt
OF_INPUT = {*CONSTANT, "N", "F"}
SHARPNESS = 8.0  # attention of about 0.98 on the target
SHADOW_SHARE = 0.4
LAYERS, HEADS = (2, 6), (4, 8)
ADDRESS = re.compile(r"planted-(induction|hops|ioi)(-shadow)?-(0|[1-9][0-9]{0,8})(?:-beta([1-9][0-9]?))?")
LISTED = tuple(f"planted-{task}{shadow}-0" for task in get_args(Task) for shadow in ("", "-shadow"))

Vectors = np.ndarray  # [term, D_MODEL]


def is_planted(name: str) -> bool:
    """Return whether a name of the zoo is meant for a planted subject."""
    return name.startswith("planted-")


@dataclass(frozen=True)
class Recipe:
    """All that decides a planted subject.

    Attributes
    ----------
    task : "induction", "hops" or "ioi"
        What the true heads do.
    seed : int
        Of sizes, places, distractors, noise and rotations.
    shadows : bool
        Two in five of the other heads copy names too, to where nothing reads them.
    sharpness : float
        Factor of all attention scores (β): sharper attention leaves gradients less to go by.
    noise : float
        Dense Gaussian noise on every head's matrices, relative to their root mean square.
    """

    task: Task
    seed: int
    shadows: bool = False
    sharpness: float = SHARPNESS
    noise: float = 0.08

    @classmethod
    def of(cls, name: str) -> Recipe:
        """Read ``planted-TASK-SEED``, ``planted-TASK-shadow-SEED``, either with ``-betaB`` for a sharpness B.

        Raises
        ------
        UserError
            For a name that is none of these.
        """
        found = ADDRESS.fullmatch(name)
        if found is None:
            raise UserError(
                f"no zoo subject {name!r}; nearest: {nearest(name, LISTED)} (planted-TASK-SEED or "
                f"planted-TASK-shadow-SEED, TASK one of {', '.join(get_args(Task))}; -beta16 at the end: sharper)"
            )
        named, shadow, seed, beta = found.groups()
        task = next(each for each in get_args(Task) if each == named)
        return cls(task, int(seed), shadow is not None, float(beta) if beta else SHARPNESS)

    def rng(self, what: str) -> np.random.Generator:
        """Return the generator of one part of the construction; sharpness and noise change no other part."""
        parts = ["layout", "designs", "weights"]
        key = [self.seed, get_args(Task).index(self.task), int(self.shadows), parts.index(what)]
        return np.random.default_rng(key)


@dataclass(frozen=True)
class HeadDesign:
    """One head as rank-one terms.

    Attributes
    ----------
    role : str
        ``prev``, ``nm``, ... of a true head; ``distractor: ...`` or ``shadow: ...``.
    query, key : array [term, D_MODEL]
        A token with `query` looks for one with `key`.
    weight : array [term]
        How much; negative: looks away.
    read, write : array [term, D_MODEL]
        What is read there, and where it is written.
    """

    role: str
    query: Vectors
    key: Vectors
    weight: np.ndarray
    read: Vectors
    write: Vectors

    @property
    def is_true(self) -> bool:
        """Whether the head is part of the circuit."""
        return ":" not in self.role

    def blocks(self, what: Literal["query", "key", "read", "write"]) -> set[str]:
        """Names of the blocks in which a side of the head lies."""
        used = np.abs(getattr(self, what)).sum(axis=0)
        return {name for name in BLOCKS if used[span(name)].any()}


def span(block: str) -> slice:
    """Return where a block of the basis lies."""
    names = list(BLOCKS)
    start = sum(BLOCKS[name] for name in names[: names.index(block)])
    return slice(start, start + BLOCKS[block])


def directions(block: str) -> Vectors:
    """Return the unit vectors of a block [size, D_MODEL]."""
    return np.eye(D_MODEL)[span(block)]


@dataclass(frozen=True)
class Design:
    """All heads of a planted subject.

    Attributes
    ----------
    n_layers, n_heads : int
        Sizes.
    heads : dict of (layer, head) to HeadDesign
        Every head.
    """

    n_layers: int
    n_heads: int
    heads: dict[tuple[int, int], HeadDesign]
