"""Grouped-query attention taken apart: the same numbers, and each head's keys and values on their own."""

import pytest
import torch

from workbench.errors import UserError
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.ungrouping import ungrouped
from workbench.testing.checkpoints import save_random
from workbench.zoo.loading import load_zoo

SIZES = {
    "hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "num_key_value_heads": 2,
}  # fmt: skip
LIBRARY = {
    "llama": ("Llama", {"attention_bias": True}),
    "gemma2": ("Gemma2", {"head_dim": 6, "attn_logit_softcapping": 2.0}),
    "qwen3": ("Qwen3", {"head_dim": 6}),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {}),
}


def zoo_like():
    """A decoder of the zoo's kind whose four heads share two keys and values."""
    stack = Architecture(2, 16, 4, 4, 20, n_key_value_heads=2, causal=True, rotary_base=100.0)
    subject = load_zoo("calendar", device="cpu")
    torch.manual_seed(0)
    return type(subject)("zoo:grouped", Decoder(DecoderArchitecture(stack, subject.n_vocab, 32)), subject.text)


def check_each_head_reads_on_its_own(subject):
    other = ungrouped(subject)
    assert other.n_key_value_heads == other.n_heads == subject.n_heads
    batch = subject.batch([[3, 4, 5, 6], [7, 8]])
    want = subject.run(batch, capture=["blocks.*.attn.hook_pattern"])
    got = other.run(batch, capture=["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_z", "blocks.*.hook_k_input"])
    torch.testing.assert_close(got.value, want.value, rtol=1e-4, atol=1e-5)
    for name, value in want.captured.items():
        torch.testing.assert_close(got.captured[name], value, rtol=1e-4, atol=1e-5)
    assert got.captured["blocks.1.hook_k_input"].shape[2] == subject.n_heads

    def turn_round(x, at):
        x[:, :, 1] = -x[:, :, 1]
        return x

    edited = other.run(batch, capture=["blocks.0.attn.hook_z"], edits={"blocks.0.hook_v_input": turn_round})
    change = edited.captured["blocks.0.attn.hook_z"] - got.captured["blocks.0.attn.hook_z"]
    moved = change.abs().amax((0, 1, 3)) > 1e-4 * change.abs().max()
    assert moved.tolist() == [head == 1 for head in range(subject.n_heads)]
    assert ungrouped(other) is other


def test_a_decoder_of_our_own():
    check_each_head_reads_on_its_own(zoo_like())


@pytest.mark.slow
@pytest.mark.parametrize("family", LIBRARY)
def test_a_language_model_of_hugging_face(family, tmp_path):
    import transformers

    from workbench.subjects.hf_source import load

    name, settings = LIBRARY[family]
    config = getattr(transformers, f"{name}Config")(**SIZES, **settings)
    folder = save_random(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    check_each_head_reads_on_its_own(load(str(folder), device="cpu"))


@pytest.mark.slow
def test_fused_projections_are_refused(tmp_path):
    import transformers

    from workbench.subjects.hf_source import load

    config = transformers.Phi3Config(**SIZES)
    folder = save_random(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(UserError, match="one head after another"):
        ungrouped(load(str(folder), device="cpu"))
