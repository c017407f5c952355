"""A copied language model of Hugging Face has weights and hooks of its own."""

import copy

import pytest
import torch

from workbench.subjects.hf_source import load
from workbench.testing.checkpoints import save_random

FAMILIES = {
    "gpt2": ("GPT2", {"n_embd": 24, "n_head": 6, "n_layer": 2, "n_positions": 32}),
    "gpt_neo": (
        "GPTNeo",
        {"hidden_size": 24, "num_heads": 6, "num_layers": 2, "max_position_embeddings": 32,
         "attention_types": [[["global"], 2]]},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_reads_its_own_weights(family, tmp_path):
    import transformers

    name, sizes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(vocab_size=50, bos_token_id=1, eos_token_id=2, **sizes)
    folder = save_random(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    subject = load(str(folder), device="cpu")
    batch = subject.batch([[3, 4, 5, 6], [7, 8]])
    names = ["blocks.1.attn.hook_result", "blocks.1.hook_attn_out", "blocks.1.attn.hook_pattern"]
    before = subject.run(batch, capture=names)
    other = copy.deepcopy(subject)
    assert other.fingerprint() == subject.fingerprint()
    same = other.run(batch, capture=names)
    torch.testing.assert_close(same.value, before.value)
    other.weights("W_O", 1).normal_()
    other.weights("W_Q", 1).mul_(5)
    moved, after = other.run(batch, capture=names).captured, subject.run(batch, capture=names)
    torch.testing.assert_close(moved[names[0]].sum(2) + other.weights("b_O", 1), moved[names[1]], rtol=1e-4, atol=1e-4)
    assert (moved[names[0]] - before.captured[names[0]]).abs().max() > 0.1
    assert not torch.equal(moved[names[2]], before.captured[names[2]])
    for name in names:
        assert torch.equal(after.captured[name], before.captured[name])
    turned = other.intervene(batch, {"blocks.0.hook_q_input": lambda x, at: -x})
    assert not torch.equal(turned, other.run(batch).value)
