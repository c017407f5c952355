"""SAELens's layout, both ways: against its formulas, and (slow: its import takes a minute) against SAELens itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.cli import main
from workbench.dictionary import Dictionary, load_dictionary
from workbench.dictionary_saelens import ARCHITECTURES, to_saelens
from workbench.errors import UserError

HOOK, Z = "blocks.0.hook_resid_post", "blocks.0.attn.hook_z"
WIDTH, LATENTS, ROWS, K = 8, 20, 50, 3


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows() -> torch.Tensor:
    return 0.5 + 2 * draw(ROWS, WIDTH, seed=2)


# --- theirs ----------------------------------------------------------------------------------------------------------
def theirs(path, architecture="topk", width_out=WIDTH, **config):
    """Write a folder as SAELens 6 has it; returns its configuration, weights and path."""
    tensors = {
        "W_enc": draw(WIDTH, LATENTS, seed=0),
        "W_dec": draw(LATENTS, width_out, seed=1),
        "b_dec": draw(width_out, seed=3),
    }
    names = ("r_mag", "b_mag", "b_gate") if architecture == "gated" else ("b_enc",)
    tensors |= {name: 0.3 * draw(LATENTS, seed=4 + at) for at, name in enumerate(names)}
    if "jumprelu" in architecture:
        tensors["threshold"] = draw(LATENTS, seed=9).abs()
    settings = {
        "architecture": architecture,
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": HOOK, "model_name": "tiny"},
    }
    settings |= {"k": K} if architecture == "topk" else {}
    settings |= {"d_out": width_out} if "transcoder" in architecture else {}
    settings |= config
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(settings))
    return settings, tensors, path


def by_their_formulas(config, tensors, x):
    """Return activations and reconstructions as SAELens's source computes them, in float64."""
    x = x.double()
    w = {name: tensor.double() for name, tensor in tensors.items()}
    architecture, normalised = config["architecture"], config["normalize_activations"]
    mean, length = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if normalised == "layer_norm":
        mean, length = x.mean(1, keepdim=True), (x - x.mean(1, keepdim=True)).std(1, keepdim=True)
        inside = (x - mean) / (length + 1e-5)
    elif normalised == "constant_norm_rescale":
        length = x.norm(dim=1, keepdim=True) / WIDTH**0.5
        inside = x / length
    else:
        inside = x
    inside = inside - w["b_dec"] if config["apply_b_dec_to_input"] else inside
    norms = w["W_dec"].norm(dim=1)
    if architecture == "gated":
        gate = inside @ w["W_enc"] + w["b_gate"] > 0
        codes = gate * (inside @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        codes = inside @ w["W_enc"] + w["b_enc"]
        if "jumprelu" in architecture:
            codes = codes.relu() * (codes > w["threshold"])
        elif architecture == "topk":
            codes = codes * norms if config.get("rescale_acts_by_decoder_norm") else codes
            top = codes.topk(config["k"], dim=1)
            codes = torch.zeros_like(codes).scatter(1, top.indices, top.values.relu())
        codes = codes.relu()
    decoded = (codes / norms if config.get("rescale_acts_by_decoder_norm") else codes) @ w["W_dec"] + w["b_dec"]
    return codes.float(), (decoded * length + mean).float()


KINDS = [
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"apply_b_dec_to_input": False}),
    ("topk", {"normalize_activations": "layer_norm"}),
    ("standard", {}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("standard", {"normalize_activations": "expected_average_only_in"}),
    ("jumprelu", {}),
    ("jumprelu", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    ("gated", {}),
    ("gated", {"apply_b_dec_to_input": False}),
    ("transcoder", {}),
    ("jumprelu_transcoder", {}),
]


@pytest.mark.parametrize(("architecture", "config"), KINDS)
def test_their_folders_give_their_activations_and_reconstructions(architecture, config, tmp_path):
    config, tensors, folder = theirs(tmp_path / "sae", architecture, **config)
    ours = load_dictionary(folder)
    codes, reconstruction = by_their_formulas(config, tensors, rows())
    torch.testing.assert_close(ours.encode_dense(rows()), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(rows()), reconstruction, rtol=1e-5, atol=1e-5)
    assert 0 < (codes > 0).double().mean() < 0.9
    assert (ours.hook_in, ours.subject_address, ours.subject_fingerprint) == (HOOK, "tiny", "")


def test_a_transcoder_may_write_another_width_and_hook_point(tmp_path):
    metadata = {"sae_lens_version": "6.54.12", "hook_name": HOOK, "hook_name_out": "blocks.0.hook_mlp_out"}
    config, tensors, folder = theirs(tmp_path / "sae", "transcoder", width_out=5, metadata=metadata)
    ours = load_dictionary(folder)
    assert (ours.hook_in, ours.hook_out) == (HOOK, "blocks.0.hook_mlp_out")
    torch.testing.assert_close(ours.reconstruct(rows()), by_their_formulas(config, tensors, rows())[1])


def test_folders_of_old_versions_are_read(tmp_path):
    old = {
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_point": HOOK,
        "model_name": "tiny", "metadata": None,
    }  # fmt: skip
    _, tensors, folder = theirs(tmp_path / "sae", "standard", **old)
    ours = load_dictionary(folder)
    assert (ours.activation, ours.k, ours.hook_in, ours.subject_address) == ("topk", 3, HOOK, "tiny")
    save_file({**tensors, "scaling_factor": torch.ones(LATENTS)}, folder / "sae_weights.safetensors")
    assert torch.equal(load_dictionary(folder).W_enc, ours.W_enc)


CENTRED = {"hook_name": HOOK, "model_from_pretrained_kwargs": {"center_writing_weights": True}}


def test_a_dictionary_of_a_centred_stream_reads_a_plain_one(tmp_path):
    """Theirs expects each row without its mean; ours takes it off, and gives it back."""
    config, tensors, folder = theirs(tmp_path / "sae", metadata=CENTRED)
    ours, x = load_dictionary(folder), rows()
    mean = x.mean(1, keepdim=True)
    codes, reconstruction = by_their_formulas(config, tensors, x - mean)
    assert ours.normalisation == "centre"
    torch.testing.assert_close(ours.encode_dense(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(x), reconstruction + mean, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(codes, by_their_formulas(config, tensors, x)[0], atol=0.1)  # it is not the same
    ours.save(tmp_path / "again", layout="saelens")
    again = load_dictionary(tmp_path / "again")
    torch.testing.assert_close(again.reconstruct(x), ours.reconstruct(x))
    metadata = {**CENTRED, "hook_name": "blocks.0.mlp.hook_post"}  # is not in the stream
    assert load_dictionary(theirs(tmp_path / "mlp", metadata=metadata)[2]).normalisation == "none"
    layer_norm = theirs(tmp_path / "ln", metadata=CENTRED, normalize_activations="layer_norm")[2]
    assert load_dictionary(layer_norm).normalisation == "layer_norm"


def test_old_thresholds_are_logarithms(tmp_path):
    _, tensors, folder = theirs(tmp_path / "sae", "jumprelu")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, folder / "sae_weights.safetensors")
    torch.testing.assert_close(load_dictionary(folder).threshold, tensors["log_threshold"].exp())


UNSUPPORTED = [
    ({"architecture": "temporal"}, "architecture 'temporal'; supported: topk, standard, jumprelu, gated"),
    ({"architecture": "skip_transcoder"}, "architecture 'skip_transcoder'; supported"),
    ({"normalize_activations": "batch"}, "normalised by 'batch' are not supported"),
    (
        {"architecture": "transcoder", "normalize_activations": "layer_norm"},
        r"a transcoder whose inputs are normalised \(layer_norm\)",
    ),
    (
        {"metadata": CENTRED, "normalize_activations": "constant_norm_rescale"},
        r"weights were processed \(center_writing_weights\)",
    ),
    (
        {"metadata": {"hook_name": Z, "model_from_pretrained_kwargs": {"fold_value_biases": True}}},
        r"weights were processed \(fold_value_biases\)",
    ),
    ({"metadata": {}}, "names no hook point"),
    ({"metadata": {"hook_name": HOOK, "hook_head_index": 3}}, "reads head 3 of blocks.0.hook_resid_post alone"),
]


@pytest.mark.parametrize(("config", "says"), UNSUPPORTED)
def test_what_they_have_and_we_have_not_is_refused(config, says, tmp_path):
    _, _, folder = theirs(tmp_path / "sae", **config)
    with pytest.raises(UserError, match=says):
        load_dictionary(folder)


def test_a_damaged_folder_is_named(tmp_path):
    _, tensors, folder = theirs(tmp_path / "sae", "jumprelu")
    del tensors["threshold"]
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="is incomplete: threshold is missing"):
        load_dictionary(folder)
    save_file({**tensors, "scaling_factor": torch.full((LATENTS,), 2.0)}, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="fine-tuned with a scaling factor"):
        load_dictionary(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"sae_weights\.safetensors is damaged"):
        load_dictionary(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"sae_weights\.safetensors is missing"):
        load_dictionary(folder)


# --- ours ------------------------------------------------------------------------------------------------------------
def make(activation="topk", **changes) -> Dictionary:
    b_dec = draw(WIDTH, seed=13)
    parts = {
        "W_enc": draw(LATENTS, WIDTH, seed=10),
        "b_enc": 0.1 * draw(LATENTS, seed=11),
        "W_dec": draw(LATENTS, WIDTH, seed=12),
        "b_dec": b_dec,
        "b_pre": b_dec,
        "activation": activation,
        "hook_in": HOOK,
        "hook_out": HOOK,
        "k": K if activation == "topk" else None,
        "threshold": draw(LATENTS, seed=14).abs() if activation == "jumprelu" else None,
        "scale": 0.5,
        "subject_address": "zoo:tiny",
        "subject_fingerprint": "abc",
    }
    return Dictionary(**(parts | changes))


TRANSCODER = {"hook_out": "blocks.0.hook_mlp_out", "W_dec": draw(LATENTS, 5, seed=12), "b_dec": draw(5, seed=13)}
OURS = [
    ("topk", {}),
    ("topk", {"b_pre": draw(WIDTH, seed=15)}),
    ("topk", {"normalisation": "layer_norm", "scale": 1.0}),
    ("topk", {"hook_in": Z, "hook_out": Z}),
    ("relu", {"normalisation": "unit_norm"}),
    ("relu", TRANSCODER),
    ("jumprelu", {}),
    ("jumprelu", TRANSCODER),
]


@pytest.mark.parametrize(("activation", "changes"), OURS)
def test_what_is_written_gives_the_same_by_their_formulas_and_comes_back(activation, changes, tmp_path):
    ours = make(activation, **changes)
    ours.save(tmp_path / "sae", layout="saelens")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    tensors = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    codes, reconstruction = by_their_formulas(config, tensors, rows())
    torch.testing.assert_close(ours.encode_dense(rows()), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(rows()), reconstruction, rtol=1e-5, atol=1e-5)
    back = load_dictionary(tmp_path / "sae")
    torch.testing.assert_close(back.encode_dense(rows()), codes, rtol=1e-5, atol=1e-5)
    assert (back.hook_in, back.hook_out) == (ours.hook_in, ours.hook_out)
    assert (back.subject_address, back.subject_fingerprint) == ("zoo:tiny", "abc")


def test_the_model_is_named_as_they_name_it():
    for address, name in [("tl:gpt2", "gpt2"), ("hf:org/model", "org/model"), ("zoo:tiny", "zoo:tiny")]:
        config, _ = to_saelens(make(subject_address=address))
        assert config["metadata"]["model_name"] == name


def test_what_they_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="SAELens has no topk transcoder"):
        make("topk", **TRANSCODER).save(tmp_path / "sae", layout="saelens")
    with pytest.raises(UserError, match="transcoders do not normalise rows"):
        make("relu", normalisation="layer_norm", **TRANSCODER).save(tmp_path / "sae", layout="saelens")
    for crosscoder in ({"hook_in": f"{HOOK} + {Z}", "hook_out": f"{HOOK} + {Z}"}, {"hook_in": f"{HOOK} + {Z}"}):
        with pytest.raises(UserError, match="nothing that takes several hook points at once"):
            make("relu", **crosscoder).save(tmp_path / "sae", layout="saelens")
    assert not (tmp_path / "sae").exists()


