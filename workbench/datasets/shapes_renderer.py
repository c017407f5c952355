"""From a scene to pixels and to a mask of its objects; NumPy alone, the same picture for the same scene.

Each shape is the set of points where a function is below 0: about the distance to its edge, in units of its radius.
The same numbers give the edge its smoothness and the mask its pixels, so that the two always fit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.shapes_scenes import ATTRIBUTES, SIZE, Scene, Thing

Floats = NDArray[Any]  # float32 mostly; what NumPy makes of a step in between does not matter

COLOURS = np.array(
    [
        (0.88, 0.08, 0.08),  # red
        (1.00, 0.52, 0.05),  # orange
        (0.97, 0.92, 0.10),  # yellow
        (0.08, 0.62, 0.15),  # green
        (0.05, 0.85, 0.88),  # cyan
        (0.10, 0.20, 0.92),  # blue
        (0.55, 0.10, 0.72),  # purple
        (1.00, 0.55, 0.80),  # pink
    ],
    np.float32,
)
SHADE = 0.35  # what a texture's dark parts keep of the colour
PERIOD = 5.0  # of a texture, in pixels
REACH = 1.3  # no shape reaches further from its centre, in radii
NOISE = 0.02  # standard deviation of the background's pixels


def circle(x: Floats, y: Floats) -> Floats:
    """See the module: x to the right, y downwards, in radii."""
    distance: Floats = np.hypot(x, y) - 1
    return distance


def square(x: Floats, y: Floats) -> Floats:
    """See `circle`."""
    distance: Floats = np.maximum(np.abs(x), np.abs(y)) - 0.88
    return distance


def triangle(x: Floats, y: Floats) -> Floats:
    """See `circle`; it points upwards."""
    slant = (1.9 * np.abs(x) - 1.1 * (y + 1.15)) / np.hypot(1.9, 1.1)
    distance: Floats = np.maximum(slant, y - 0.75)
    return distance


def star(x: Floats, y: Floats) -> Floats:
    """See `circle`; it has five points."""
    tenth, outer, inner = np.pi / 5, 1.2, 0.52
    angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)  # folded onto half of a point
    r = np.hypot(x, y)
    edge = np.array([inner * np.cos(tenth) - outer, inner * np.sin(tenth)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    distance: Floats = normal[0] * (r * np.cos(angle) - outer) + normal[1] * r * np.sin(angle)
    return distance


def cross(x: Floats, y: Floats) -> Floats:
    """See `circle`."""
    x, y = np.abs(x), np.abs(y)
    distance: Floats = np.maximum(np.minimum(x, y) - 0.36, np.maximum(x, y) - 1.05)
    return distance


def ring(x: Floats, y: Floats) -> Floats:
    """See `circle`."""
    distance: Floats = np.abs(np.hypot(x, y) - 0.72) - 0.33
    return distance


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    each.__name__: each for each in (circle, square, triangle, star, cross, ring)
}


def texture(name: str, x: Floats, y: Floats) -> Floats:
    """Return how dark a texture is, 0 to 1, at points in pixels."""
    if name == "plain":
        return np.zeros_like(x)
    if name == "striped":
        wave = np.cos(2 * np.pi / PERIOD * x)
    elif name == "checkered":
        wave = 2 * np.cos(np.pi / (0.75 * PERIOD) * x) * np.cos(np.pi / (0.75 * PERIOD) * y)
    else:  # dotted
        from_dot = np.hypot(x - PERIOD * np.round(x / PERIOD), y - PERIOD * np.round(y / PERIOD))
        wave = 1.6 * (1.5 - from_dot)
    dark: Floats = np.clip(0.5 + wave, 0, 1)
    return dark


@cache
def noise() -> Floats:
    """Return a field of noise [2 * SIZE, 2 * SIZE, 3], the same in every process."""
    field = np.random.default_rng(0).normal(0, NOISE, (2 * SIZE, 2 * SIZE, 3))
    return field.astype(np.float32)


def background(scene: Scene) -> Floats:
    """Return the picture before objects are put into it, float32 [height, width, 3]."""
    across = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    slope = scene.slope[0] * across[None, :] + scene.slope[1] * across[:, None]
    x, y = scene.grain
    picture: Floats = np.array(scene.level, np.float32) + slope[:, :, None] + noise()[y : y + SIZE, x : x + SIZE]
    return picture.astype(np.float32)


def draw(thing: Thing, picture: Floats, mask: NDArray[np.uint8], number: int) -> None:
    """Put an object into a picture [height, width, 3] and its number into a mask [height, width]."""
    reach = REACH * thing.radius + 1
    (left, right), (top, bottom) = (
        (max(0, int(c - reach)), min(SIZE, int(c + reach) + 1)) for c in thing.centre
    )  # fmt: skip
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - thing.centre[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - thing.centre[1])
    u, v = turned(x / thing.radius, y / thing.radius, thing.angle)
    cover = np.clip(0.5 - SHAPES[ATTRIBUTES["shape"][thing.shape]](u, v) * thing.radius, 0, 1)
    turn, *start = thing.grain
    u, v = turned(x, y, turn)
    dark = texture(ATTRIBUTES["texture"][thing.texture], u + np.float32(start[0]), v + np.float32(start[1]))
    colour = np.clip(COLOURS[thing.colour] + np.array(thing.tint, np.float32), 0, 1)
    paint = colour * (1 - (1 - SHADE) * dark)[:, :, None]
    part = picture[top:bottom, left:right]
    part += cover[:, :, None] * (paint - part)
    mask[top:bottom, left:right][cover >= 0.5] = number


def turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Return coordinates, x [1, width] and y [height, 1], in a frame that is turned by an angle."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def render(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the picture of a scene and where its objects are.

    Returns
    -------
    uint8 array [height, width, 3]
        Red, green, blue.
    uint8 array [height, width]
        0 for the background, 1 and 2 for the objects: the number of the one that covers most of the pixel's middle.
    """
    picture, mask = background(scene), np.zeros((SIZE, SIZE), np.uint8)
    for number, thing in enumerate(scene.things, start=1):
        draw(thing, picture, mask, number)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8), mask
