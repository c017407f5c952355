"""BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet: equal to the library, and to themselves under edits."""

import pytest
import torch
import transformers

from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.testing.checkpoints import save_random
from workbench.testing.subjects import CHECKS, assert_near

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}
DISTIL_SIZES = {
    "vocab_size": 40,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}
SEQUENCES = [[3, 5, 6, 7, 2], [3, 9, 2]]


def model_of(class_name, **settings):
    """Make a small model of the library's class, as its configuration class says."""
    cls = getattr(transformers, class_name)
    sizes = DISTIL_SIZES if "Distil" in class_name else SIZES
    return cls(cls.config_class(**{**sizes, **settings}))


MODELS = [
    pytest.param("BertModel", {}, id="bert"),
    pytest.param("BertForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-3}, id="bert-mlm-relu"),
    pytest.param("RobertaForMaskedLM", {"type_vocab_size": 1}, id="roberta-mlm"),
    pytest.param("DistilBertForMaskedLM", {"activation": "relu"}, id="distilbert-mlm"),
    pytest.param("MPNetModel", {}, id="mpnet"),
]
SLOW = [
    pytest.param(name, settings, id=f"{name}-{number}", marks=pytest.mark.slow)
    for number, (name, settings) in enumerate(
        [
            ("BertModel", {"hidden_size": 35, "num_attention_heads": 7, "hidden_act": "gelu_new"}),
            ("BertModel", {"num_attention_heads": 1, "num_hidden_layers": 4, "hidden_act": "silu"}),
            ("BertForPreTraining", {"hidden_act": "gelu_new", "num_attention_heads": 24}),
            ("BertForMaskedLM", {"tie_word_embeddings": False}),
            ("RobertaModel", {"pad_token_id": 0}),
            ("XLMRobertaForMaskedLM", {"hidden_size": 10, "num_attention_heads": 2, "intermediate_size": 41}),
            ("CamembertForMaskedLM", {"num_hidden_layers": 1}),
            ("DistilBertModel", {"dim": 16, "n_heads": 2, "sinusoidal_pos_embds": True}),
            ("MPNetForMaskedLM", {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 200}),
        ]
    )
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a model, made once for its class and settings."""
    made = {}

    def save(class_name, settings):
        key = class_name, str(settings)
        if key not in made:
            made[key] = save_random(model_of(class_name, **settings), tmp_path_factory.mktemp(class_name))
        return made[key]

    return save


def library_output(class_name, folder, dtype, sequences):
    """What the library's own class gives for padded sequences: logits or hidden states, with the mask."""
    model = getattr(transformers, class_name).from_pretrained(folder, dtype=dtype).eval()
    longest = max(len(ids) for ids in sequences)
    tokens = torch.tensor([ids + [1] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask)
    for field in ("logits", "prediction_logits", "last_hidden_state"):
        if field in out:
            return out[field], mask.bool()
    raise AssertionError(f"{class_name} gives {list(out)}")


@pytest.mark.parametrize(("class_name", "settings"), MODELS + SLOW)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_output_is_the_librarys(saved, class_name, settings, dtype, tolerance):
    folder = saved(class_name, settings)
    subject = load_subject(f"hf:{folder}", device="cpu", dtype=dtype)
    sequences = SEQUENCES
    if settings.get("max_position_embeddings", 0) > 128:  # distances beyond the exact buckets
        sequences = [[3 + i % 30 for i in range(150)], *SEQUENCES]
    want, mask = library_output(class_name, folder, getattr(torch, dtype), sequences)
    batch = subject.batch(sequences)
    got = subject.run(batch).value
    assert torch.equal(batch.mask, mask)
    assert_near(got[mask], want[mask], class_name, tolerance)


@pytest.mark.parametrize(("class_name", "settings"), MODELS + SLOW)
def test_exactness(saved, class_name, settings):
    subject = load_subject(f"hf:{saved(class_name, settings)}", device="cpu")
    batch = subject.batch(SEQUENCES)
    for check in CHECKS:
        check(subject, batch)


def test_embeddings_sum_to_what_the_first_norm_reads(saved):
    subject = load_subject(f"hf:{saved('BertModel', {})}", device="cpu")
    seen = subject.run(subject.batch(SEQUENCES), capture=["*"]).captured
    parts = seen["hook_embed"] + seen["hook_token_type_embed"] + seen["hook_pos_embed"]
    centred = parts - parts.mean(-1, keepdim=True)
    normed = centred / seen["ln_pre.hook_scale"] * subject.weights("ln_pre.w") + subject.weights("ln_pre.b")
    assert_near(normed, seen["ln_pre.hook_normalized"], "ln_pre")
    assert torch.equal(seen["ln_pre.hook_normalized"], seen["blocks.0.hook_resid_pre"])
    assert torch.equal(seen["blocks.0.hook_normalized_resid_post"], seen["blocks.1.hook_resid_pre"])


def test_second_sentences_have_their_own_token_type(saved):
    folder = saved("BertModel", {})
    subject = load_subject(f"hf:{folder}", device="cpu")
    batch = subject.batch(SEQUENCES[:1])
    types = torch.tensor([[0, 0, 0, 1, 1]])
    batch.extra["token_type_ids"] = types
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        want = model(input_ids=batch.inputs, token_type_ids=types).last_hidden_state
        without = model(input_ids=batch.inputs).last_hidden_state
    assert_near(subject.run(batch).value, want, "token types")
    assert not torch.allclose(want, without)


def test_roberta_counts_positions_as_the_library_does(saved):
    folder = saved("RobertaForMaskedLM", {"type_vocab_size": 1})
    subject = load_subject(f"hf:{folder}", device="cpu")
    odd = [[3, 5, 1, 7, 2]]  # a padding token within the text does not count
    model = transformers.RobertaForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        want = model(input_ids=torch.tensor(odd)).logits
    assert_near(subject.run(subject.batch(odd)).value, want, "positions")
    assert subject.n_context == 18  # 20 rows, of which two are for padding and before


def test_editing_tied_embeddings_edits_the_unembedding(saved):
    subject = load_subject(
        f"hf:{saved('BertForMaskedLM', {'hidden_act': 'relu', 'layer_norm_eps': 1e-3})}", device="cpu"
    )
    subject.weights("W_E")[7] += 1.0
    assert torch.equal(subject.weights("W_U").T, subject.weights("W_E"))


def test_dtype_and_device_map_reach_the_loader(saved):
    subject = load_subject(f"hf:{saved('BertModel', {})}", dtype="bfloat16", device_map="auto")
    batch = subject.batch(SEQUENCES)
    assert subject.dtype is torch.bfloat16
    assert {value.dtype for value in subject.run(batch, capture=["*"]).captured.values()} == {torch.bfloat16}
    if not torch.cuda.is_available():
        assert subject.network.hf_device_map == {"": "cpu"}
    whole = load_subject(f"hf:{saved('BertModel', {})}", dtype="bfloat16", device="cpu")
    assert torch.equal(subject.run(batch).value.cpu(), whole.run(batch.to("cpu")).value)


def test_the_fingerprint_knows_weights_and_architecture(saved, tmp_path):
    address = f"hf:{saved('BertModel', {})}"
    subject = load_subject(address, device="cpu")
    assert subject.fingerprint() == load_subject(address, device="cpu").fingerprint()
    other = save_random(model_of("BertModel", hidden_act="relu"), tmp_path)
    assert subject.fingerprint() != load_subject(f"hf:{other}", device="cpu").fingerprint()
    before = subject.fingerprint()
    subject.weights("b_O", 1)[0] += 1.0
    assert subject.fingerprint() != before


def without_pickles(folder):
    """Replace the weights by a pickle of them."""
    weights = folder / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    weights.unlink()


def without_a_layer(folder):
    """Promise one layer more than there are weights for."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


def with_other_activation(folder):
    """Name an activation function that the stack does not compute."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "mish"'))


def as_decoder(folder):
    """Call the encoder a decoder."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"is_decoder": false', '"is_decoder": true'))


def cut_short(folder):
    """Lose the second half of the weights."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        pytest.param(without_pickles, "cannot be loaded", id="pickle"),
        pytest.param(without_a_layer, "lacks weights", id="missing layer"),
        pytest.param(with_other_activation, "activation function 'mish'; supported: gelu", id="activation"),
        pytest.param(as_decoder, "only encoders", id="decoder"),
        pytest.param(cut_short, "cannot be loaded", id="damaged"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_exactly_is_refused(tmp_path, harm, says):
    harm(save_random(model_of("BertModel"), tmp_path))
    with pytest.raises(UserError, match=says):
        load_subject(f"hf:{tmp_path}", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param({"device_map": "everywhere"}, "must be auto, balanced, sequential", id="device map"),
        pytest.param({"device_map": "auto", "device": "cpu"}, "give one of them", id="device and device map"),
        pytest.param({"dtype": "int8"}, "must be one of float32", id="dtype"),
    ],
)
def test_placement_that_cannot_be(saved, arguments, says):
    with pytest.raises(UserError, match=says):
        load_subject(f"hf:{saved('BertModel', {})}", **arguments)


def test_words_that_a_model_without_tokenizer_cannot_read(saved):
    subject = load_subject(f"hf:{saved('BertModel', {})}", device="cpu")
    with pytest.raises(UserError, match="without a tokenizer"):
        subject.batch(["a text"])
    with pytest.raises(UserError, match=r"token id 40: .* has token ids 0 to 39"):
        subject.batch([[3, 40]])
    with pytest.raises(UserError, match="sequences of 1 to 20"):
        subject.batch([[3] * 21])
    with pytest.raises(UserError, match="has no weight 'W_U' as a whole; it has W_E"):
        subject.weights("W_U")
    with pytest.raises(UserError, match="has layers 0 to 1"):
        subject.weights("W_Q", 2)
    with pytest.raises(UserError, match="without a vision tower"):
        load_subject(f"hf:{saved('BertModel', {})}#vision", device="cpu")