def test_the_command_line_exports_and_describes(tmp_path, capsys):
    ours = make("jumprelu")
    ours.save(tmp_path / "ours")
    assert main(["dictionary", "export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    assert (tmp_path / "theirs" / "cfg.json").is_file()
    assert main(["dictionary", "info", str(tmp_path / "theirs"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert (facts["latents"], facts["activation"], facts["subject"]) == (LATENTS, "jumprelu", "zoo:tiny")
    assert main(["dictionary", "export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 2
    assert "exists already" in capsys.readouterr().err
    replace(ours, **TRANSCODER, activation="topk", k=3, threshold=None).save(tmp_path / "transcoder")
    assert main(["dictionary", "export", str(tmp_path / "transcoder"), str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "none.part").exists()


# --- SAELens itself --------------------------------------------------------------------------------------------------
pytestmark = pytest.mark.filterwarnings("default")  # importing sae_lens warns of others' deprecations


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "config"), KINDS)
def test_activations_equal_those_of_sae_lens(architecture, config, tmp_path):
    from sae_lens import SAE

    _, _, folder = theirs(tmp_path / "sae", architecture, **config)
    sae, ours = SAE.load_from_disk(folder), load_dictionary(folder)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_dense(rows()), sae.encode(rows()), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(rows()), sae(rows()), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "changes"), OURS)
def test_sae_lens_loads_what_is_written(activation, changes, tmp_path):
    from sae_lens import SAE

    ours = make(activation, **changes)
    ours.save(tmp_path / "sae", layout="saelens")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.architecture() == ARCHITECTURES[activation, ours.hook_in != ours.hook_out]
    x = rows().view(ROWS, 2, WIDTH // 2) if ours.hook_in == Z else rows()
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), ours.encode_dense(rows()), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x).flatten(1), ours.reconstruct(rows()), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_sae_lens_trained_and_saved_is_read(tmp_path):
    """A BatchTopK autoencoder of SAELens becomes a JumpReLU one when it is saved for inference."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=3))
    trained.cfg.metadata.hook_name = HOOK
    trained.topk_threshold = torch.tensor(0.3, dtype=torch.double)
    trained.save_inference_model(tmp_path / "sae")
    ours = load_dictionary(tmp_path / "sae")
    assert ours.activation == "jumprelu"
    assert torch.allclose(ours.threshold, torch.tensor(0.3))
    with torch.no_grad():
        hidden = trained.process_sae_in(rows()) @ trained.W_enc + trained.b_enc
        want = hidden * trained.W_dec.norm(dim=1)
        torch.testing.assert_close(ours.encode_dense(rows()), want.relu() * (want > 0.3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "saelens:gpt2-small-res-jp/blocks.8.hook_resid_pre",
            "no release 'gpt2-small-res-jp'; nearest: gpt2-small-res",
        ),
        ("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pots", "nearest: .*blocks.8.hook_resid_pre"),
        ("saelens:gpt2-small-res-jb", "write saelens:RELEASE/ID"),
    ],
)
def test_wrong_releases_are_explained(address, says):
    with pytest.raises(UserError, match=says):
        load_dictionary(address)


@pytest.mark.slow
def test_without_a_network_the_cause_is_named(monkeypatch):
    from sae_lens import SAE

    def unreachable(release, name):
        raise OSError("no route to the hub\nand much more")

    monkeypatch.setattr(SAE, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"could not download it \(OSError: no route to the hub\)"):
        load_dictionary("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre")


@pytest.mark.slow
def test_a_release_is_read_as_sae_lens_reads_it(tmp_path, monkeypatch):
    """The hub is a folder here: everything else on the way is SAELens's own."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders

    old = {"hook_point": HOOK, "model_name": "gpt2-small"}
    config, _, folder = theirs(tmp_path / "hub", "standard", **old)
    del config["metadata"]  # before SAELens 6 there was none
    (folder / "cfg.json").write_text(json.dumps(config))

    def download(repo_id, filename, force_download=False):
        if not (folder / Path(filename).name).exists():
            raise EntryNotFoundError(filename)
        return str(folder / Path(filename).name)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    ours = load_dictionary("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre")
    sae = SAE.from_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    assert ours.normalisation == "centre"  # the release says that its subject's weights were
    x = rows()
    mean = x.mean(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_dense(x), sae.encode(x - mean), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(x), sae(x - mean) + mean, rtol=1e-5, atol=1e-5)


@pytest.mark.network
def test_a_release_is_downloaded():
    dictionary = load_dictionary("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert (dictionary.width, dictionary.n_latents, dictionary.hook_in) == (768, 24576, "blocks.8.hook_resid_pre")
