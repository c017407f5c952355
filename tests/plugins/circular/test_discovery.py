"""Clusters, reconstructions and the whole of discovery, against loops written out and planted circles."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
from workbench.context import Context, Inputs
from workbench.dictionary import Dictionary
from workbench.errors import UserError
from workbench.plugins.circular import Circular, CircularConfig, ClusterConfig, InterveneConfig, NullConfig
from workbench.plugins.circular.clusters import Matched, find_clusters, mean_cosine
from workbench.plugins.circular.planes import Reconstructions
from workbench.plugins.circular.prompts import label_pairs

HOOK, WIDTH, N_DOCUMENTS, N_TOKENS = "blocks.0.hook_resid_pre", 64, 60, 20
RING, OTHERS = 7, 24


def directions(rng):
    """Seven latents on a heptagon in a plane of their own, raised a little; the others lie at random."""
    axes = np.linalg.qr(rng.normal(size=(WIDTH, 3)))[0].T
    angle = 2 * np.pi * np.arange(RING) / RING
    ring = np.cos(angle)[:, None] * axes[0] + np.sin(angle)[:, None] * axes[1] + 0.4 * axes[2]
    others = rng.normal(size=(OTHERS, WIDTH))
    return np.concatenate([ring, others]) / np.linalg.norm(np.concatenate([ring, others]), axis=1, keepdims=True), axes


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Each row is one latent's direction with a little noise; `day` says which of the heptagon."""
    rng = np.random.default_rng(0)
    unit, axes = directions(rng)
    builder = ExamplesBuilder()
    for number in range(N_DOCUMENTS):
        tokens = rng.integers(1, 1 + len(unit), N_TOKENS)
        builder.sequence(builder.document(f"d{number}"), tokens, special=np.zeros(N_TOKENS, bool), window=0)
    examples = builder.build()
    latent = examples.origins(0, examples.n_rows)["token"] - 1
    rows = unit[latent] * rng.uniform(0.9, 1.1, size=(len(latent), 1)) + 0.01 * rng.normal(size=(len(latent), WIDTH))
    folder = tmp_path_factory.mktemp("circular") / "acts"
    with StoreWriter(folder, {HOOK: ActivationSpec(("d_model",), (WIDTH,), "float32")}, examples, {}) as writer:
        writer.append({HOOK: rows.astype(np.float32)})
    store = open_store(folder)
    on = latent < RING
    day = LabelInfo("day", "made", "row", "cyclic", period=float(RING))
    hour = LabelInfo("hour", "made", "row", "cyclic", period=12.0)
    everywhere = np.ones(len(latent), bool)
    store.add_labels(
        "made",
        {"day": (day, latent % RING * 1.0, on), "hour": (hour, rng.integers(12, size=len(latent)) * 1.0, everywhere)},
    )
    weights = torch.from_numpy(unit).float()
    zeros = torch.zeros(WIDTH)
    dictionary = Dictionary(
        W_enc=weights, b_enc=torch.zeros(len(unit)), W_dec=weights.clone(), b_dec=zeros, b_pre=zeros.clone(),
        activation="topk", k=1, hook_in=HOOK, hook_out=HOOK, scale=1.0, subject_address="", subject_fingerprint="",
        address="made",
    )  # fmt: skip
    return store, dictionary, axes


QUICK = CircularConfig(null=NullConfig(draws=99, rows=200), index_rows=500, draws=20, intervene=InterveneConfig(runs=0))


def find(store, dictionary, work, config=QUICK, seed=0):
    inputs = Inputs(store=store, dictionary=dictionary)
    return Circular().run(Context(config, inputs, "cpu", seed, work, logging.getLogger("workbench.test")))


@pytest.fixture(scope="module")
def result(planted, tmp_path_factory):
    store, dictionary, _ = planted
    return find(store, dictionary, tmp_path_factory.mktemp("work"))


@pytest.mark.slow
def test_the_planted_circle_comes_first_with_its_name_and_frequency(result, planted):
    first = result.tables["clusters"].iloc[0]
    assert first["label"] == "day"
    assert set(first["latents"].split()) == set(map(str, range(RING)))
    assert first["p"] == pytest.approx(0.01)
    shares = result.tables["frequencies"].set_index("frequency")
    assert shares.loc[1, "share"] > 0.99
    assert shares["named"].tolist() == [True, False, False]
    planes = result.tables["planes"]
    best = planes[planes["rank"] == 1].iloc[0]
    assert best["order"] == pytest.approx(1)
    assert best["radius_variation"] < 0.1
    assert best["s_lo"] < best["separability"] < best["s_hi"]
    assert best["m_lo"] < best["mixture"] < best["m_hi"]
    parts = result.weights["feature.day"]["parts"].numpy()
    _, _, axes = planted
    assert np.abs(parts[0] @ axes[:2].T).max() > 0.9  # in the planted plane, and nowhere else
    assert np.abs(parts[0] - parts[0] @ axes[:2].T @ axes[:2]).max() < 0.05


@pytest.mark.slow
def test_permuted_labels_name_nothing_and_unlabelled_stores_are_welcome(result, planted):
    assert result.metrics["negative_control"].value == 0
    assert not result.tables["clusters"]["label"].isin(["hour"]).any()
    assert {"clusters", "ranking", "frequencies"} <= set(result.figures)
    assert "day" in result.sections["how-to-read"].data[2]
    hopeless = result.tables["clusters"]["p"].notna().sum() / (QUICK.null.draws + 1) >= 0.05
    assert ("none could pass" in result.sections["how-to-read"].data[1]) == hopeless


