"""Dictionaries: codes and reconstructions, files of ours and of SAELens, refusals, splicing into a live model."""

import logging
from dataclasses import replace

import pytest
import torch

from workbench.dictionary import Dictionary, load_dictionary
from workbench.errors import UserError
from workbench.subjects.decoder import Decoder, DecoderArchitecture
from workbench.subjects.protocol import Batch
from workbench.subjects.stacked import StackedSubject
from workbench.subjects.transformer import Architecture

HOOK = "blocks.0.hook_resid_post"
WIDTH, LATENTS = 8, 20


class TinyDecoder(StackedSubject):
    """A random decoder over ten tokens, of which token 0 is special."""

    modality = "text"

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        stack = Architecture(n_layers=2, d_model=WIDTH, n_heads=2, d_head=4, d_mlp=16, causal=True)
        super().__init__("zoo:tiny", Decoder(DecoderArchitecture(stack, n_vocab=10, n_context=12)))

    def tokenizer_fingerprint(self):
        return "none"

    def batch(self, examples):
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in examples], batch_first=True)
        lengths = torch.tensor([len(row) for row in examples])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(tokens, mask, (tokens == 0) & mask)


@pytest.fixture(scope="module")
def subject():
    return TinyDecoder()


def make(activation="topk", **changes) -> Dictionary:
    generator = torch.Generator().manual_seed(1)
    W_enc, W_dec = (torch.randn(LATENTS, WIDTH, generator=generator) for _ in range(2))
    b_dec = torch.randn(WIDTH, generator=generator)
    parts = {
        "W_enc": W_enc,
        "b_enc": 0.1 * torch.randn(LATENTS, generator=generator),
        "W_dec": W_dec,
        "b_dec": b_dec,
        "b_pre": b_dec,
        "activation": activation,
        "hook_in": HOOK,
        "hook_out": HOOK,
        "k": 3 if activation == "topk" else None,
        "threshold": torch.rand(LATENTS, generator=generator) if activation == "jumprelu" else None,
        "scale": 0.5,
        "subject_address": "zoo:tiny",
    }
    return Dictionary(**(parts | changes))


def rows(n: int = 50) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(2))


