"""SAELens itself: its reader loads our exports and trains on them; what its runner wrote becomes a store."""

import json
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset

from workbench.errors import UserError
from workbench.store_formats.exporting import export_store
from workbench.store_formats.importing import import_store

RESID = "blocks.0.hook_resid_post"
MLP = "blocks.1.hook_mlp_out"
WINDOW, WIDTH, VOCABULARY = 16, 8, 50
pytestmark = [
    pytest.mark.slow,  # importing sae_lens and transformer_lens takes ten seconds
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated", "ignore:All samples in the training dataset"),
]


@pytest.fixture(scope="module")
def model():
    """A TransformerLens model with random weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 1, "d_model": WIDTH, "n_ctx": WINDOW, "d_head": 4, "n_heads": 2, "d_vocab": VOCABULARY}
    return HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", device="cpu", seed=0))


def reader(folder, model, *, hook=RESID, window=WINDOW, width=WIDTH, dtype="float32", prompts=2):
    """Open a folder with SAELens's own reader."""
    from sae_lens.training.activations_store import ActivationsStore

    return ActivationsStore(
        model=model,
        dataset=None,
        streaming=False,
        hook_name=hook,
        hook_head_index=None,
        context_size=window,
        d_in=width,
        n_batches_in_buffer=2,
        total_training_tokens=100,
        store_batch_size_prompts=prompts,
        train_batch_size_tokens=8,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype=dtype,
        cached_activations_path=str(folder),
    )


@pytest.mark.parametrize(("hook", "width", "pack"), [(RESID, 5, False), (RESID, 5, True), (MLP, 4, False)])
def test_its_reader_gives_the_same_rows(make_store, tmp_path, model, hook, width, pack, small_batches):
    store, bits = make_store(tmp_path / "acts", [12, 5, 13, 9])
    done = export_store(
        store, to="saelens", out=tmp_path / "out", hooks=[RESID, MLP], context_size=4, pack=pack, file_bytes=500
    )
    kept = np.arange(39)[:36] if pack else np.r_[0:12, 12:16, 17:29, 30:38]
    assert done.n_rows == len(kept)
    opened = reader(tmp_path / "out", model, hook=hook, window=4, width=width, prompts=1)
    batches = [opened.get_raw_llm_batch(raise_on_epoch_end=True) for _ in range(len(kept) // 4)]
    with pytest.raises(StopIteration):
        opened.get_raw_llm_batch(raise_on_epoch_end=True)
    rows = torch.cat([rows for rows, _ in batches])
    want = bits[hook][kept]
    want = want if hook == RESID else (want.astype(np.uint32) << 16).view(np.float32)
    assert rows.numpy().tobytes() == want.tobytes()
    assert torch.cat([tokens for _, tokens in batches]).tolist() == store.origins["token"][kept].tolist()


def test_float16_stays_float16_in_its_reader(make_store, tmp_path, model):
    from workbench.cache import ActivationSpec

    spec = {RESID: ActivationSpec(("d_model",), (5,), "float16")}
    store, bits = make_store(tmp_path / "acts", [12, 8], specs=spec)
    export_store(store, to="saelens", out=tmp_path / "out", context_size=4)
    rows, _ = reader(tmp_path / "out", model, window=4, width=5, dtype="float16", prompts=5).get_raw_llm_batch()
    assert rows.dtype == torch.float16
    assert rows.numpy().tobytes() == bits[RESID].tobytes()


def test_a_topk_autoencoder_of_its_own_trains_on_an_export(make_store, tmp_path, model):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    from workbench.cache import ActivationSpec

    values = np.random.default_rng(0).standard_normal((64, 5), np.float32)
    spec = {RESID: ActivationSpec(("d_model",), (5,), "float32")}
    store, _ = make_store(tmp_path / "acts", [16] * 4, specs=spec, bits={RESID: values})
    export_store(store, to="saelens", out=tmp_path / "out")
    opened = reader(tmp_path / "out", model, window=16, width=5)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=5, d_sae=16, k=2))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        batch = opened.next_batch()
        assert all(bool((values == row).all(1).any()) for row in batch.numpy())
        given = TrainStepInput(
            sae_in=batch, dead_neuron_mask=None, coefficients={}, n_training_steps=step, is_logging_step=False
        )
        loss = sae.training_forward_pass(given).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.fixture(scope="module", params=["float32", "float16"])
