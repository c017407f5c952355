"""Hook points mean what they mean in TransformerLens: the same values as its own TransformerBridge gives."""

import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from workbench.subjects import tl_source
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import assert_near, everything

SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "vocab_size": 270,
    "max_position_embeddings": 32,
}
CONFIGS = {
    "gpt2": transformers.GPT2Config(n_embd=24, n_head=6, n_layer=2, vocab_size=270, n_positions=32),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "gemma2": transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=6),
}
COMMON = (
    "hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "attn.hook_q", "attn.hook_k", "attn.hook_v",
    "attn.hook_z", "attn.hook_pattern", "mlp.hook_post", "hook_q_input", "attn.hook_result",
)  # fmt: skip


@pytest.fixture(params=list(CONFIGS))
def family(request):
    return request.param


@pytest.fixture
def both(family, tmp_path, byte_tokenizer):
    """The subject, and a TransformerBridge booted from the same folder."""
    save_random(transformers.AutoModelForCausalLM.from_config(CONFIGS[family]), tmp_path)
    byte_tokenizer("a b", bos="<s>").save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    return tl_source.load(str(tmp_path), device="cpu"), bridge


def test_values_are_those_of_the_transformer_bridge(both):
    subject, bridge = both
    tokens = [[5, 6, 7, 8, 9, 10]]
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(torch.tensor(tokens))
    batch = subject.batch(tokens)
    seen = everything(subject, batch)
    assert_near(subject.run(batch).value, logits, "logits")
    for layer in range(subject.n_layers):
        for suffix in COMMON:
            name = f"blocks.{layer}.{suffix}"
            assert_near(seen[name], cache[name], name, tolerance=2e-5)
