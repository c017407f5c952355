"""Hugging Face tokenizers: windows, offsets, padding, readable tokens."""

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from workbench.errors import UserError
from workbench.subjects.protocol import TokenWindow
from workbench.subjects.tokenization import HuggingFaceText, pad_windows

TEXT = "def day_after(x):\n    return (x + 1) % 7  # naïve, 日本 🙂\n"


@pytest.fixture(scope="module")
def byte_level(byte_tokenizer):
    return HuggingFaceText(byte_tokenizer(TEXT, bos="<s>"), n_context=12)


@pytest.fixture(scope="module")
def plain(byte_tokenizer):
    return HuggingFaceText(byte_tokenizer(TEXT), n_context=12)


@pytest.fixture(scope="module")
def word_piece():
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "s", "##at", "##s", "a"]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.enable_truncation(4)  # as many saved tokenizers do
    backend.enable_padding(length=16)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.fixture(scope="module")
def sentence_piece():
    words = ["<s>", "</s>", "▁", "▁the", "▁cat", "s", "a"]
    vocabulary = [(word, -float(i)) for i, word in enumerate(words)]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@given(text=st.text(max_size=60), n_context=st.integers(2, 12))
def test_windows_together_are_the_text(byte_level, text, n_context):
    windows = byte_level.windows(text, n_context)
    tokens = np.concatenate([window.tokens[1:] for window in windows])
    assert byte_level.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == text
    assert tokens.tolist() == byte_level.tokenizer(text, add_special_tokens=False)["input_ids"]
    for window in windows:
        assert len(window.tokens) == len(window.special) == len(window.offsets) <= n_context
        assert window.tokens[0] == 1
        assert window.special.tolist() == [True] + [False] * (len(window.tokens) - 1)
        assert window.offsets[0].tolist() == [-1, -1]
    covered = np.concatenate([window.offsets[1:] for window in windows])
    assert covered.size == 0 or (covered.min(), covered.max()) == (0, len(text))
    assert all(start < end for start, end in covered)


def test_without_special_tokens_an_empty_text_has_no_window(plain, byte_level):
    assert plain.prefix == plain.suffix == ()
    assert plain.windows("") == []
    assert [window.tokens.tolist() for window in byte_level.windows("")] == [[1]]
    with pytest.raises(UserError, match="has no token"):
        plain.window("")


def test_class_and_separator_are_in_every_window(word_piece):
    text = HuggingFaceText(word_piece, n_context=5)
    assert (text.prefix, text.suffix) == ((1,), (2,))
    windows = text.windows("the cat sat")
    assert [window.tokens.tolist() for window in windows] == [[1, 4, 5, 6, 2], [1, 7, 2]]
    assert windows[1].special.tolist() == [True, False, True]
    assert windows[1].offsets.tolist() == [[-1, -1], [9, 11], [-1, -1]]
    assert text.of_tokens([1, 4, 2]).special.tolist() == [True, False, True]
    assert text.of_tokens([4, 2, 4]).special.tolist() == [False, False, False]


def test_tokens_read_as_in_a_text(byte_level, word_piece, sentence_piece):
    ids = byte_level.window("def x (x").tokens
    assert "".join(byte_level.decode(ids)) == "<s>def x (x"
    words = HuggingFaceText(word_piece, 16)
    assert words.decode([1, 4, 5, 6, 7, 2, 4]) == ["[CLS]", " the", " cat", " s", "at", "[SEP]", " the"]
    pieces = HuggingFaceText(sentence_piece, 16)
    assert pieces.decode([0, 3, 4, 5]) == ["<s>", " the", " cat", "s"]


def test_padding_is_on_the_right_and_masked(byte_level):
    batch = byte_level.batch(["def", [5, 6, 7, 8], byte_level.window("x")])
    lengths = batch.mask.sum(1).tolist()
    assert batch.inputs.shape[1] == max(lengths)
    for row, length in enumerate(lengths):
        assert batch.mask[row].tolist() == [True] * length + [False] * (max(lengths) - length)
        assert batch.inputs[row, length:].tolist() == [byte_level.pad_id] * (max(lengths) - length)
    assert not batch.special[~batch.mask].any()
    assert batch.special[:, 0].tolist() == [True, False, True]
    assert batch.inputs.dtype == torch.int64


def test_a_context_length_that_leaves_no_room_is_explained(byte_level):
    for n_context in (1, 13):
        with pytest.raises(UserError, match=f"context length {n_context}: must be between 2 and 12"):
            byte_level.windows("def", n_context)


def test_a_window_without_tokens_is_no_batch():
    empty = TokenWindow(np.zeros(0, np.int64), np.zeros(0, bool), np.zeros((0, 2), np.int64))
    with pytest.raises(UserError, match="1 to 8"):
        pad_windows([empty], 0, 8)


def test_fingerprint_is_of_the_rules_and_not_of_the_last_call(byte_tokenizer, word_piece, tmp_path):
    text = HuggingFaceText(word_piece, 16)
    before = text.fingerprint()
    word_piece("the cat sat", truncation=True, max_length=3, padding="max_length")
    assert text.fingerprint() == before
    text.save(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert HuggingFaceText(again, 8).fingerprint() == before
    assert (
        HuggingFaceText(byte_tokenizer(TEXT), 8).fingerprint()
        != HuggingFaceText(byte_tokenizer(TEXT, bos="<s>"), 8).fingerprint()
    )


def test_saved_tokenizer_needs_no_transformers(byte_level, tmp_path):
    byte_level.save(tmp_path / "tokenizer")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert backend.encode("def x").ids == byte_level.window("def x").tokens.tolist()


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(UserError, match="a fast tokenizer is needed"):
        HuggingFaceText(object(), 8)
