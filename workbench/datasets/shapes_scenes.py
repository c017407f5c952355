"""What a scene of `zoo:shapes-clip` is: one or two objects with their attributes, and a background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "texture": ("plain", "striped", "dotted", "checkered"),
    "position": (
        "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
    ),
    "size": ("small", "large"),
}  # fmt: skip
MAIN = ("shape", "colour", "texture", "position")  # size is shown and said too, and tested by nobody
SIZE = 72  # pixels of a side: a place is 3 x 3 patches of 8, and each place lies alike on the patches
GRID = 3  # places of a side
JITTER = 1.0  # pixels
RADII = ((8.2, 9.0), (10.0, 11.0))  # pixels, small and large


Combination = tuple[int, int, int]  # shape, colour, texture
Kind = tuple[Combination, int]  # and a place


def is_held_out(combination: Combination) -> bool:
    """Return whether `zoo:shapes-clip` was never shown a shape in a colour and a texture.

    An eighth of them: every shape and every colour equally often, and each pair of a shape and a colour, a shape and a
    texture, or a colour and a texture is shown in other combinations.
    """
    shape, colour, texture = combination
    return (shape + colour + 2 * texture) % 8 == 3


def combinations(held_out: bool | None = None) -> list[Combination]:
    """Return all (shape, colour, texture), or only those held out, or only the others."""
    sizes = [range(len(ATTRIBUTES[name])) for name in MAIN[:3]]
    every: list[Combination] = [(s, c, t) for s, c, t in product(*sizes)]
    return [each for each in every if held_out is None or is_held_out(each) == held_out]


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes
    ----------
    shape, colour, texture, position, size : int
        Which of `ATTRIBUTES`.
    radius : float
        In pixels.
    centre : (float, float)
        In pixels from the left and from the top.
    angle : float
        By which the shape is turned, in radians.
    grain : (float, float, float)
        Of the texture: its angle, and where its pattern starts, in pixels.
    tint : (float, float, float)
        Added to red, green and blue.
    """

    shape: int
    colour: int
    texture: int
    position: int
    size: int
    radius: float
    centre: tuple[float, float]
    angle: float
    grain: tuple[float, float, float]
    tint: tuple[float, float, float]

    @property
    def combination(self) -> Combination:
        """Shape, colour and texture."""
        return self.shape, self.colour, self.texture

    @property
    def words(self) -> dict[str, str]:
        """The name of each attribute's value."""
        return {name: names[getattr(self, name)] for name, names in ATTRIBUTES.items()}


@dataclass(frozen=True)
class Scene:
    """Objects before a background; a later object hides an earlier one.

    Attributes
    ----------
    things : tuple of Thing
        One or two, at different places.
    level : (float, float, float)
        Red, green and blue of the background, about grey.
    slope : (float, float)
        By how much it grows lighter from left to right and from top to bottom.
    grain : (int, int)
        Where its noise is cut from.
    """

    things: tuple[Thing, ...]
    level: tuple[float, float, float]
    slope: tuple[float, float]
    grain: tuple[int, int]

    def claims(self) -> np.ndarray:
        """Return the attributes of its objects, int64 [2, attribute], -1 where there is no second one."""
        found = np.full((2, len(ATTRIBUTES)), -1, np.int64)
        for row, thing in zip(found, self.things, strict=False):
            row[:] = [getattr(thing, name) for name in ATTRIBUTES]
        return found


def draw_thing(rng: np.random.Generator, combination: Combination, position: int) -> Thing:
    """Draw what the attributes leave open."""
    size = int(rng.integers(len(RADII)))
    row, column = divmod(position, GRID)
    cell = SIZE / GRID
    shift = rng.uniform(-JITTER, JITTER, 2)
    turn, *start = rng.uniform((0.5, 0, 0), (1.1, 8.0, 8.0))
    red, green, blue = rng.uniform(-0.05, 0.05, 3)
    return Thing(
        *combination,
        position,
        size,
        radius=float(rng.uniform(*RADII[size])),
        centre=(float((column + 0.5) * cell + shift[0]), float((row + 0.5) * cell + shift[1])),
        angle=float(rng.uniform(-0.12, 0.12)),
        grain=(float(turn), float(start[0]), float(start[1])),
        tint=(float(red), float(green), float(blue)),
    )


def draw_scene(rng: np.random.Generator, kinds: Sequence[Kind]) -> Scene:
    """Draw a scene of objects of given kinds."""
    drawn = tuple(draw_thing(rng, *kind) for kind in kinds)
    red, green, blue = rng.uniform(0.45, 0.9) + rng.uniform(-0.05, 0.05, 3)
    right, down = rng.uniform(-0.08, 0.08, 2)
    x, y = rng.integers(SIZE, size=2)
    return Scene(drawn, (float(red), float(green), float(blue)), (float(right), float(down)), (int(x), int(y)))


def draw_scenes(
    rng: np.random.Generator, n_scenes: int, of: Sequence[Combination], two_share: float = 0.0
) -> Iterator[Scene]:
    """Draw scenes with every combination and every place equally likely.

    Parameters
    ----------
    rng : numpy Generator
        Decides everything.
    n_scenes : int
        How many.
    of : sequence of (shape, colour, texture)
        What an object may be.
    two_share : float
        Share of scenes with two objects, which differ in shape and in colour and stand at different places.
    """
    for _ in range(n_scenes):
        first = of[int(rng.integers(len(of)))]
        places = rng.choice(GRID * GRID, 2, replace=False)
        kinds = [(first, int(places[0]))]
        if rng.random() < two_share:
            second = first
            while second[0] == first[0] or second[1] == first[1]:
                second = of[int(rng.integers(len(of)))]
            kinds.append((second, int(places[1])))
        yield draw_scene(rng, kinds)