@pytest.mark.slow
def test_latents_at_random_are_like_chance(planted, tmp_path):
    store, dictionary, _ = planted
    rng = np.random.default_rng(1)
    away = torch.from_numpy(rng.permutation(dictionary.W_dec.numpy().ravel()).reshape(-1, WIDTH)).float()
    away /= away.norm(dim=1, keepdim=True)
    found = find(store, replace(dictionary, W_enc=away, W_dec=away.clone()), tmp_path)
    assert found.metrics["circular"].value == 0
    assert "features" not in found.tables


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(planted, tmp_path, monkeypatch):
    store, dictionary, _ = planted
    first = find(store, dictionary, tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("workbench.plugins.circular.discovery.against_random", None)  # would fail if it were called
    again = find(store, dictionary, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert again.tables["clusters"].equals(first.tables["clusters"])


def test_clusters_are_the_components_of_the_graph():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(60, 5))
    alive = rng.random(60) < 0.8
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    component = np.arange(60)
    for i in np.flatnonzero(alive):
        others = [j for j in np.flatnonzero(alive) if j != i]
        for j in sorted(others, key=lambda j: -unit[i] @ unit[j])[:2]:
            if unit[i] @ unit[j] > 0.8:
                component[component == component[j]] = component[i]
    want = {
        tuple(np.flatnonzero((component == c) & alive))
        for c in np.unique(component[alive])
        if ((component == c) & alive).sum() >= 2
    }
    config = ClusterConfig(cutoff=0.8, smallest=2)
    assert {tuple(each.latents) for each in find_clusters(config, rows, alive, 0)} == want
    assert find_clusters(config, rows, np.zeros(60, bool), 0) == []
    pair = mean_cosine(rows, [3, 4, 5])
    assert pair == pytest.approx(np.mean([unit[3] @ unit[4], unit[3] @ unit[5], unit[4] @ unit[5]]), abs=1e-6)


def test_spectral_clusters_part_what_lies_apart():
    rng = np.random.default_rng(3)
    centres = np.eye(3)[rng.integers(3, size=30)]
    found = find_clusters(
        ClusterConfig(method="spectral", n=3), centres + 0.05 * rng.normal(size=(30, 3)), np.ones(30, bool), 0
    )
    assert sorted(set(centres[each.latents].argmax(1)).pop() for each in found) == [0, 1, 2]
    with pytest.raises(UserError, match="fewer clusters"):
        find_clusters(ClusterConfig(method="spectral", n=30), centres, np.ones(30, bool), 0)


def test_reconstructions_are_those_of_a_loop_over_rows_and_latents():
    rng = np.random.default_rng(4)
    codes = scipy.sparse.random(50, 20, 0.15, "csr", random_state=4)
    decoder = rng.normal(size=(20, 9))
    cluster = np.array([2, 3, 11, 17])
    loop = []
    for row in range(50):
        found = np.zeros(9)
        for latent in cluster:
            found += codes[row, latent] * decoder[latent]
        loop.append(found)
    active = [row for row in range(50) if codes[row, cluster].nnz]
    cloud = Reconstructions(codes, decoder).cloud(cluster, 3)
    assert cloud.rows.tolist() == active
    want = np.array(loop)[active]
    np.testing.assert_allclose(cloud.coordinates @ cloud.basis, want, atol=1e-12)
    centred = want - want.mean(0)
    size = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(cloud.scores, axis=0), size[:3], atol=1e-10)
    np.testing.assert_allclose(cloud.scores, centred @ cloud.axes.T, atol=1e-10)
    assert cloud.planes == [(0, 1), (1, 2)]
    assert len(Reconstructions(scipy.sparse.csr_matrix((50, 20)), decoder).cloud(cluster).rows) == 0


def test_matched_clusters_have_the_same_size_other_latents_and_like_densities():
    density = np.concatenate([np.zeros(5), np.geomspace(1e-4, 0.5, 200)])
    cluster = np.array([20, 21, 150, 204])
    drawn = [Matched(density).draw(cluster, np.random.default_rng(i)) for i in range(50)]
    for each in drawn:
        assert len(each) == len(set(each.tolist())) == 4
        assert not set(each.tolist()) & set(cluster.tolist())
        assert np.abs(np.log(np.sort(density[each]) / np.sort(density[cluster]))).max() < 1.5
    assert len({tuple(each) for each in drawn}) > 40


BAD = [
    pytest.param({"label": "hours"}, "nearest: hour", id="label"),
    pytest.param({"intervene": InterveneConfig(operand="day")}, "as many labels of answers", id="one side"),
    pytest.param({"intervene": InterveneConfig(operand="day", answer="hour")}, "needs? the same", id="periods"),
    pytest.param({"intervene": InterveneConfig(operand="dey", answer="day")}, "nearest: day", id="operand"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_bad_input_is_explained(options, says, planted, tmp_path):
    store, dictionary, _ = planted
    quick = replace(QUICK, null=NullConfig(draws=1, rows=50), **options)
    with pytest.raises(UserError, match=says):
        find(store, dictionary, tmp_path, quick)


def test_pairs_are_found_by_their_names():
    assert label_pairs([], None, None) == []
