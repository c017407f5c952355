"""Direct logit attribution: parts that sum to the logit, each against the weights in float64."""

import pytest
import torch

import workbench as wb
from workbench.logit_attribution import EDITS, REST

PROMPT = "four days after Monday it is"


@pytest.fixture(scope="module")
def subject():
    return wb.load_subject("zoo:calendar", dtype="float64")


def logits_at_end(subject, edits=None):
    return subject.intervene(subject.batch([PROMPT]), edits or {})[0, -1].double()


def test_each_component_is_what_the_weights_say(subject):
    found = wb.direct_logit_attribution(subject, PROMPT, "Friday", "Thursday").set_index("component")["logit"]
    right, wrong = (subject.tokenizer.token_to_id(word) for word in ("Friday", "Thursday"))
    logits = logits_at_end(subject)
    assert found.sum() == pytest.approx(float(logits[right] - logits[wrong]), rel=1e-9)
    names = ["blocks.1.attn.hook_result", "blocks.1.hook_mlp_out", "ln_final.hook_scale"]
    run = subject.run(subject.batch([PROMPT]), capture=names).captured
    reads = subject.weights("ln_final.w") * (subject.weights("W_U")[:, right] - subject.weights("W_U")[:, wrong])

    def direct(vector):
        return float((vector - vector.mean()) @ reads / run["ln_final.hook_scale"][0, -1, 0])

    assert found["m1"] == pytest.approx(direct(run["blocks.1.hook_mlp_out"][0, -1]), rel=1e-8)
    for head in range(4):
        assert found[f"a1.h{head}"] == pytest.approx(direct(run["blocks.1.attn.hook_result"][0, -1, head]), rel=1e-8)
    bias = subject.weights("ln_final.b") @ (subject.weights("W_U")[:, right] - subject.weights("W_U")[:, wrong])
    assert found[REST] == pytest.approx(float(bias), rel=1e-8)
    assert EDITS not in found.index


def test_what_an_edit_adds_has_a_row_of_its_own(subject):
    push = torch.linspace(-1, 1, subject.d_model, dtype=torch.float64)
    edits = {"blocks.0.hook_resid_post": lambda x, at: x + push}
    found = wb.direct_logit_attribution(subject, PROMPT, "Friday", edits=edits)
    right = subject.tokenizer.token_to_id("Friday")
    assert found["logit"].sum() == pytest.approx(float(logits_at_end(subject, edits)[right]), rel=1e-9)
    assert abs(found.set_index("component")["logit"][EDITS]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "llama"])
def test_sums_hold_for_norms_and_soft_caps_of_other_families(kind, tmp_path):
    import transformers

    from workbench.testing.checkpoints import save_random

    sizes = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    wide = sizes | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    config = {
        "gpt2": lambda: transformers.GPT2Config(vocab_size=60, n_layer=2, n_head=4, n_embd=32, n_positions=32),
        "gemma2": lambda: transformers.Gemma2Config(**wide, query_pre_attn_scalar=8),
        "llama": lambda: transformers.LlamaConfig(**wide),
    }[kind]()
    folder = save_random(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    tokenizer = wb.load_subject("zoo:calendar").tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>").save_pretrained(folder)
    subject = wb.load_subject(f"hf:{folder}", dtype="float64")
    ids = [1, 5, 9, 13]
    found = wb.direct_logit_attribution(subject, ids, 7, 8)
    logits = subject.run(subject.batch([ids])).value[0, -1]
    assert found["logit"].sum() == pytest.approx(float(logits[7] - logits[8]), rel=1e-6)
    heads = found[found["kind"] == "head"]
    assert len(heads) == (0 if kind == "gemma2" else 8)
