"""Losses under spliced activations against arithmetic by hand, and direct effects on logits against the model."""

import numpy as np
import pytest
import torch

from workbench.logit_effect import direct_logit_effect, writes_to_stream
from workbench.splice import chunks, constant, splice_losses
from workbench.subjects.architecture import Architecture
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import Batch, TokenWindow
from workbench.subjects.stacked import StackedSubject

HOOK, VOCAB, WIDTH = "blocks.1.hook_resid_post", 10, 8


class Tiny(StackedSubject):
    """A random decoder over ten tokens, of which token 0 is special."""

    modality = "text"

    def __init__(self, **stack) -> None:
        torch.manual_seed(0)
        sizes = Architecture(n_layers=2, d_model=WIDTH, n_heads=2, d_head=4, d_mlp=16, causal=True, **stack)
        super().__init__("zoo:tiny", Decoder(DecoderArchitecture(sizes, n_vocab=VOCAB, n_context=12)))
        self.n_context = 12

    def tokenizer_fingerprint(self):
        return "none"

    def batch(self, examples):
        rows = [torch.as_tensor(example.tokens) for example in examples]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return Batch(tokens, mask, (tokens == 0) & mask)


@pytest.fixture(scope="module")
def subject():
    return Tiny()


def windows(*texts):
    arrays = [np.array(text) for text in texts]
    return [TokenWindow(tokens, tokens == 0, np.full((len(tokens), 2), -1)) for tokens in arrays]


EXAMPLES = windows([0, 1, 2, 3, 4], [0, 5, 6], [7, 8, 9, 1])


def test_losses_are_sums_over_predictions_made_at_ordinary_positions(subject):
    mean = torch.linspace(-1, 1, WIDTH)
    edits = {"mean": {HOOK: constant(mean)}, "same": {HOOK: lambda x, at: x}}
    found = splice_losses(subject, EXAMPLES, edits)
    assert found.measure == "cross-entropy"
    assert found.count.tolist() == [3, 1, 3]
    for index, window in enumerate(EXAMPLES):
        alone = subject.batch([window])
        clean = subject.run(alone).value[0].log_softmax(-1)
        spliced = subject.intervene(alone, edits["mean"])[0].log_softmax(-1)
        at = [place for place in range(len(window.tokens) - 1) if window.tokens[place] != 0]
        nexts = [window.tokens[place + 1] for place in at]
        assert found.loss["clean"][index] == pytest.approx(-float(clean[at, nexts].sum()), rel=1e-5)
        assert found.loss["mean"][index] == pytest.approx(-float(spliced[at, nexts].sum()), rel=1e-5)
        divergence = (clean.exp() * (clean - spliced))[at].sum()
        assert found.divergence["mean"][index] == pytest.approx(float(divergence), rel=1e-4)
    np.testing.assert_allclose(found.loss["same"], found.loss["clean"])
    np.testing.assert_allclose(found.divergence["same"], 0, atol=1e-6)


def test_a_model_without_next_token_loss_is_measured_by_its_output(subject):
    blind = Tiny()
    blind.causal = False
    found = splice_losses(blind, EXAMPLES, {"zero": {HOOK: constant(torch.zeros(WIDTH), special=True)}})
    assert (found.measure, found.divergence) == ("output error", {})
    assert not found.loss["clean"].any()
    batch = blind.batch(EXAMPLES[:1])
    moved = blind.intervene(batch, {HOOK: constant(torch.zeros(WIDTH), special=True)}) - blind.run(batch).value
    assert found.loss["zero"][0] == pytest.approx(float(moved.pow(2).sum()), rel=1e-5)
    assert found.count.tolist() == [5, 3, 4]


def test_a_constant_spares_special_tokens_and_padding(subject):
    batch = subject.batch(EXAMPLES[:2])
    before = subject.run(batch, capture=[HOOK]).captured[HOOK]
    after = subject.run(batch, capture=[HOOK], edits={HOOK: constant(torch.ones(WIDTH))}).captured[HOOK]
    ordinary = batch.mask & ~batch.special
    assert (after[ordinary] == 1).all()
    assert torch.equal(after[~ordinary], before[~ordinary])


def test_batches_are_bounded_and_keep_their_order(subject, monkeypatch):
    monkeypatch.setattr("workbench.splice.TOKENS_AT_ONCE", 8)
    found = list(chunks(subject, EXAMPLES))
    assert [len(chunk) for chunk in found] == [1, 2]
    assert [window for chunk in found for window in chunk] == EXAMPLES
    assert [len(chunk) for chunk in chunks(subject, windows([1] * 12))] == [1]  # longer than the bound: alone
    whole = splice_losses(subject, EXAMPLES, {})
    monkeypatch.undo()
    np.testing.assert_allclose(whole.loss["clean"], splice_losses(subject, EXAMPLES, {}).loss["clean"], rtol=1e-5)


# --- direct effects on logits -------------------------------------------------------------------------------------
def test_the_direct_effect_is_the_change_of_logits_at_the_end_of_the_stream(subject):
    """At the last hook point, with the final norm's scale frozen, the effect is exact up to that scale."""
    directions = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    effect = direct_logit_effect(subject, directions)
    assert effect.shape == (3, VOCAB)
    batch = subject.batch(EXAMPLES[:1])
    scales = subject.run(batch, capture=["ln_final.hook_scale"]).captured["ln_final.hook_scale"]
    freeze = {"ln_final.hook_scale": lambda x, at: scales.clone()}
    clean = subject.intervene(batch, freeze)
    for direction, want in zip(directions, effect, strict=True):
        pushed = subject.intervene(batch, {HOOK: lambda x, at, d=direction: x + d, **freeze})
        change = ((pushed - clean) * scales)[0, 2]
        torch.testing.assert_close(change - change.mean(), want, rtol=1e-4, atol=1e-5)


def test_a_model_without_norm_gives_the_plain_product():
    bare = Tiny(norm="none")
    direction = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    plain = direction @ bare.weights("W_U")
    torch.testing.assert_close(direct_logit_effect(bare, direction), plain - plain.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("blocks.0.hook_resid_pre", True),
        ("blocks.1.hook_mlp_out", True),
        ("hook_embed", True),
        ("blocks.0.mlp.hook_post", False),
        ("blocks.0.ln1.hook_normalized", False),
        ("blocks.0.attn.hook_z", False),
    ],
)
def test_only_the_residual_stream_reaches_the_output_directly(subject, name, writes):
    assert writes_to_stream(subject, name) is writes
