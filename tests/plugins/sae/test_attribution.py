"""Which head a latent is of: planted in single heads and across them, against a loop, beside random directions."""

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter, open_store
from workbench.context import Context, Inputs
from workbench.dictionary import Dictionary
from workbench.plugins.sae import EvaluateConfig, PagesConfig, Sae, SaeConfig, TrainConfig
from workbench.plugins.sae.attribution import Parts, decoder_shares, parts_of, score_parts
from workbench.plugins.sae.metrics import Codes

Z = "blocks.0.attn.hook_z"
HEADS, D_HEAD, N = 4, 8, 24  # features: five of each head alone, four of all heads
DOCUMENTS, ROWS = 40, 120
HEAD_PARTS = Parts("head", [f"head {head}" for head in range(HEADS)], [D_HEAD] * HEADS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return features [24, 4 × 8], and a store of rows that sum two of them on average."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((N, HEADS, D_HEAD))
    for head in range(HEADS):
        features[5 * head : 5 * head + 5, np.arange(HEADS) != head] = 0
    features /= np.linalg.norm(features, axis=(1, 2), keepdims=True)
    plan = ExamplesBuilder()
    for number in range(DOCUMENTS):
        plan.sequence(plan.document(f"{number}"), np.arange(ROWS))
    folder = tmp_path_factory.mktemp("heads") / "acts"
    spec = {Z: ActivationSpec(("head", "d_head"), (HEADS, D_HEAD), "float32")}
    with StoreWriter(folder, spec, plan.build(), {"model": {"address": "", "fingerprint": ""}}) as writer:
        for _ in range(DOCUMENTS):
            codes = (rng.random((ROWS, N)) < 2 / N) * rng.uniform(0.5, 1.5, (ROWS, N))
            writer.append({Z: np.einsum("rn,nhd->rhd", codes, features).astype(np.float32)})
    return torch.from_numpy(features).float(), open_store(folder)


@pytest.fixture(scope="module")
def result(planted, tmp_path_factory):
    config = SaeConfig(
        latents=32,
        k=3,
        train=TrainConfig(rows=100_000),
        evaluate=EvaluateConfig(held_out=0.2, splice_tokens=0, draws=20),
        pages=PagesConfig(0),
    )
    return Sae().run(Context(config, Inputs(store=planted[1]), "cpu", 0, tmp_path_factory.mktemp("work")))


def test_latents_are_attributed_to_the_heads_their_features_are_planted_in(planted, result):
    features, _ = planted
    W_dec = result.weights["dictionary"]["W_dec"]
    best = (features.flatten(1) @ torch.nn.functional.normalize(W_dec, dim=1).T).max(1)
    assert float(best.values.mean()) > 0.95
    latents = best.indices.numpy()
    by_weights = result.arrays["decoder-shares"].values[latents]
    by_score = result.arrays["score-parts"].values[latents]
    truth = np.arange(20) // 5
    assert (by_weights[:20].argmax(1) == truth).mean() > 0.9
    assert (by_score[:20].argmax(1) == truth).mean() > 0.9
    assert by_weights[:20].max(1).mean() > 0.8
    # features of all heads are attributed to none, and so are the directions of a random dictionary
    assert by_weights[20:].max(1).mean() < 0.5
    at_random = decoder_shares(torch.randn(200, HEADS * D_HEAD, generator=torch.Generator().manual_seed(0)), HEAD_PARTS)
    assert at_random.max(1).mean() < 0.45
    assert list(result.arrays["decoder-shares"].coords["part"].values) == [f"head {head}" for head in range(HEADS)]
    assert "decoder-shares" in result.figures


def test_what_each_head_adds_equals_a_loop_and_sums_to_the_score(planted, result):
    """Σ over heads of W_enc (scale x − b_pre) is the score without its bias, on rows where the latent is active."""
    _, store = planted
    kept = result.weights["dictionary"]
    dictionary = Dictionary.from_parts(dict(kept), kept.config)
    rows = np.arange(100, 160)
    x = torch.from_numpy(store.read(Z, rows)).flatten(1)
    values, indices = dictionary.encode(x)
    got = score_parts(store, dictionary, Codes(rows, values, indices, np.zeros(60, np.int64)), HEAD_PARTS)
    dense = dictionary.encode_dense(x)
    for latent in range(32):
        on = dense[:, latent] > 0
        added = (dictionary.scale * x[on] - dictionary.b_pre) * dictionary.W_enc[latent]
        want = added.view(-1, HEADS, D_HEAD).sum(2).mean(0) if bool(on.any()) else torch.zeros(HEADS)
        np.testing.assert_allclose(got[latent], want.numpy(), rtol=1e-4, atol=1e-5)
        if bool(on.any()):
            activation = float(dense[on, latent].mean() - dictionary.b_enc[latent])
            assert got[latent].sum() == pytest.approx(activation, rel=1e-3, abs=1e-4)


def test_a_hook_point_without_heads_has_no_parts(store, planted, result):
    assert parts_of(store, tuple(store.hook_points)) is None
    assert parts_of(planted[1], (Z,)) == HEAD_PARTS
    assert np.allclose(result.arrays["decoder-shares"].sum("part"), 1)
