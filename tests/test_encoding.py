"""A whole store through a dictionary: codes beside the rows, a store of reconstructions, and who reads them."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
from workbench.cli import main
from workbench.dictionary import Dictionary
from workbench.encoding import active, codes_of, encode, latents_of_rows, name_of
from workbench.errors import UserError
from workbench.reconstructing import reconstruct

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"
WIDTH, LATENTS, N_ROWS = 8, 20, 700


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(activation="topk", **changes) -> Dictionary:
    b_dec = draw(WIDTH, seed=3)
    parts = {
        "W_enc": draw(LATENTS, WIDTH, seed=0),
        "b_enc": draw(LATENTS, seed=1),
        "W_dec": draw(LATENTS, WIDTH, seed=2),
        "b_dec": b_dec,
        "b_pre": b_dec,
        "activation": activation,
        "hook_in": HOOK,
        "hook_out": HOOK,
        "k": 3 if activation == "topk" else None,
        "threshold": draw(LATENTS, seed=4).abs() if activation == "jumprelu" else None,
        "subject_address": "zoo:none",
        "subject_fingerprint": "m",
        "address": "runs/sae-1",
    }
    return Dictionary(**(parts | changes))


CROSSCODER = {
    "hook_in": f"{HOOK} + {OTHER}",
    "hook_out": f"{HOOK} + {OTHER}",
    "W_enc": draw(LATENTS, WIDTH + 6, seed=0),
    "W_dec": draw(LATENTS, WIDTH + 6, seed=2),
    "b_dec": draw(WIDTH + 6, seed=3),
    "b_pre": torch.zeros(WIDTH + 6),
}
TRANSCODER = {"hook_out": OTHER, "W_dec": draw(LATENTS, 6, seed=2), "b_dec": draw(6, seed=3)}
KINDS = [
    ("topk", {}),
    ("relu", {"scale": 2.0}),
    ("jumprelu", {}),
    ("topk", CROSSCODER),
    ("jumprelu", TRANSCODER),
    ("topk", {"normalisation": "layer_norm"}),
]


def write(folder, end=None, manifest=None):
    plan = ExamplesBuilder()
    for number in range(N_ROWS // 20):
        plan.sequence(plan.document(f"text-{number}"), np.arange(20), special=np.arange(20) == 0)
    specs = {
        HOOK: ActivationSpec(("d_model",), (WIDTH,), "float16"),
        OTHER: ActivationSpec(("a", "b"), (2, 3), "float32"),
    }
    model = {"address": "zoo:none", "fingerprint": "m"}
    with StoreWriter(folder, specs, plan.build(), {"model": model, "fingerprints": {"model": "m"}}) as writer:
        rows = {HOOK: draw(N_ROWS, WIDTH, seed=7).numpy(), OTHER: draw(N_ROWS, 2, 3, seed=8).numpy()}
        writer.append({name: values[:end] for name, values in rows.items()})
    return open_store(folder)


@pytest.fixture
def store(tmp_path):
    store = write(tmp_path / "acts")
    info = LabelInfo("even", "tokens", "row", "binary")
    store.add_labels("tokens", {"even": (info, np.arange(N_ROWS) % 2, None)})
    return store


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of codes of some hundred entries."""
    monkeypatch.setattr("workbench.encoding.SHARD_ENTRIES", 500)


def all_rows(store, dictionary):
    x = torch.cat([store.read_tensor(name).flatten(1).float() for name in dictionary.hooks_in], dim=1)
    return x, dictionary.encode_dense(x)


@pytest.mark.parametrize(("activation", "changes"), KINDS)
def test_codes_are_what_the_dictionary_gives_row_by_row(activation, changes, store, small_shards):
    dictionary = make(activation, **changes)
    _, dense = all_rows(store, dictionary)
    codes = encode(store, dictionary, batch_rows=64)
    assert codes.finished
    assert codes.name == "sae-1"
    assert len(codes.manifest.shards) > 1
    np.testing.assert_allclose(codes.csr().toarray(), dense.numpy(), rtol=1e-5, atol=1e-6)
    assert codes.csr().has_sorted_indices
    for latent in range(LATENTS):
        rows, values = codes.latent(latent)
        assert rows.tolist() == dense[:, latent].nonzero().squeeze(1).tolist()
        np.testing.assert_allclose(values, dense[rows, latent], rtol=1e-5)
    assert store.verify() == []