def codes_by_hand(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    scores = (dictionary.scale * x - dictionary.b_pre) @ dictionary.W_enc.T + dictionary.b_enc
    match dictionary.activation:
        case "topk":
            kept = scores >= scores.sort(dim=1, descending=True).values[:, dictionary.k - 1, None]
        case "relu":
            kept = scores > 0
        case "jumprelu":
            kept = scores > dictionary.threshold
    return (scores * kept).relu()


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_codes_and_reconstruction_follow_the_formula(activation):
    dictionary, x = make(activation), rows()
    want = codes_by_hand(dictionary, x)
    torch.testing.assert_close(dictionary.encode_dense(x), want)
    values, indices = dictionary.encode(x)
    assert (values[:, :-1] >= values[:, 1:]).all()
    torch.testing.assert_close(torch.zeros_like(want).scatter_add(1, indices, values), want)
    torch.testing.assert_close(
        dictionary.reconstruct(x), (want @ dictionary.W_dec + dictionary.b_dec) / dictionary.scale
    )


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_no_rows_and_rows_without_an_active_latent(activation):
    dictionary = make(activation, b_enc=torch.full((LATENTS,), -1e3))
    assert dictionary.reconstruct(rows(0)).shape == (0, WIDTH)
    values, _ = dictionary.encode(rows(4))
    assert values.shape[1] >= 1
    assert not values.any()
    torch.testing.assert_close(dictionary.reconstruct(rows(4)), (dictionary.b_dec / 0.5).expand(4, -1))


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_saved_and_loaded_is_the_same(activation, tmp_path):
    dictionary = make(activation, subject_fingerprint="abc")
    dictionary.save(tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.fingerprint() == dictionary.fingerprint()
    assert torch.equal(loaded.reconstruct(rows()), dictionary.reconstruct(rows()))
    assert loaded.address == str(tmp_path / "d")


@pytest.mark.parametrize("normalisation", ["centre", "layer_norm", "unit_norm"])
def test_rows_are_normalised_one_by_one_and_brought_back(normalisation, tmp_path):
    dictionary, x = make(normalisation=normalisation), 3 + 2 * rows()
    mean, length = torch.zeros(len(x), 1), x.norm(dim=1, keepdim=True) / WIDTH**0.5
    inside = x / length
    if normalisation == "centre":
        mean, length = x.mean(1, keepdim=True), torch.ones(len(x), 1)
        inside = x - mean
    if normalisation == "layer_norm":
        mean, length = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        inside = (x - mean) / (length + 1e-5)
    plain = replace(dictionary, normalisation="none")
    want = plain.encode_dense(inside)
    torch.testing.assert_close(dictionary.encode_dense(x), want)
    torch.testing.assert_close(dictionary.reconstruct(x), plain.reconstruct(inside) * length + mean)
    codes = dictionary.encode(x)
    torch.testing.assert_close(dictionary.decode(*codes, x), dictionary.reconstruct(x))
    with pytest.raises(UserError, match="give decode the rows"):
        dictionary.decode(*codes)
    dictionary.save(tmp_path / "d")
    assert load_dictionary(tmp_path / "d").fingerprint() == dictionary.fingerprint() != plain.fingerprint()
    assert (dictionary.config()["schema"], plain.config()["schema"]) == (2, 1)
    assert dictionary.reconstruct(torch.zeros(2, WIDTH)).isfinite().all()


def test_tied_weights_are_saved(tmp_path):
    W, zeros = make().W_enc, torch.zeros(WIDTH)
    for layout in ("workbench", "saelens"):
        tied = make(W_enc=W, W_dec=W, b_pre=zeros, b_dec=zeros)
        tied.save(tmp_path / layout, layout=layout)
        torch.testing.assert_close(load_dictionary(tmp_path / layout).reconstruct(rows()), tied.reconstruct(rows()))


def test_a_run_folder_is_an_address(tmp_path):
    from workbench.results import Result

    dictionary, result = make(), Result()
    result.add_weights("dictionary", dictionary.tensors(), config=dictionary.config())
    result.save(tmp_path / "run")
    assert load_dictionary(tmp_path / "run").fingerprint() == dictionary.fingerprint()
    Result().save(tmp_path / "other")
    with pytest.raises(UserError, match="this run made no dictionary"):
        load_dictionary(tmp_path / "other")


def test_the_fingerprint_changes_with_weights_and_settings():
    dictionary = make()
    others = [replace(dictionary, k=4), replace(dictionary, scale=1.0), replace(dictionary, b_enc=dictionary.b_enc + 1)]
    assert len({each.fingerprint() for each in [dictionary, *others]}) == 4
    assert replace(dictionary, address="elsewhere").fingerprint() == dictionary.fingerprint()


# --- in a live model ----------------------------------------------------------------------------------------------
def test_the_edit_splices_the_reconstruction_in_and_spares_special_tokens_and_padding(subject):
    dictionary = make()
    batch = subject.batch([[0, 3, 4, 5], [0, 7]])
    before = subject.run(batch, capture=[HOOK]).captured[HOOK]
    after = subject.run(batch, capture=[HOOK], edits={HOOK: dictionary.edit()}).captured[HOOK]
    ordinary = batch.mask & ~batch.special
    torch.testing.assert_close(after[ordinary], dictionary.reconstruct(before[ordinary]))
    assert torch.equal(after[~ordinary], before[~ordinary])
    everything = subject.run(batch, capture=[HOOK], edits={HOOK: dictionary.edit(special=True)}).captured[HOOK]
    torch.testing.assert_close(everything[batch.mask], dictionary.reconstruct(before[batch.mask]))
    assert torch.equal(everything[~batch.mask], before[~batch.mask])


def test_a_perfect_dictionary_changes_nothing(subject):
    """Negative control of splicing: ± unit vectors with k = width give any activation back."""
    eye = torch.eye(WIDTH)
    both, zeros = torch.cat([eye, -eye]), torch.zeros(WIDTH)
    perfect = make(W_enc=both, W_dec=both, b_enc=torch.zeros(2 * WIDTH), b_dec=zeros, b_pre=zeros, k=WIDTH)
    batch = subject.batch([[0, 3, 4, 5], [0, 7]])
    spliced = subject.intervene(batch, {HOOK: perfect.edit()})
    torch.testing.assert_close(spliced, subject.run(batch).value)
    assert not torch.allclose(subject.intervene(batch, {HOOK: make().edit()}), spliced, atol=1e-3)


def test_a_transcoder_writes_from_what_it_has_read(subject):
    """And several hook points are read side by side; what is read stays as it is."""
    read, written = ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"), "blocks.1.hook_mlp_out"
    batch = subject.batch([[0, 3, 4, 5], [0, 7]])
    ordinary = batch.mask & ~batch.special
    W = torch.randn(20, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    dictionary = make(W_enc=W, b_pre=torch.zeros(2 * WIDTH), hook_in=" + ".join(read), hook_out=written)
    seen = subject.run(batch, capture=[*read, written]).captured
    for special, chosen in ((False, ordinary), (True, batch.mask)):
        edits = dictionary.edits(special=special)
        after = subject.run(batch, capture=[*read, written], edits=edits).captured
        x = torch.cat([seen[name][chosen] for name in read], dim=1)
        torch.testing.assert_close(after[written][chosen], dictionary.reconstruct(x))
        assert torch.equal(after[written][~chosen], seen[written][~chosen])
        assert all(torch.equal(after[name], seen[name]) for name in read)
        again = subject.batch([[0, 9, 9]])  # the same edits, another batch: nothing is kept from before
        rows = torch.cat([subject.run(again, capture=[name]).captured[name] for name in read], dim=2)[0, 1:]
        got = subject.run(again, capture=[written], edits=edits).captured[written][0, 1:]
        torch.testing.assert_close(got, dictionary.reconstruct(rows))
    same = make().edits()
    torch.testing.assert_close(subject.intervene(batch, same), subject.intervene(batch, {HOOK: make().edit()}))


def test_gradients_flow_through_the_reconstruction(subject):
    batch = subject.batch([[0, 3, 4, 5]])
    source = "blocks.0.hook_resid_mid"
    output = subject.run(
        batch, capture=[source], edits={HOOK: make().edit(), source: lambda x, at: x.requires_grad_()}, grad=True
    )
    (grad,) = torch.autograd.grad(output.value.sum(), output.captured[source])
    assert grad[0, 1:].abs().sum() > 0


def test_heads_are_read_side_by_side(subject):
    at_z = make(hook_in="blocks.0.attn.hook_z", hook_out="blocks.0.attn.hook_z")
    batch = subject.batch([[3, 4, 5]])
    z = subject.run(batch, capture=[at_z.hook_in]).captured[at_z.hook_in]
    spliced = subject.run(batch, capture=[at_z.hook_in], edits={at_z.hook_in: at_z.edit()}).captured[at_z.hook_in]
    torch.testing.assert_close(spliced.flatten(2)[0], at_z.reconstruct(z.flatten(2)[0]))


def test_another_subject_is_refused_unless_asked_for(subject, caplog):
    dictionary = make(subject_fingerprint=subject.fingerprint())
    dictionary.check_subject(subject)
    other = TinyDecoder(seed=1)
    with pytest.raises(UserError, match="was trained on zoo:tiny"):
        dictionary.check_subject(other)
    with caplog.at_level(logging.WARNING, "workbench"):
        dictionary.check_subject(other, other=True)
        make().check_subject(other)
    assert "allowed as asked" in caplog.text
    assert "does not say which weights" in caplog.text


BAD_INPUT = [
    pytest.param(lambda s: load_dictionary("nowhere"), "the folder does not exist", id="no folder"),
    pytest.param(lambda s: load_dictionary("saelens:release"), "write saelens:RELEASE/ID", id="no id"),
    pytest.param(
        lambda s: s.intervene(s.batch([[3, 4]]), make(hook_out="blocks.0.hook_attn_out").edits()),
        f"reads {HOOK}, which the subject reaches only after blocks.0.hook_attn_out",
        id="read after it is written",
    ),
    pytest.param(
        lambda s: make(hook_in=f"{HOOK} + blocks.0.hook_attn_out", hook_out=f"{HOOK} + blocks.0.hook_attn_out").edits(),
        "no moment at which all of that could be put in place",
        id="edits of a crosscoder",
    ),
    pytest.param(lambda s: make(k=0), "k=0 must be between 1 and 20", id="k"),
    pytest.param(lambda s: make(b_enc=torch.zeros(3)), "b_enc is (3,), must be (20,)", id="shape"),
    pytest.param(lambda s: make(activation="gated"), "activation 'gated'", id="activation"),
    pytest.param(lambda s: make(normalisation="batch"), "rows normalised by 'batch'", id="normalisation"),
    pytest.param(
        lambda s: make(hook_out="blocks.1.hook_resid_post").edit(), "an edit needs one hook point", id="transcoder"
    ),
    pytest.param(
        lambda s: s.run(s.batch([[1, 2]]), edits={"blocks.1.hook_resid_post": make().edit()}),
        "not blocks.1.hook_resid_post",
        id="other hook point",
    ),
    pytest.param(
        lambda s: make(hook_in="blocks.7.x", hook_out="blocks.7.x").check_subject(s), "nearest:", id="no such hook"
    ),
    pytest.param(lambda s: Dictionary.from_parts({}, make().config()), "W_enc is missing", id="no weights"),
    pytest.param(lambda s: Dictionary.from_parts(make().tensors(), {"schema": 9}), "a newer version", id="newer"),
]


@pytest.mark.parametrize(("call", "says"), BAD_INPUT)
def test_bad_input_is_explained(call, says, subject):
    with pytest.raises(UserError) as error:
        call(subject)
    assert says in str(error.value)
