"""Separability and ε-mixture against the published estimator written out, brute force, and known clouds."""

import numpy as np
import pytest

from workbench.probes.errors import ProbeError
from workbench.probes.planar import (
    QUARTER_ANGLES,
    mixture_index,
    mixture_sweep,
    separability_draws,
    separability_index,
)


def circle(rng, n):
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(n, 2))


def heptagon(rng, n):
    angle = 2 * np.pi * rng.integers(7, size=n) / 7
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.03 * rng.normal(size=(n, 2)) + 5


def mixture(rng, n):
    """Two lines: on each row one of two features."""
    value, which = rng.normal(size=n), rng.random(n) < 0.5
    return np.stack([value * which, value * ~which], 1)


def square(rng, n):
    return rng.uniform(size=(n, 2)) @ np.array([[0.8, 0.6], [-0.6, 0.8]])


CLOUDS = {each.__name__: each for each in (circle, heptagon, mixture, square)}


def published_separability(xy):
    """The least mutual information over 100 angles, by `np.histogram2d`, as the paper has it."""
    found = []
    for angle in np.linspace(0, 2 * np.pi, 100):
        turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        joint = np.histogram2d(turned[:, 0], turned[:, 1], bins=10)[0] / len(xy)
        apart = np.outer(joint.sum(1), joint.sum(0))
        at = joint > 0
        found.append((joint[at] * np.log(joint[at] / apart[at])).sum())
    return min(found)


def brute_mixture(xy, epsilon=0.1):
    best = 0.0
    for angle in np.linspace(0, np.pi, 181):
        p = xy @ [np.cos(angle), np.sin(angle)]
        z = p[:, None] - np.linspace(p.min(), p.max(), 300)
        best = max(best, float((np.abs(z) < epsilon * np.sqrt(np.square(z).mean(0))).mean(0).max()))
    return best


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("n", [7, 500])
def test_separability_is_the_published_number(name, n):
    xy = CLOUDS[name](np.random.default_rng(1), n)
    assert separability_index(xy).value == pytest.approx(published_separability(xy), abs=1e-12)


@pytest.mark.parametrize("name", CLOUDS)
def test_mixture_is_the_maximum_and_its_band_holds_so_many(name):
    xy = CLOUDS[name](np.random.default_rng(2), 400)
    found = mixture_index(xy)
    assert brute_mixture(xy) <= found.upper + 1e-12
    assert found.value >= brute_mixture(xy) - 0.0051
    assert found.value <= found.upper <= found.value + max(0.002, 1 / 400) + 1e-12
    z = xy @ [np.cos(found.angle), np.sin(found.angle)] - found.offset
    assert (np.abs(z) < 0.1 * np.sqrt(np.square(z).mean())).mean() == pytest.approx(found.value)
    assert found.value - 0.02 <= mixture_sweep(xy) <= found.upper


def test_the_indices_tell_structures_apart():
    rng = np.random.default_rng(3)
    s = {name: separability_index(make(rng, 2000)).value for name, make in CLOUDS.items()}
    m = {name: mixture_index(make(rng, 2000)).value for name, make in CLOUDS.items()}
    assert s["square"] < 0.05 < 0.4 < s["circle"]  # independent coordinates, once turned back
    assert m["mixture"] > 0.45 > 0.25 > m["circle"]
    assert separability_index(CLOUDS["square"](rng, 2000)).bias == pytest.approx(81 / 4000)


def test_neither_index_changes_when_the_cloud_is_moved_stretched_or_turned_a_quarter():
    xy = circle(np.random.default_rng(4), 300) * [1, 0.4]
    moved = 7 * xy[:, ::-1] * [1, -1] + [3, -40]
    assert separability_index(moved, angles=QUARTER_ANGLES).value == pytest.approx(
        separability_index(xy, angles=QUARTER_ANGLES).value, abs=0.02
    )
    assert mixture_index(moved).value == pytest.approx(mixture_index(xy).value, abs=0.005)


def test_resamples_lie_around_the_value():
    rng = np.random.default_rng(5)
    xy = circle(rng, 600)
    weights = rng.multinomial(600, np.full(600, 1 / 600), size=20).astype(float)
    draws = separability_draws(xy, np.concatenate([np.ones((1, 600)), weights]))
    assert draws[0] == pytest.approx(separability_index(xy, angles=QUARTER_ANGLES).value)
    assert draws[1:].min() > 0.3
    assert draws[1:].std() < 0.1


DEGENERATE = [np.zeros((5, 2)), np.ones((2, 2)), np.stack([np.arange(9.0), np.zeros(9)], 1), np.eye(2)]


@pytest.mark.parametrize("xy", DEGENERATE)
def test_clouds_without_spread_give_finite_numbers(xy):
    found = mixture_index(xy)
    assert 0 <= found.value <= found.upper <= 1
    assert np.isfinite(separability_index(xy).value)


BAD = [
    pytest.param(lambda: separability_index(np.zeros((1, 2))), "at least 2 rows", id="one row"),
    pytest.param(lambda: mixture_index(np.zeros((5, 3))), r"\[rows, 2\]", id="three columns"),
    pytest.param(lambda: mixture_index(np.array([[0, 1], [np.nan, 1]])), "row 1 of the cloud", id="not finite"),
    pytest.param(lambda: mixture_index(np.eye(2), epsilon=1.0), "epsilon=1.0", id="epsilon"),
    pytest.param(lambda: separability_index(np.eye(2), n_bins=1), "n_bins=1", id="bins"),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_bad_input_is_explained(call, says):
    with pytest.raises(ProbeError, match=says):
        call()
