"""Rings and circles: planted ones come back, and a shuffled order has none."""

import numpy as np
import pytest

from workbench.probes.circles import CircleProbe, circular_linear, order_around, regressed_circle, roundness, turns
from workbench.probes.errors import ProbeError
from workbench.probes.projections import largest_angle
from workbench.probes.rings import class_means, fit_rings, order_null, outstanding
from workbench.probes.statistics import holm


def planted(period, amplitudes, width=20, seed=0):
    """Class means with rings of known size, each in a plane of its own, and those planes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 2 * len(amplitudes))))[0].T.reshape(-1, 2, width)
    means = rng.normal(size=width) + sum(
        size * turns(np.arange(period), period, f) @ plane
        for (f, size), plane in zip(amplitudes.items(), axes, strict=True)
    )
    return means, dict(zip(amplitudes, axes, strict=True))


@pytest.mark.parametrize("period", [3, 4, 7, 12])
def test_rings_add_up_to_the_means_and_shares_to_one(period):
    means = np.random.default_rng(0).normal(size=(period, 9))
    rings = fit_rings(means)
    np.testing.assert_allclose(rings.points(np.arange(period)), means, atol=1e-12)
    assert rings.shares.sum() == pytest.approx(1)
    spectrum = np.square(np.abs(np.fft.fft(means, axis=0))).sum(1)[1:]
    two_sided = [spectrum[f - 1] + (spectrum[-f] if 2 * f != period else 0) for f in rings.frequencies]
    np.testing.assert_allclose(rings.shares, two_sided / spectrum.sum(), atol=1e-12)
    assert len(rings.basis()) == min(period - 1, 9)


def test_planted_planes_are_found_and_named():
    means, planes = planted(12, {1: 3.0, 4: 2.0})
    rings = fit_rings(means)
    for frequency, plane in planes.items():
        assert largest_angle(plane.T, rings.basis([frequency]).T) < 1e-4
    named, p, bar = outstanding(rings.shares, order_null(means, 499, np.random.default_rng(0)))
    assert named == [1, 4]
    assert p < 0.01
    assert rings.shares.max() > bar


def test_means_in_no_order_name_nothing():
    means = np.random.default_rng(1).normal(size=(12, 40))
    named, p, _ = outstanding(fit_rings(means).shares, order_null(means, 499, np.random.default_rng(0)))
    assert named == []
    assert p > 0.05


def test_the_null_of_orders_is_that_of_the_transform():
    means = np.random.default_rng(2).normal(size=(6, 3))
    null = order_null(means, 4, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    for drawn in null:
        np.testing.assert_allclose(drawn, -np.sort(-fit_rings(means[rng.permutation(6)]).shares), atol=1e-12)


def test_class_means_and_a_class_without_rows():
    X = np.arange(6.0).reshape(3, 2)
    means = class_means(X, np.array([0, 2, 2]), 3)
    np.testing.assert_allclose(means[[0, 2]], [[0, 1], [3, 4]])
    with pytest.raises(ProbeError, match="class 1 is not finite"):
        fit_rings(means)
    with pytest.raises(ProbeError, match="frequency 3"):
        fit_rings(np.eye(4)).basis([3])


def test_the_probe_reads_and_places_a_planted_circle():
    rng = np.random.default_rng(3)
    label = rng.integers(7, size=600)
    plane = np.linalg.qr(rng.normal(size=(16, 2)))[0].T
    X = turns(label, 7) * [2, 3] @ plane + 4 + 0.05 * rng.normal(size=(600, 16))
    probe = CircleProbe(7).fit(X[:400], label[:400])
    assert probe.score(X[400:], label[400:]) > 0.99
    assert largest_angle(plane.T, probe.circle_.plane.T) < 6
    away = np.abs((probe.predict(X[400:]) - label[400:] + 3.5) % 7 - 3.5)
    assert away.max() < 0.5
    moved = probe.circle_.place(X[400:], (label[400:] + 2) % 7)
    assert np.abs((probe.predict(moved) - label[400:] - 2 + 3.5) % 7 - 3.5).max() < 1e-6
    outside = X[400:] - probe.circle_.coordinates(X[400:]) @ probe.circle_.plane
    np.testing.assert_allclose(moved - probe.circle_.coordinates(moved) @ probe.circle_.plane, outside, atol=1e-9)
    assert CircleProbe(7).fit(X[:400], rng.permutation(label[:400])).score(X[400:], label[400:]) < 0.1
    np.testing.assert_allclose(probe.circle_.place(X[:2], label[:2], keep=False).std(0).max(), 0, atol=5)


def test_the_regression_finds_the_answers_circle_beside_the_operands():
    rng = np.random.default_rng(4)
    a, b = rng.integers(7, size=(2, 900))
    c = (a + b) % 7
    planes = np.linalg.qr(rng.normal(size=(24, 16)))[0].T
    X = np.eye(7)[a] @ planes[:7] + np.eye(7)[b] @ planes[7:14] + 2 * turns(c, 7) @ planes[14:16]
    circle = regressed_circle(X + 0.01 * rng.normal(size=X.shape), a, b, c, 7)
    assert np.corrcoef(circle.read(X)[:, 0], turns(c, 7)[:, 0])[0, 1] > 0.99


def test_roundness_and_order():
    rng = np.random.default_rng(5)
    ring = turns(rng.uniform(0, 7, 500), 7) * 3 + [10, -2]
    shape = roundness(ring)
    np.testing.assert_allclose(shape.centre, [10, -2], atol=1e-9)
    assert (shape.radius, shape.variation) == (pytest.approx(3), pytest.approx(0, abs=1e-9))
    assert shape.coverage > 0.95
    assert roundness(turns(np.arange(7), 7)).coverage == pytest.approx(6 / 7)
    assert roundness(rng.normal(size=(500, 2))).variation > 0.3
    angles = 2 * np.pi * np.arange(12) / 12 + 1
    assert order_around(angles) == pytest.approx(1)
    assert order_around(-angles[:7] * 12 / 7) == pytest.approx(1)
    assert np.mean([order_around(rng.permutation(angles)) for _ in range(50)]) < 0.5
    forth_and_back = np.argsort(np.abs(np.arange(12) - 5.6))
    assert circular_linear(angles[forth_and_back]) == pytest.approx(1, abs=0.01)
    everything = [circular_linear(rng.permutation(angles[:7] * 12 / 7)) for _ in range(500)]
    assert 0 <= min(everything) < np.mean(everything) < 0.5 < max(everything) <= 1 + 1e-9


def test_holm_is_bonferroni_stepping_down():
    np.testing.assert_allclose(holm([0.01, 0.04, np.nan, 0.03]), [0.03, 0.06, np.nan, 0.06])
    with pytest.raises(ProbeError, match="between 0 and 1"):
        holm([1.5])


BAD = [
    pytest.param(lambda: CircleProbe(0).fit(np.eye(4), range(4)), "period=0", id="period"),
    pytest.param(lambda: CircleProbe(7, k=1).fit(np.eye(4), range(4)), "k=1", id="k"),
    pytest.param(lambda: CircleProbe(7).fit(np.eye(2), range(2)), "n_samples=2", id="two rows"),
    pytest.param(lambda: fit_rings(np.eye(2)), "at least 3 classes", id="two classes"),
    pytest.param(lambda: order_around([0.1, 0.2]), "at least 3", id="two points"),
]


@pytest.mark.parametrize(("call", "says"), BAD)
def test_bad_input_is_explained(call, says):
    with pytest.raises(ProbeError, match=says):
        call()