def cached(request, model, tmp_path_factory):
    """What SAELens's own runner writes of 32 sequences: folder, tokens and the activations that it should hold."""
    from sae_lens import cache_activations_runner as runner

    folder = tmp_path_factory.mktemp("cached") / "acts"
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (40, WINDOW))
    tokens[:, 0] = 3
    config = runner.CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name="tiny",
        model_batch_size=4,
        hook_name=RESID,
        d_in=WIDTH,
        training_tokens=WINDOW * 32,
        context_size=WINDOW,
        new_cached_activations_path=str(folder),
        dtype=request.param,
        device="cpu",
        buffer_size_gb=WINDOW * WIDTH * 4 * 8 / 1e9 + 1e-9,
        prepend_bos=False,
        streaming=False,
        shuffle=False,
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(runner, "load_model", lambda **_: model)
        runner.CacheActivationsRunner(config, Dataset.from_dict({"tokens": tokens.tolist()})).run()
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor(tokens[:32]))
    wanted = cache[RESID].reshape(-1, WIDTH).to(getattr(torch, request.param))
    return folder, tokens[:32], wanted, request.param


def test_what_its_runner_wrote_becomes_a_store(cached, tmp_path, small_batches):
    folder, tokens, wanted, dtype = cached
    assert len(list(folder.glob("*.arrow"))) > 1
    store = import_store(folder, out=tmp_path / "acts", special_tokens=[3])
    assert list(store.hook_points) == [RESID]
    assert store.hook_points[RESID].dtype == dtype
    assert store.read(RESID).shape == (32 * WINDOW, WIDTH)
    torch.testing.assert_close(store.read_tensor(RESID), wanted, atol=1e-6 if dtype == "float32" else 2e-3, rtol=0)
    assert store.origins["token"].tolist() == tokens.reshape(-1).tolist()
    assert store.origins["sequence"].tolist() == np.repeat(np.arange(32), WINDOW).tolist()
    assert store.origins["position"].tolist() == list(range(WINDOW)) * 32
    assert (store.origins["special"] == (store.origins["token"] == 3)).all()
    assert len(store.documents) == 32
    assert store.manifest["import"]["from"] == "saelens"
    assert store.verify() == []


def test_it_goes_back_bit_for_bit(cached, tmp_path, model):
    folder, _, _, dtype = cached
    store = import_store(folder, out=tmp_path / "acts")
    export_store(store, to="saelens", out=tmp_path / "out")
    theirs, ours = (reader(place, model, dtype=dtype, prompts=32) for place in (folder, tmp_path / "out"))
    for found, want in zip(ours.get_raw_llm_batch(), theirs.get_raw_llm_batch(), strict=True):
        assert found.numpy().tobytes() == want.numpy().tobytes()


def test_its_own_record_of_the_run_is_kept(cached, tmp_path):
    folder, *_ = cached
    record = folder / "cache_activations_runner_cfg.json"
    record.write_text(json.dumps({"model_name": "tiny", "dataset_path": "none"}))
    store = import_store(folder, out=tmp_path / "acts")
    assert store.manifest["saelens"] == {"model_name": "tiny", "dataset_path": "none"}
    record.unlink()


def test_a_folder_that_is_shuffled_by_indices_is_refused(cached, tmp_path):
    folder, *_ = cached
    import shutil

    shutil.copytree(folder, tmp_path / "in")
    state = json.loads((tmp_path / "in" / "state.json").read_text())
    (tmp_path / "in" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "x"}]}))
    with pytest.raises(UserError, match="shuffled by a list of indices"):
        import_store(tmp_path / "in", out=tmp_path / "acts")
