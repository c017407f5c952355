"""What subjects whose tokens are whole words share: the tokenizer, rows of tokens, circles in their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

BOS = "<|begin|>"


def word_tokenizer(vocabulary: Sequence[str], end: str | None = None) -> Any:
    """Return a tokenizer to which a word is a token; a text starts with `BOS`.

    Parameters
    ----------
    vocabulary : sequence of str
        Words, and marks such as ``,`` by themselves; ids follow their order, after the special words.
    end : str, optional
        A special word that ends a text.
    """
    around = [BOS] if end is None else [BOS, end]
    words = [*around, "<|unknown|>", *vocabulary]
    unknown = words[len(around)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?![.,<])"), " "), decoders.Fuse()])
    tokenizer.add_special_tokens([*around, unknown])
    text = " ".join([BOS, "$A", *around[1:]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=text, special_tokens=[(word, i) for i, word in enumerate(around)]
    )
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [text, pos], padded on the right with zeros, and lengths [text]."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def fourier_shares(embedding: torch.Tensor) -> list[float]:
    """Return the share of the variance of a circle's embeddings [period, d_model] at each frequency, from 1 up."""
    power = torch.fft.fft(embedding.double(), dim=0).abs().pow(2).sum(1)
    period = len(embedding)
    shares = [float((power[k] + power[-k]) / power[1:].sum()) for k in range(1, (period + 1) // 2)]
    return shares if period % 2 else [*shares, float(power[period // 2] / power[1:].sum())]
