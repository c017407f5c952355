"""What a scene of `zoo:shapes-clip` is: objects with their attributes, and a background."""

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
SIZE = 72  # pixels of a side
GRID = 3  # places of a side
STEP = 16  # pixels from a place to the next: two patches of 8, so that each place lies alike on the patches
JITTER = 1.0  # pixels
RADII = ((10.0, 11.5), (14.5, 16.5))  # pixels, small and large


def far(one: int, other: int) -> bool:
    """Return whether two places lie two rows or two columns apart: objects there hide little of each other."""
    return max(abs(a - b) for a, b in zip(divmod(one, GRID), divmod(other, GRID), strict=True)) >= 2


APART = [pair for pair in product(range(GRID * GRID), repeat=2) if far(*pair)]
CORNERS = 0, GRID - 1, GRID * (GRID - 1), GRID * GRID - 1  # places

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
        One, two or four, at different places.
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
        """Return the attributes of its one or two objects, int64 [2, attribute], -1 where there is no second one."""
        found = np.full((2, len(ATTRIBUTES)), -1, np.int64)
        for row, thing in zip(found, self.things, strict=False):
            row[:] = [getattr(thing, name) for name in ATTRIBUTES]
        return found


def draw_thing(rng: np.random.Generator, combination: Combination, position: int) -> Thing:
    """Draw what the attributes leave open."""
    size = int(rng.integers(len(RADII)))
    row, column = divmod(position, GRID)
    middle = SIZE / 2 - STEP * (GRID // 2)  # of the first row and column
    shift = rng.uniform(-JITTER, JITTER, 2)
    turn, *start = rng.uniform((0.5, 0, 0), (1.1, 8.0, 8.0))
    red, green, blue = rng.uniform(-0.05, 0.05, 3)
    return Thing(
        *combination,
        position,
        size,
        radius=float(rng.uniform(*RADII[size])),
        centre=(float(middle + column * STEP + shift[0]), float(middle + row * STEP + shift[1])),
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
    """Draw scenes with every combination equally likely, and every place (with two objects, every pair `APART`).

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
        two = rng.random() < two_share
        places = APART[int(rng.integers(len(APART)))] if two else rng.integers(GRID * GRID, size=1)
        kinds = [(first, int(places[0]))]
        if two:
            second = first
            while second[0] == first[0] or second[1] == first[1]:
                second = of[int(rng.integers(len(of)))]
            kinds.append((second, int(places[1])))
        yield draw_scene(rng, kinds)


def draw_crowd(rng: np.random.Generator, of: Sequence[Combination]) -> Scene:
    """Draw a scene of four objects, one in each corner, of four shapes and four colours."""
    drawn: list[Combination] = []
    while len(drawn) < len(CORNERS):
        one = of[int(rng.integers(len(of)))]
        if all(one[0] != other[0] and one[1] != other[1] for other in drawn):
            drawn.append(one)
    places = rng.permutation(CORNERS)
    return draw_scene(rng, [(one, int(place)) for one, place in zip(drawn, places, strict=True)])
