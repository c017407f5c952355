"""Sums per document against whole-array arithmetic, intervals over documents, labels and neighbours."""

import numpy as np
import pytest
import torch

from workbench.dictionary import Dictionary
from workbench.plugins.sae.activity import activity, densities, label_correlations, nearest_directions
from workbench.plugins.sae.metrics import Codes, Resamples, choose_sequences, reconstruct, reconstruction_metrics

WIDTH, LATENTS, HOOK = 16, 40, "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    zeros = torch.zeros(WIDTH)
    return Dictionary(W, torch.zeros(LATENTS), W, zeros, zeros, "topk", HOOK, HOOK, k=4, scale=2.0)


@pytest.fixture(scope="module")
def found(store, dictionary):
    rows = (store.origins["document"] % 3 == 0) & ~store.origins["special"]
    return rows, reconstruct(store, rows, {"dictionary": dictionary}, torch.full((WIDTH,), 0.1))


def test_metrics_equal_those_of_all_rows_at_once(store, dictionary, found):
    rows, sums = found
    x = torch.from_numpy(store.read(HOOK, rows))
    rebuilt = dictionary.reconstruct(x)
    quality = reconstruction_metrics(sums, Resamples.draw(len(sums.n_rows), 200, np.random.default_rng(0)))
    variation = (x - x.mean(0)).pow(2).sum()
    for way, other in [("dictionary", rebuilt), ("mean", torch.full_like(x, 0.1))]:
        row = quality[way]
        assert row["explained_variance"].value == pytest.approx(
            1 - float((x - other).pow(2).sum() / variation), abs=1e-5
        )
        assert row["mse"].value == pytest.approx(float((x - other).pow(2).mean()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(x, other).mean()
        assert row["cosine"].value == pytest.approx(float(cosine), abs=1e-5)
        assert row["mse"].lo < row["mse"].value < row["mse"].hi
    assert quality["dictionary"]["l0"].value == pytest.approx(
        float((dictionary.encode(x)[0] > 0).sum(1).float().mean())
    )
    assert quality["mean"]["l0"].value == 0
    assert np.array_equal(sums.codes.rows, np.flatnonzero(rows))


def test_intervals_are_over_documents_not_rows():
    """A thousand rows of one document are one observation."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=20)
    n_rows = np.full(20, 1000.0)
    interval = Resamples.draw(20, 2000, rng).ratio(effects * n_rows, n_rows)
    spread = effects.std() / np.sqrt(20)
    assert interval.value == pytest.approx(effects.mean())
    assert (interval.hi - interval.lo) == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_whole_sequences_are_drawn(store):
    ordinary = ~store.origins["special"]
    drawn = choose_sequences(store, ordinary, 200, np.random.default_rng(0))
    n_rows = np.isin(store.origins["sequence"], drawn)[ordinary].sum()
    assert 150 < n_rows <= 200
    assert (np.diff(drawn) > 0).all()
    assert len(choose_sequences(store, ordinary, 1, np.random.default_rng(0))) == 1


def test_activity_sorts_codes_by_latent(found, dictionary):
    _, sums = found
    active = activity(sums.codes, LATENTS)
    dense = torch.zeros(len(sums.codes.rows), LATENTS).scatter(1, sums.codes.indices, sums.codes.values).numpy()
    np.testing.assert_allclose(active.density, (dense > 0).mean(0))
    np.testing.assert_allclose(active.largest(), dense.max(0), rtol=1e-6)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(active.mean(), np.nan_to_num(dense.sum(0) / (dense > 0).sum(0)), rtol=1e-5)
    for latent in range(LATENTS):
        rows, values = active.of(latent)
        assert (np.diff(values) <= 0).all()
        np.testing.assert_allclose(dense[np.searchsorted(sums.codes.rows, rows), latent], values)


def test_latents_that_are_never_active_count_as_nothing():
    codes = Codes(np.arange(3), torch.tensor([[2.0], [0.0], [1.0]]), torch.tensor([[1], [1], [4]]), np.zeros(3, int))
    active = activity(codes, 6)
    assert active.count.tolist() == [0, 1, 0, 0, 1, 0]
    assert active.mean().tolist() == active.largest().tolist() == [0, 2, 0, 0, 1, 0]


def test_densities_are_counted_in_every_resample_of_documents(found, monkeypatch):
    monkeypatch.setattr("workbench.plugins.sae.activity.LATENTS_AT_ONCE", 7)
    _, sums = found
    codes = sums.codes
    dense = torch.zeros(len(codes.rows), LATENTS).scatter(1, codes.indices, codes.values).numpy() > 0
    resamples = Resamples.draw(len(sums.n_rows), 100, np.random.default_rng(0))
    spread = densities(codes, LATENTS, resamples)
    interval = spread.dense
    assert interval.value == (dense.mean(0) > 0.1).sum()
    drawn = []
    for weights in resamples.weights:
        rows = np.repeat(np.arange(len(codes.rows)), weights[codes.document].astype(int))
        drawn.append(dense[rows].mean(0))
    counts = (np.array(drawn) > 0.1).sum(1)
    assert (interval.lo, interval.hi) == pytest.approx(tuple(np.quantile(counts, [0.025, 0.975])))
    assert interval.lo < interval.hi
    np.testing.assert_allclose((spread.lo, spread.hi), np.quantile(drawn, [0.025, 0.975], axis=0))
    assert (spread.lo <= dense.mean(0)).all()
    assert (spread.hi >= dense.mean(0)).all()


def test_label_correlations_are_pearsons(store, found):
    _, sums = found
    names, correlation = label_correlations(store, sums.codes, LATENTS)
    # neither the number nor the label with one value only
    assert names == ["is_seven", "third=a", "third=b", "third=c"]
    dense = torch.zeros(len(sums.codes.rows), LATENTS).scatter(1, sums.codes.indices, sums.codes.values).numpy()
    for column, (label, value) in enumerate([("is_seven", 1), ("third", 0), ("third", 1), ("third", 2)]):
        values, defined = (each[sums.codes.rows] for each in store.label(label))
        alive = dense[defined].std(0) > 0
        want = [np.corrcoef(dense[defined, latent], values[defined] == value)[0, 1] for latent in np.flatnonzero(alive)]
        np.testing.assert_allclose(correlation[alive, column], want, atol=1e-8)
        assert not correlation[~alive, column].any()


def test_nearest_directions_leave_the_latent_itself_out():
    W = torch.tensor([[1.0, 0], [2, 0.1], [0, 3], [-1, 0]])
    cosine, nearest = nearest_directions(W, 2)
    assert nearest[:, 0].tolist() == [1, 0, 1, 2]
    np.testing.assert_allclose(cosine[0], [1 / np.hypot(1, 0.05), 0], atol=1e-6)
