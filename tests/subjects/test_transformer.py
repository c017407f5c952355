"""The stack of blocks: every shape of it keeps its promises, and its parts compute what they are called."""

from dataclasses import replace

import pytest
import torch

from workbench.errors import UserError
from workbench.subjects.architecture import ACTIVATIONS, HUGGING_FACE_ACTIVATIONS, Architecture, activation_named
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import Batch
from workbench.subjects.stacked import StackedSubject
from workbench.subjects.transformer import Stack, rotate
from workbench.testing.subjects import CHECKS, assert_near

BASE = Architecture(n_layers=2, d_model=12, n_heads=4, d_head=3, d_mlp=10, causal=True)
SHAPES = {
    "pre": BASE,
    "post": replace(BASE, norm="post"),
    "no norm": replace(BASE, norm="none"),
    "post, attention only": replace(BASE, norm="post", d_mlp=0),
    "attention only": replace(BASE, d_mlp=0, norm="none"),
    "grouped, rotary": replace(BASE, n_key_value_heads=2, rotary_base=100.0, d_head=4),
    "one key head": replace(BASE, n_key_value_heads=1, n_layers=1, d_head=5),
    "gated, scaled": replace(BASE, gated=True, layer_scale=True, activation="silu"),
    "scaled, attention only": replace(BASE, layer_scale=True, d_mlp=0),
    "no bias": replace(BASE, query_bias=False, key_bias=False, value_bias=False, out_bias=False, mlp_bias=False),
    "no key bias": replace(BASE, key_bias=False, activation="gelu_tanh"),
}


class TokenSubject(StackedSubject):
    """A decoder over token ids."""

    modality = "text"

    def tokenizer_fingerprint(self):
        """No tokenizer."""
        return ""

    def batch(self, examples):
        """Pad sequences of ids."""
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in examples], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in examples])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(tokens, mask, torch.zeros_like(mask))


def decoder(stack, **settings):
    """A subject with random weights around a stack."""
    torch.manual_seed(0)
    network = Decoder(DecoderArchitecture(stack, n_vocab=30, n_context=8, **settings))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (parameter.ndim == 1))
    return TokenSubject("test:decoder", network)


@pytest.mark.parametrize("shape", SHAPES)
def test_exactness(shape):
    subject = decoder(SHAPES[shape])
    batch = subject.batch([[3, 5, 6, 7, 2], [3, 9, 2]])
    for check in CHECKS:
        check(subject, batch)


def test_the_fused_computation_is_the_open_one():
    subject = decoder(SHAPES["grouped, rotary"])
    batch = subject.batch([[3, 5, 6, 7, 2], [3, 9, 2]])
    fused = subject.run(batch)
    opened = subject.run(batch, capture=["*"], grad=True)  # everything is computed in the open
    assert_near(opened.value.detach(), fused.value, "logits")


def test_rotation_is_exact_in_float64():
    stack = Stack(replace(BASE, rotary_base=100.0, d_head=6))
    x = torch.randn(1, 9, 2, 6, dtype=torch.float64)
    cos, sin = stack.rotary(9, x.device)
    first, second = x.chunk(2, dim=-1)
    angle = torch.arange(9).double()[:, None] * 100.0 ** (-torch.arange(3).double() / 3)
    turned = torch.complex(first, second) * torch.exp(1j * angle)[:, None, :]
    want = torch.cat([turned.real, turned.imag], dim=-1)
    assert_near(rotate(x, cos, sin), want, "rotation", 1e-14)
    assert rotate(x.float(), cos, sin).dtype is torch.float32


def test_rotated_scores_depend_on_the_distance_only():
    stack = Stack(replace(BASE, rotary_base=100.0, d_head=6))
    turns = stack.rotary(9, torch.device("cpu"))
    q, k = (torch.randn(6, dtype=torch.float64).expand(1, 9, 1, 6) for _ in range(2))
    scores = (rotate(q, *turns)[0, :, 0]) @ rotate(k, *turns)[0, :, 0].T
    assert_near(scores[1:, 1:], scores[:-1, :-1], "scores", 1e-12)
    assert not torch.isclose(scores[0, 0], scores[0, 1])


def test_a_bias_is_added_to_the_scores_with_padding_or_without():
    stack = Stack(replace(BASE, causal=False))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    bias = torch.randn(4, 3, 3)
    assert stack.visible(mask[:1], None) is None
    assert torch.equal(stack.visible(mask[:1], bias), bias[None])
    seen = stack.visible(mask, bias)
    assert torch.equal(seen[0], bias)
    assert torch.equal(seen[1, :, :, :2], bias[:, :, :2])
    assert seen[1, :, :, 2].isneginf().all()


def test_activations_are_the_librarys():
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    for theirs, ours in HUGGING_FACE_ACTIVATIONS.items():
        torch.testing.assert_close(ACTIVATIONS[ours](x), ACT2FN[theirs](x), rtol=1e-12, atol=1e-12)
        assert activation_named(theirs, "model") == ours


def test_an_unknown_activation_lists_the_known():
    with pytest.raises(
        UserError, match=r"model has the activation function 'mish'; supported: gelu, .*, quick_gelu, relu"
    ):
        activation_named("mish", "model")


def test_weights_are_views_and_grouped_heads_expand():
    subject = decoder(SHAPES["grouped, rotary"])
    batch = subject.batch([[3, 5, 6, 7, 2]])
    before = subject.run(batch).value
    for role in ("W_Q", "W_K", "W_V", "W_O", "b_K", "W_in", "W_out", "ln1.w"):
        weight = subject.weights(role, 1)
        kept = weight.clone()
        weight.zero_()
        assert not torch.equal(subject.run(batch).value, before), role
        weight.copy_(kept)
        assert torch.equal(subject.run(batch).value, before), role
    assert subject.weights("W_K", 0).shape == (2, 12, 4)
    expanded = subject.weights("W_K", 0, expand=True)
    assert torch.equal(expanded, subject.weights("W_K", 0)[[0, 0, 1, 1]])


def test_gradients_are_those_of_finite_differences():
    subject = decoder(replace(SHAPES["pre"], n_layers=1))
    subject.network.double()
    batch = subject.batch([[3, 5, 6]])
    name = "blocks.0.attn.hook_pattern"
    out = subject.run(batch, capture=[name], grad=True)
    (slope,) = torch.autograd.grad(out.value[0, -1, 4], out.captured[name])
    step = torch.zeros_like(slope)
    step[0, 1, 2, 0] = 1e-6
    moved = [subject.intervene(batch, {name: lambda x, at, s=s: x + s * step})[0, -1, 4] for s in (1, -1)]
    assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(float(slope[0, 1, 2, 0]), rel=1e-5)
