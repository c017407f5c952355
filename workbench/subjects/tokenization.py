"""Hugging Face tokenizers: texts to windows, windows to batches, token ids to text a person can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from workbench.errors import UserError
from workbench.subjects.protocol import Batch, TokenWindow
from workbench.transfer import to_device

PROBE = "a"  # any text that every tokenizer turns into at least one ordinary token


class HuggingFaceText:
    """A fast Hugging Face tokenizer and the context length of its subject.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        Used as it is: special tokens are added where it adds them by itself, and nowhere else.
    n_context : int
        Longest sequence that the subject takes, special tokens included.

    Attributes
    ----------
    prefix, suffix : tuple of int
        The special tokens with which the tokenizer starts and ends a text, such as BOS, or CLS and SEP.
    pad_id : int
        What fills up a batch on the right; masked, so any id will do where the tokenizer has none of its own.

    Raises
    ------
    UserError
        If the tokenizer cannot say which characters a token covers.
    """

    def __init__(self, tokenizer: Any, n_context: int) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"{type(tokenizer).__name__} does not say which characters a token covers: a fast tokenizer is needed "
                "(a folder with tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self.n_context = n_context
        probe = tokenizer(PROBE, return_special_tokens_mask=True)
        tokens, is_special = probe["input_ids"], probe["special_tokens_mask"]
        plain = [i for i, flag in enumerate(is_special) if not flag] or [len(tokens)]
        self.prefix: tuple[int, ...] = tuple(tokens[: plain[0]])
        self.suffix: tuple[int, ...] = tuple(tokens[plain[-1] + 1 :])
        found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(token for token in found if token is not None)
        self._anchor: list[int] = [tokens[i] for i in plain if i < len(tokens)]
        self._texts: dict[int, str] = {}

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """Cut a text into sequences, each with the special tokens that the tokenizer gives a text.

        Parameters
        ----------
        text : str
            Tokenized once, as a whole: a cut changes no token.
        n_context : int, optional
            Longest sequence, special tokens included; at most (and by default) the subject's context length.

        Returns
        -------
        list of TokenWindow
            In reading order. Empty for a text without any token, special ones included.

        Raises
        ------
        UserError
            If `n_context` leaves no room for a token, or is longer than the subject takes.
        """
        longest = self.n_context if n_context is None else n_context
        room = longest - len(self.prefix) - len(self.suffix)
        least = len(self.prefix) + len(self.suffix) + 1
        if room < 1 or longest > self.n_context:
            raise UserError(f"context length {longest}: must be between {least} and {self.n_context} tokens")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if not tokens and not self.prefix and not self.suffix:
            return []
        starts = range(0, max(len(tokens), 1), room)
        return [self._window(tokens[i : i + room], offsets[i : i + room]) for i in starts]

    def _window(self, tokens: Sequence[int], offsets: Sequence[tuple[int, int]]) -> TokenWindow:
        before, after = len(self.prefix), len(self.suffix)
        covered = [(-1, -1)] * before + [*offsets] + [(-1, -1)] * after
        return TokenWindow(
            tokens=np.array([*self.prefix, *tokens, *self.suffix], dtype=np.int64),
            special=np.array([True] * before + [False] * len(tokens) + [True] * after),
            offsets=np.array(covered, dtype=np.int64).reshape(-1, 2),
        )

    def window(self, text: str) -> TokenWindow:
        """Return a text as one window; a text that is empty or too long for one is an error."""
        found = self.windows(text)
        if len(found) != 1:
            size = "no token" if not found else f"{sum(len(window.tokens) for window in found)} tokens"
            raise UserError(f"text {text[:40]!r} has {size}: one sequence takes 1 to {self.n_context}; cut it first")
        return found[0]

    def of_tokens(self, tokens: Sequence[int]) -> TokenWindow:
        """Return token ids as they are; the special tokens with which a text starts and ends are flagged."""
        ids = np.asarray(tokens, dtype=np.int64)
        special = np.zeros(len(ids), dtype=bool)
        if self.prefix and tuple(ids[: len(self.prefix)]) == self.prefix:
            special[: len(self.prefix)] = True
        if self.suffix and len(ids) > len(self.prefix) and tuple(ids[-len(self.suffix) :]) == self.suffix:
            special[-len(self.suffix) :] = True
        return TokenWindow(ids, special, np.full((len(ids), 2), -1, dtype=np.int64))

    def batch(self, examples: Sequence[Any], device: Any = "cpu") -> Batch:
        """Pad examples (texts, `TokenWindow`s or sequences of token ids) into one batch on a device."""
        return pad_windows([self._example(example) for example in examples], self.pad_id, self.n_context, device)

    def _example(self, example: Any) -> TokenWindow:
        if isinstance(example, TokenWindow):
            return example
        return self.window(example) if isinstance(example, str) else self.of_tokens(example)

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token id, one by one, with the space before it if it starts a word."""
        unknown = [token for token in {int(token) for token in tokens} if token not in self._texts]
        self._texts.update(zip(unknown, self._read(unknown), strict=True))
        return [self._texts[int(token)] for token in tokens]

    def _read(self, tokens: list[int]) -> list[str]:
        """Decode each token after an ordinary one: alone, many tokenizers strip the space before it."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        start = self.tokenizer.decode(self._anchor, **options)
        special = set(self.tokenizer.all_special_ids)
        texts = []
        for token in tokens:
            text = self.tokenizer.decode([*self._anchor, token], **options)
            if token in special or not text.startswith(start):
                text = self.tokenizer.convert_ids_to_tokens(token)
            else:
                text = text[len(start) :]
            texts.append("" if text is None else text)
        return texts

    def fingerprint(self) -> str:
        """Return a hash of all that decides how a text becomes tokens, the same in every process."""
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rules.update(truncation=None, padding=None)  # the state of the last call, not a property of the tokenizer
        record = [rules, self.prefix, self.suffix]
        return xxhash.xxh3_128(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and its companions into a folder, made if need be."""
        self.tokenizer.save_pretrained(str(folder))


def pad_windows(windows: Sequence[TokenWindow], pad_id: int, n_context: int, device: Any = "cpu") -> Batch:
    """Pad windows on the right into one batch.

    Parameters
    ----------
    windows : sequence of TokenWindow
        At least one, each of 1 to `n_context` tokens.
    pad_id : int
        Token id at padding, where the mask is False.
    n_context : int
        Longest sequence that the subject takes.
    device : torch.device or str
        Where the tensors go.

    Raises
    ------
    UserError
        For no window, an empty one, or one that is too long.
    """
    lengths = [len(window.tokens) for window in windows]
    if not lengths or min(lengths) < 1 or max(lengths) > n_context:
        raise UserError(f"sequences of {lengths} tokens: a batch takes sequences of 1 to {n_context}, at least one")
    shape = len(windows), max(lengths)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    mask, special = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        end = len(window.tokens)
        tokens[row, :end], mask[row, :end], special[row, :end] = window.tokens, True, window.special
    inputs, seen, flags = (to_device(torch.from_numpy(array), device) for array in (tokens, mask, special))
    return Batch(inputs=inputs, mask=seen, special=flags)
