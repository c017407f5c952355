"""Loading language models: addresses, dtypes, devices, tokenizers, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate import disk_offload, dispatch_model
from safetensors.torch import load_file, save_file

from workbench.errors import UserError
from workbench.subjects import hf_source, tl_source
from workbench.subjects.bridge import BridgeSubject
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random

TEXT = "The cat sat on the mat. The dog sat on the log."
SIZES = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(**settings):
    config = transformers.GPT2Config(**{**SIZES, "vocab_size": 300, **settings})
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    place = save_random(gpt2(), tmp_path_factory.mktemp("gpt2"))
    byte_tokenizer(TEXT, bos="<s>").save_pretrained(place)
    return place


def test_a_text_starts_as_the_tokenizer_starts_it_and_is_cut_into_windows(folder):
    subject = load_subject(f"hf:{folder}", device="cpu")
    windows = subject.windows(TEXT * 3)
    assert len(windows) > 1
    assert all(window.tokens[0] == 1 and window.special.tolist()[0] for window in windows)
    assert all(len(window.tokens) <= subject.n_context for window in windows)
    words = "".join(text for window in windows for text in subject.decode(window.tokens[1:]))
    assert words == TEXT * 3
    short = subject.batch([TEXT[:12]])
    assert torch.equal(short.inputs[0].cpu(), torch.from_numpy(subject.windows(TEXT[:12])[0].tokens))


def test_dtype_and_device_map_reach_the_loader(folder, monkeypatch):
    library, asked = transformers.AutoModelForCausalLM.from_pretrained, []

    def from_pretrained(name, **settings):
        asked.append(settings)
        return library(name, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    subject = load_subject(f"hf:{folder}", dtype="bfloat16", device_map="auto")
    assert asked[0]["device_map"] == "auto"
    assert asked[0]["trust_remote_code"] is False
    assert {parameter.dtype for parameter in subject.model.parameters()} == {torch.bfloat16}
    assert list(subject.device_map.values()) == [subject.device]
    assert subject.dtype == torch.bfloat16
    assert subject.run(subject.batch([[1, 2]])).value.dtype == torch.bfloat16
    as_saved = load_subject(f"hf:{folder}", device="cpu")
    assert as_saved.dtype == torch.float32
    assert as_saved.device == torch.device("cpu")


def test_a_model_spread_by_accelerate_runs(folder):
    """Accelerate moves what goes into each module, between our hooks and the module itself."""
    plain = hf_source.load(str(folder), device="cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    names = ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f", "lm_head"]
    dispatch_model(model, dict.fromkeys(names, "cpu"), force_hooks=True, main_device="cpu")
    spread = BridgeSubject("hf:spread", model)
    assert set(spread.device_map) == set(names)
    batch = plain.batch([[1, 2, 3], [4]])
    captured = [subject.run(batch, capture=["*"]).captured for subject in (plain, spread)]
    assert all(torch.equal(captured[0][name], captured[1][name]) for name in plain.hook_points)


def test_weights_on_disk_are_refused(folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    disk_offload(model, tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        BridgeSubject("hf:disk", model)


def test_the_checkpoints_dtype_is_kept(tmp_path):
    place = save_random(gpt2().to(torch.float16), tmp_path)
    assert hf_source.load(str(place), device="cpu").dtype == torch.float16


def test_a_model_without_tokenizer_takes_token_ids(tmp_path):
    subject = hf_source.load(str(save_random(gpt2(), tmp_path)), device="cpu")
    assert subject.run(subject.batch([[1, 2, 3], [4]])).value.shape == (2, 3, 300)
    assert subject.tokenizer_fingerprint() == "none"
    for attempt in (lambda: subject.batch(["text"]), lambda: subject.windows("text"), lambda: subject.decode([1])):
        with pytest.raises(UserError, match="has no tokenizer"):
            attempt()


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        pytest.param([[1, 300]], "token id 300: .* has ids 0 to 299", id="id beyond the vocabulary"),
        pytest.param([[1, -1]], "token id -1", id="negative id"),
        pytest.param([[1] * 17], "takes sequences of 1 to 16", id="too long"),
        pytest.param([[1], []], "takes sequences of 1 to 16", id="empty sequence"),
        pytest.param([], "at least one", id="no sequence"),
        pytest.param([TEXT * 3], "has [0-9]+ tokens.*: one sequence takes 1 to 16", id="text too long"),
    ],
)
def test_a_bad_batch_is_explained(folder, examples, says):
    subject = hf_source.load(str(folder), device="cpu")
    with pytest.raises(UserError, match=says):
        subject.batch(examples)


def test_weights_by_an_unknown_role_or_layer(folder):
    subject = hf_source.load(str(folder), device="cpu")
    with pytest.raises(UserError, match=r"no weight 'W_gate' in layer 1; it has W_Q, W_K"):
        subject.weights("W_gate", 1)
    with pytest.raises(UserError, match=r"no weight 'W_Q' as a whole; it has W_E, W_pos"):
        subject.weights("W_Q")
    with pytest.raises(UserError, match=r"layer 2: .* has layers 0 to 1"):
        subject.weights("W_Q", 2)


# --- tl: ----------------------------------------------------------------------------------------------------------
def test_tl_names_are_those_of_transformer_lens(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(hf_source, "load", lambda name, **given: asked.append((name, given)))
    for name in ("gpt2", "gpt2-small", "pythia-70m", "meta-llama/Llama-3.2-1B", str(folder)):
        tl_source.load(name, dtype="bfloat16", device_map="auto")
    assert [name for name, _ in asked] == [
        "gpt2", "gpt2", "EleutherAI/pythia-70m", "meta-llama/Llama-3.2-1B", str(folder),
    ]  # fmt: skip
    assert {(given["dtype"], given["device_map"]) for _, given in asked} == {("bfloat16", "auto")}
    assert asked[1][1]["address"] == "tl:gpt2-small"
    with pytest.raises(UserError, match=r"knows no model 'gtp2'; nearest: .*gpt2"):
        tl_source.load("gtp2")


def test_tl_and_hf_load_the_same_model(folder):
    by_tl, by_hf = load_subject(f"tl:{folder}", device="cpu"), load_subject(f"hf:{folder}", device="cpu")
    assert by_tl.address == f"tl:{folder}"
    assert by_tl.fingerprint() == by_hf.fingerprint()
    assert by_tl.tokenizer_fingerprint() == by_hf.tokenizer_fingerprint()


# --- fingerprints -------------------------------------------------------------------------------------------------
def test_a_fingerprint_is_of_configuration_and_weights(folder, tmp_path):
    fingerprint = hf_source.load(str(folder), device="cpu").fingerprint()
    again = hf_source.load(str(folder), device="cpu")
    assert again.fingerprint() == fingerprint
    again.weights("b_O", 0)[0] += 1e-3
    assert again.fingerprint() != fingerprint
    assert hf_source.load(str(folder), device="cpu", dtype="float16").fingerprint() != fingerprint
    other = save_random(gpt2(layer_norm_epsilon=1e-6), tmp_path)
    assert hf_source.load(str(other), device="cpu").fingerprint() != fingerprint


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_another_process(folder):
    code = (
        "import sys; from workbench.subjects.hf_source import load; subject = load(sys.argv[1], device='cpu'); "
        "print(subject.fingerprint(), subject.tokenizer_fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    subject = hf_source.load(str(folder), device="cpu")
    assert done.stdout.split() == [subject.fingerprint(), subject.tokenizer_fingerprint()]


# --- refused ------------------------------------------------------------------------------------------------------
def test_missing_weights_are_not_made_up(tmp_path):
    place = save_random(gpt2(tie_word_embeddings=False), tmp_path)
    weights = load_file(place / "model.safetensors")
    del weights["transformer.h.1.attn.c_proj.bias"], weights["lm_head.weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of a GPT2LMHeadModel: lm_head.weight, transformer.h.1.attn.c_"):
        hf_source.load(str(place), device="cpu")


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    record = {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        hf_source.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


UNSUPPORTED = [
    pytest.param("T5", {"d_model": 8, "num_layers": 1}, "type 't5', which is not supported; supported are", id="t5"),
    pytest.param("Mamba", {"hidden_size": 8, "num_hidden_layers": 1}, "not all of attention and MLP", id="mamba"),
    pytest.param("Bloom", {"hidden_size": 8, "n_head": 2, "n_layer": 1}, "fused query-key-value", id="bloom"),
    pytest.param("Olmo", {"hidden_size": 8, "clip_qkv": 1.0}, "clips queries", id="clipped"),
    pytest.param("XGLM", {"d_model": 8, "attention_heads": 2, "num_layers": 1}, "cannot be looked into", id="xglm"),
]


@pytest.mark.parametrize(("family", "sizes", "says"), UNSUPPORTED)
def test_an_architecture_that_cannot_be_shown_exactly_is_refused(family, sizes, says, tmp_path):
    common = {"vocab_size": 40, "num_attention_heads": 2, "intermediate_size": 8, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**{**common, **sizes})
    config.num_hidden_layers = 1
    mapping = transformers.AutoModelForSeq2SeqLM if family == "T5" else transformers.AutoModelForCausalLM
    save_random(mapping.from_config(config), tmp_path)
    with pytest.raises(UserError, match=says):
        hf_source.load(str(tmp_path), device="cpu")


BAD_ADDRESSES = [
    pytest.param("hf:{folder}#audio", "the name of a tower, vision or text", id="no such tower"),
    pytest.param("hf:{folder}#vision", "has no vision tower; leave out #vision", id="a language model has no towers"),
    pytest.param("hf:{folder}/missing", "there is no such folder", id="no such folder"),
    pytest.param("hf:{folder}/..", "cannot be loaded: .*model_type", id="a folder without a model"),
    pytest.param("hf:", "not an address", id="no name"),
]


@pytest.mark.parametrize(("address", "says"), BAD_ADDRESSES)
def test_a_bad_address_is_explained(address, says, folder):
    with pytest.raises(UserError, match=says):
        load_subject(address.format(folder=folder), device="cpu")


def test_device_and_device_map_are_one_choice(folder):
    with pytest.raises(UserError, match="give one of them"):
        load_subject(f"hf:{folder}", device="cpu", device_map="auto")