def test_active_is_the_same_as_encode_dense_and_may_be_nothing():
    for activation in ("topk", "relu", "jumprelu"):
        dictionary, x = make(activation), draw(50, WIDTH, seed=9)
        np.testing.assert_allclose(active(dictionary, x).csr(LATENTS).toarray(), dictionary.encode_dense(x), rtol=1e-6)
        silent = make(activation, b_enc=torch.full((LATENTS,), -1e3))
        assert active(silent, x).csr(LATENTS).nnz == 0
        assert active(dictionary, x[:0]).counts.shape == (0,)
    assert active(make().to(dtype=torch.bfloat16), draw(5, WIDTH, seed=9)).values.dtype == np.float32


def stop_after(n_batches, monkeypatch, store, dictionary, **options):
    """Encode in batches of 64 rows, interrupted after some."""
    left = [n_batches]

    def failing(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return active(*args)

    with monkeypatch.context() as patch:
        patch.setattr("workbench.encoding.active", failing)
        with pytest.raises(KeyboardInterrupt):
            encode(store, dictionary, batch_rows=64, **options)


def test_an_interrupted_encoding_ends_with_the_same_bytes(store, small_shards, tmp_path, monkeypatch, caplog):
    dictionary = make("jumprelu")

    def contents(codes):
        folder = store.folder / "codes" / codes.name
        return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.h5"))}

    whole = encode(store, dictionary, name="whole", batch_rows=64)
    stop_after(5, monkeypatch, store, dictionary, name="stopped")
    assert 0 < store.codes("stopped").n_rows < N_ROWS
    with caplog.at_level(logging.INFO, "workbench"):
        again = encode(store, dictionary, name="stopped", batch_rows=64)
        assert "rows are encoded already" in caplog.text
    assert contents(again) == contents(whole)
    before = contents(whole)
    monkeypatch.setattr("workbench.encoding.active", None)  # a finished one is not encoded again
    monkeypatch.setattr("workbench.encoding.rows_per_shard", lambda *args: 64)
    assert contents(encode(store, dictionary, name="whole", batch_rows=64)) == before


def test_an_encoding_goes_on_with_batches_of_another_size(store, small_shards, monkeypatch):
    dictionary = make()
    stop_after(3, monkeypatch, store, dictionary)
    assert 0 < store.codes("sae-1").n_rows < N_ROWS
    codes = encode(store, dictionary, batch_rows=50)
    assert codes.finished
    np.testing.assert_allclose(codes.csr().toarray(), all_rows(store, dictionary)[1].numpy(), rtol=1e-5, atol=1e-6)


BAD_INPUT = [
    pytest.param({"subject_fingerprint": "x"}, {}, "holds activations of zoo:none", id="subject"),
    pytest.param({"hook_in": "blocks.0.hook_mlp_in"}, {}, "nearest: blocks.0.hook_mlp_out", id="hook point"),
    pytest.param({"hook_in": OTHER}, {}, "reads 8 numbers a row, but blocks.0.hook_mlp_out .* has 6", id="width"),
    pytest.param({}, {"batch_rows": 0}, "batch_rows=0: must be at least 1", id="batch"),
    pytest.param({"address": ""}, {}, "give them a name", id="name"),
]


@pytest.mark.parametrize(("changes", "options", "says"), BAD_INPUT)
def test_what_does_not_fit_is_explained_and_nothing_is_written(changes, options, says, store):
    with pytest.raises(UserError, match=says):
        encode(store, make(**changes), **options)
    assert not (store.folder / "codes").exists()


def test_unfinished_stores_and_rows_that_are_not_finite_are_refused(tmp_path, store, small_shards):
    unfinished = write(tmp_path / "part", end=300)
    with pytest.raises(UserError, match=r"is unfinished \(0 of 700 rows\)"):
        encode(unfinished, make())
    with pytest.raises(UserError, match=r"is unfinished"):
        reconstruct(unfinished, make(), out=tmp_path / "none")
    infinite = replace(make(), W_enc=make().W_enc * torch.inf)
    assert infinite.fingerprint() != make().fingerprint()
    broken = tmp_path / "broken"
    plan = ExamplesBuilder()
    plan.sequence(plan.document("a"), np.arange(10))
    rows = np.zeros((10, WIDTH), np.float32)
    rows[6, 2] = np.nan
    model = {"address": "zoo:none", "fingerprint": "m"}
    with StoreWriter(
        broken, {HOOK: ActivationSpec(("d",), (WIDTH,), "float32")}, plan.build(), {"model": model}
    ) as writer:
        writer.append({HOOK: rows})
    with pytest.raises(UserError, match="row 6: an activation is not finite"):
        encode(broken, make())


def test_names_come_from_addresses():
    names = {
        "runs/sae-1": "sae-1",
        "runs/sae-1/": "sae-1",
        "runs/sweep#k16": "sweep-k16",
        "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre": "gpt2-small-res-jb-blocks.8.hook_resid_pre",
    }
    assert {address: name_of(make(address=address)) for address in names} == names


# --- who reads them --------------------------------------------------------------------------------------------------
def test_latents_are_read_from_codes_that_fit_and_encoded_otherwise(store, caplog):
    dictionary = make()
    rows = np.array([650, 3, 3, 20])
    fresh = latents_of_rows(store, dictionary, rows).toarray()
    np.testing.assert_allclose(fresh, all_rows(store, dictionary)[1][rows], rtol=1e-5)
    encode(store, dictionary)
    with caplog.at_level(logging.INFO, "workbench"):
        np.testing.assert_allclose(latents_of_rows(store, dictionary, rows).toarray(), fresh, rtol=1e-5)
        assert "latents are read from codes/sae-1" in caplog.text
        caplog.clear()
        other = replace(dictionary, k=2)
        assert codes_of(store, other) is None
        assert (latents_of_rows(store, other, rows) > 0).sum(1).max() == 2
        assert "codes" not in caplog.text
        # of damaged codes the log says why they are not used
        manifest = store.folder / "codes" / "sae-1" / "manifest.json"
        manifest.write_text(manifest.read_text()[:-20])
        np.testing.assert_allclose(latents_of_rows(store, dictionary, rows).toarray(), fresh, rtol=1e-5)
        assert "codes sae-1 are not used" in caplog.text
    assert latents_of_rows(store, dictionary, rows[:0]).shape == (0, LATENTS)


@pytest.mark.parametrize(("activation", "changes"), KINDS)
@pytest.mark.parametrize("encoded", [False, True])
def test_a_store_of_reconstructions_stands_in_for_the_other(activation, changes, encoded, store, tmp_path, caplog):
    dictionary = make(activation, **changes)
    x, _ = all_rows(store, dictionary)
    want = dictionary.reconstruct(x)
    if encoded:
        encode(store, dictionary)
    made = reconstruct(store, dictionary, out=tmp_path / "made", batch_rows=100)
    got = torch.cat([made.read_tensor(name).flatten(1).float() for name in dictionary.hooks_out], dim=1)
    half = any(store.hook_points[name].dtype == "float16" for name in dictionary.hooks_out)
    torch.testing.assert_close(got, want, rtol=2e-3 if half else 1e-5, atol=2e-3 if half else 1e-5)
    assert made.finished
    assert list(made.hook_points) == list(dictionary.hooks_out)
    assert made.hook_points[dictionary.hooks_out[-1]] == store.hook_points[dictionary.hooks_out[-1]]
    assert np.array_equal(made.origins, store.origins)
    np.testing.assert_array_equal(made.label("even")[0], store.label("even")[0])
    assert made.manifest["model"] == store.manifest["model"]
    assert made.manifest["reconstruction"]["dictionary"]["address"] == "runs/sae-1"
    assert made.fingerprint() != store.fingerprint()
    assert made.verify() == []
    assert reconstruct(store, dictionary, out=tmp_path / "made").fingerprint() == made.fingerprint()  # done already


def test_the_command_line_encodes_reconstructs_and_explains(store, tmp_path, capsys):
    make("jumprelu", address="").save(tmp_path / "sparse")
    acts = str(store.folder)
    line = ["encode", "--store", acts, "--dictionary", str(tmp_path / "sparse"), "--json"]
    assert main(line) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["codes"], facts["rows"], facts["latents"]) == ("sparse", N_ROWS, LATENTS)
    assert facts["entries"] == store.codes("sparse").n_entries
    assert main(line) == 0
    assert (
        main(["reconstruct", "--store", acts, "--dictionary", str(tmp_path / "sparse"), "--out", str(tmp_path / "r")])
        == 0
    )
    assert "700 rows, blocks.0.hook_resid_post" in capsys.readouterr().out
    assert main(["store", "verify", acts]) == 0
    assert main(["store", "info", acts]) == 0
    assert "sparse" in capsys.readouterr().out
    make(address="").save(tmp_path / "other")
    assert main(["encode", "--store", acts, "--dictionary", str(tmp_path / "other"), "--name", "sparse"]) == 2
    assert "holds codes with another dictionary" in capsys.readouterr().err
    assert main(["encode", "--store", acts, "--dictionary", str(tmp_path / "none")]) == 2
