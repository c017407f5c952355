"""Language models of Hugging Face: equal to their library, exact sums, edits that do what they say and nothing else."""

import pytest
import torch
import transformers

from workbench.errors import UserError
from workbench.subjects.hf_source import load
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import (
    CHECKS,
    assert_near,
    check_declared_shapes,
    check_forward_order,
    check_gradients_are_slopes,
    check_identity_edits,
    everything,
    noise,
)

SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT_SIZES = {
    "n_embd": 24,
    "n_head": 6,
    "n_layer": 2,
    "vocab_size": 50,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT_SIZES = {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 24}
NEO_SIZES = {
    "hidden_size": 24,
    "num_heads": 6,
    "num_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES = {
    "gpt2": ("GPT2", GPT_SIZES, {}),
    "llama": ("Llama", SIZES, GROUPED),
    "gpt_neox": ("GPTNeoX", SIZES, {"rotary_pct": 0.5}),
    "gemma2": ("Gemma2", SIZES, {**GROUPED, "head_dim": 6, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "qwen3": ("Qwen3", SIZES, {**GROUPED, "head_dim": 6}),
    "opt": ("OPT", OPT_SIZES, {}),
    "opt-post-norm": ("OPT", OPT_SIZES, {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "phi3": ("Phi3", SIZES, {**GROUPED, "partial_rotary_factor": 0.5}),
    "gptj": ("GPTJ", GPT_SIZES, {"rotary_dim": 2}),
    "olmo2": ("Olmo2", SIZES, GROUPED),
    "neox-sequential": ("GPTNeoX", SIZES, {"use_parallel_residual": False}),
}
VARIANTS = {
    "gemma3": ("Gemma3Text", SIZES, {**GROUPED, "head_dim": 6, "sliding_window": 4}),
    "mistral-window": ("Mistral", SIZES, {**GROUPED, "sliding_window": 4}),
    "gpt2-untied": ("GPT2", GPT_SIZES, {"n_head": 1, "n_layer": 3, "n_inner": 28, "tie_word_embeddings": False}),
    "gpt2-scaled": ("GPT2", GPT_SIZES, {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "llama-biases": ("Llama", SIZES, {"head_dim": 10, "attention_bias": True, "mlp_bias": True}),
    "llama-one-kv": ("Llama", SIZES, {"num_key_value_heads": 1, "tie_word_embeddings": True, "num_hidden_layers": 1}),
    "neox-no-bias": ("GPTNeoX", SIZES, {"attention_bias": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
    "phi": ("Phi", SIZES, GROUPED),
    "phi-qk-norm": ("Phi", SIZES, {"qk_layernorm": True}),
    "stablelm": ("StableLm", SIZES, {**GROUPED, "qk_layernorm": True}),
    "stablelm-parallel": ("StableLm", SIZES, {**GROUPED, "use_parallel_residual": True, "use_qkv_bias": True}),
    "opt-no-bias": ("OPT", OPT_SIZES, {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "qwen2-window": (
        "Qwen2",
        SIZES,
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "gemma": ("Gemma", SIZES, {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma2-logit-cap": ("Gemma2", SIZES, {**GROUPED, "head_dim": 6, "final_logit_softcapping": 3.0}),
    "gpt-neo-local": ("GPTNeo", NEO_SIZES, {"attention_types": [[["global", "local"], 1]], "window_size": 3}),
    "gpt-bigcode-mqa": ("GPTBigCode", GPT_SIZES, {"multi_query": True}),
    "gpt-bigcode-mha": ("GPTBigCode", GPT_SIZES, {"multi_query": False}),
    "starcoder2": ("Starcoder2", SIZES, GROUPED),
    "olmo": ("Olmo", SIZES, {"num_key_value_heads": 3}),
    "olmo3": ("Olmo3", SIZES, GROUPED),
    "cohere": ("Cohere", SIZES, {**GROUPED, "use_qk_norm": True}),
    "cohere2": ("Cohere2", SIZES, GROUPED),
    "exaone4": ("Exaone4", SIZES, GROUPED),
    "granite": ("Granite", SIZES, {**GROUPED, "residual_multiplier": 0.22, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3", SIZES, GROUPED),
    "nemotron": ("Nemotron", SIZES, GROUPED),
    "glm": ("Glm", SIZES, {**GROUPED, "head_dim": 6}),
    "glm4": ("Glm4", SIZES, {**GROUPED, "head_dim": 6}),
    "mixtral": ("Mixtral", SIZES, {**GROUPED, "num_local_experts": 4}),
    "qwen3-moe": ("Qwen3Moe", SIZES, {**GROUPED, **MOE, "head_dim": 6}),
}
SEQUENCES = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12, 13, 14], [20]]
LIBRARY_ONLY_FLOAT32 = {"mixtral", "qwen3-moe"}  # torch's grouped matrix product takes no float64


@pytest.fixture(
    scope="module",
    params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)],
)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    name, sizes, settings = {**FAMILIES, **VARIANTS}[family]
    config = getattr(transformers, f"{name}Config")(**{**sizes, **settings})
    return save_random(transformers.AutoModelForCausalLM.from_config(config), tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def subject(folder):
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def batch(subject):
    return subject.batch(SEQUENCES)


def library_logits(folder, dtype):
    """Logits of each sequence alone, by the plain library."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return [model(torch.tensor([tokens])).logits[0] for tokens in SEQUENCES]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_exactness(check, subject, batch):
    check(subject, batch)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_logits_are_the_librarys(folder, family, dtype, tolerance):
    if dtype == "float64" and family in LIBRARY_ONLY_FLOAT32:
        with pytest.raises(UserError, match="does not run in"):
            load(str(folder), device="cpu", dtype=dtype)
        return
    subject = load(str(folder), device="cpu", dtype=dtype)
    got = subject.run(subject.batch(SEQUENCES)).value
    for i, want in enumerate(library_logits(folder, getattr(torch, dtype))):
        torch.testing.assert_close(got[i, : len(want)], want, atol=tolerance * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "gpt_neox",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt-post-norm", "phi", "starcoder2")),
    ],
    indirect=True,
    scope="module",
)
def test_gradients_are_slopes(folder):
    subject = load(str(folder), device="cpu", dtype="float64")  # families whose norms compute in float64 as well
    check_gradients_are_slopes(subject, subject.batch(SEQUENCES))


@pytest.mark.parametrize(
    "check",
    [
        check_declared_shapes,
        pytest.param(check_forward_order, marks=pytest.mark.slow),
        pytest.param(check_identity_edits, marks=pytest.mark.slow),
    ],
)
def test_narrow_dtypes(check, folder):
    subject = load(str(folder), device="cpu", dtype="bfloat16")
    check(subject, subject.batch(SEQUENCES))


def test_sequence_alone_gives_the_librarys_bits(subject, folder):
    for tokens, want in zip(SEQUENCES, library_logits(folder, "auto"), strict=True):
        assert torch.equal(subject.run(subject.batch([tokens])).value[0], want)


def test_weights_give_the_activations(subject, batch):
    """Queries, keys and values, results, MLP: by the weights of their roles."""
    seen = everything(subject, batch)
    for layer in range(subject.n_layers):
        at, parts = f"blocks.{layer}.", subject.parts.blocks[layer]
        known = roles(subject, layer)
        into = seen.get(at + "ln1.hook_normalized", seen[at + "hook_resid_pre"])
        for letter in "QKV":
            want = torch.einsum("bpd,hde->bphe", into, subject.weights(f"W_{letter}", layer))
            want = want + (subject.weights(f"b_{letter}", layer) if f"b_{letter}" in known else 0)
            assert_near(seen[f"{at}attn.hook_{letter.lower()}"], want, f"W_{letter}")
        if parts.ln1_post is None:
            want = seen[at + "attn.hook_result"].sum(2)
            want = want + (subject.weights("b_O", layer) if "b_O" in known else 0)
            assert_near(seen[at + "hook_attn_out"], want * multiplier(parts), "b_O")
        if "W_out" in known:
            want = seen[at + "mlp.hook_post"] @ subject.weights("W_out", layer)
            want = want + (subject.weights("b_out", layer) if "b_out" in known else 0)
            if parts.ln2_post is None:
                assert_near(seen[at + "hook_mlp_out"], want * multiplier(parts), "W_out")


def test_norms_divide_by_their_scale(subject, batch, family):
    """Norm = (x - mean) / scale * weight + bias, and half of it once the scale is doubled."""
    names = [name for name in subject.hook_points if name.endswith("ln1.hook_scale") or name == "ln_final.hook_scale"]
    seen = everything(subject, batch)
    for name in names:
        prefix = name.removesuffix("hook_scale")
        if prefix + "hook_normalized" not in seen:  # behind a sum, where the output has another name
            continue
        layer = None if prefix == "ln_final." else int(prefix.split(".")[1])
        x = seen[
            f"blocks.{subject.n_layers - 1}.hook_resid_post" if layer is None else f"blocks.{layer}.hook_resid_pre"
        ]
        norm = subject.parts.ln_final if layer is None else subject.parts.blocks[layer].ln1
        x = x - x.mean(-1, keepdim=True) if "LayerNorm" in type(norm).__name__ else x
        weight, bias = (getattr(norm, kind, None) for kind in ("weight", "bias"))
        weight = (
            1.0 if weight is None else weight + float("Gemma" in type(norm).__name__ or "1P" in type(norm).__name__)
        )
        bias = 0.0 if bias is None else bias
        assert_near(seen[prefix + "hook_normalized"], x / seen[name] * weight + bias, prefix)
        edits = {name: lambda scale, at: scale * 2}
        halved = subject.run(batch, capture=[prefix + "hook_normalized"], edits=edits).captured
        assert_near(halved[prefix + "hook_normalized"], x / seen[name] * weight / 2 + bias, prefix)


def multiplier(parts):
    return getattr(parts.block, "residual_multiplier", 1.0)


def roles(subject, layer):
    """Roles of one block, as the message for an unknown one lists them."""
    with pytest.raises(UserError, match="has no weight 'W_X'") as caught:
        subject.weights("W_X", layer)
    return str(caught.value).rsplit("it has ", maxsplit=1)[1].split(", ")


def test_an_edited_weight_is_the_models_own(subject, batch):
    """Every weight is a view: a change in place shows in the next pass, and changing it back leaves no trace."""
    before = everything(subject, batch)
    places = [(role, layer) for layer in range(subject.n_layers) for role in roles(subject, layer)]
    places += [(role, None) for role in roles(subject, None)]
    for role, layer in places:
        weight = subject.weights(role, layer)
        kept = weight.clone()
        weight.add_(noise(weight) + 0.1)
        after = everything(subject, batch)
        weight.copy_(kept)
        assert any(not torch.equal(after[name], value) for name, value in before.items()), (role, layer)
    again = everything(subject, batch)
    assert all(torch.equal(again[name], value) for name, value in before.items())


def test_grouped_heads_are_repeated_on_request(subject):
    repeats = subject.n_heads // subject.n_key_value_heads
    for role in ("W_K", "W_V"):
        weight = subject.weights(role, 0)
        assert tuple(weight.shape) == (subject.n_key_value_heads, subject.d_model, subject.d_head)
        assert torch.equal(subject.weights(role, 0, expand=True), weight.repeat_interleave(repeats, dim=0))


def test_sizes_and_promised_hook_points(subject, family):
    shapes = {name: point.shape for name, point in subject.hook_points.items()}
    at = f"blocks.{subject.n_layers - 1}."
    heads, width = (None, None, subject.n_heads), subject.d_model
    assert shapes[at + "hook_q_input"] == (*heads, width)
    assert shapes[at + "hook_k_input"] == shapes[at + "hook_v_input"] == (None, None, subject.n_key_value_heads, width)
    assert shapes[at + "attn.hook_result"] == (*heads, width)
    assert shapes[at + "attn.hook_pattern"] == (None, subject.n_heads, None, None)
    assert shapes[at + "hook_mlp_in"] == (None, None, width)
    assert shapes["hook_output"] == (None, None, subject.n_vocab)
    if subject.d_mlp:
        assert shapes[at + "mlp.hook_post"] == (None, None, subject.d_mlp)
        assert tuple(subject.weights("W_in", 0).shape) == (width, subject.d_mlp)
