"""Text subjects around a network of ours: BERT-style encoders and CLIP's text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.encoder_pooling import SentencePooling
from workbench.subjects.protocol import Batch, Edits, TokenWindow
from workbench.subjects.stacked import HookedNetwork, StackedSubject
from workbench.subjects.tokenization import HuggingFaceText, pad_windows


class TextSubject(StackedSubject):
    """An encoder or a text tower.

    Parameters
    ----------
    address : str
        Recorded in stores and runs.
    network : HookedNetwork
        Weights in place.
    text : HuggingFaceText, optional
        The tokenizer; without one the subject takes token ids only.
    n_context : int
        Longest sequence, special tokens included.
    """

    modality = "text"

    def __init__(self, address: str, network: HookedNetwork, text: HuggingFaceText | None, n_context: int) -> None:
        super().__init__(address, network)
        self.text, self.n_context = text, n_context
        self.tokenizer = None if text is None else text.tokenizer

    def tokenizer_fingerprint(self) -> str:
        """See `Subject.tokenizer_fingerprint`."""
        return "none" if self.text is None else self.text.fingerprint()

    def batch(self, examples: Sequence[Any]) -> Batch:
        """See `Subject.batch`; a token id that the embedding does not have is an error."""
        batch = self.padded(examples)
        lowest, highest, n_vocab = int(batch.inputs.min()), int(batch.inputs.max()), self.network.arch.n_vocab
        if lowest < 0 or highest >= n_vocab:
            wrong = lowest if lowest < 0 else highest
            raise UserError(f"token id {wrong}: {self.address} has token ids 0 to {n_vocab - 1}")
        return batch.to(self.device)  # only now: to look at what is on a device is to wait for it

    def padded(self, examples: Sequence[Any]) -> Batch:
        """Pad examples into one batch."""
        if self.text is not None:
            return self.text.batch(examples)
        if any(isinstance(example, str) for example in examples):
            raise UserError(f"{self.address} was saved without a tokenizer: it takes token ids, not text")
        windows = [example if isinstance(example, TokenWindow) else plain_window(example) for example in examples]
        return pad_windows(windows, 0, self.n_context)

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """See `Subject.windows`."""
        return self.needed_text().windows(text, n_context)

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """See `Subject.decode`."""
        return self.needed_text().decode(tokens)

    def save_tokenizer(self, folder: str | Path) -> None:
        """See `Subject.save_tokenizer`."""
        self.needed_text().save(folder)

    def needed_text(self) -> HuggingFaceText:
        """Return the tokenizer; its absence is an error."""
        if self.text is None:
            raise UserError(f"{self.address} was saved without a tokenizer (no tokenizer.json beside its weights)")
        return self.text


class SentenceEncoder(TextSubject):
    """A BERT-style encoder; `Output.value` holds the last hidden states, or logits where it has a head for them.

    Parameters
    ----------
    address, network, text, n_context
        See `TextSubject`.
    pooling : function
        Reads how the checkpoint pools; called when a sentence embedding is first asked for.
    """

    def __init__(
        self,
        address: str,
        network: HookedNetwork,
        text: HuggingFaceText | None,
        n_context: int,
        pooling: Callable[[], SentencePooling],
    ) -> None:
        super().__init__(address, network, text, n_context)
        self.pooling = pooling

    def embed(self, examples: Batch | Sequence[str], edits: Edits | None = None) -> Tensor:
        """Return sentence embeddings, pooled and normalised as the checkpoint's sentence-transformers files say.

        Parameters
        ----------
        examples : Batch or sequence of str
            From `batch`; or texts, which are cut where the checkpoint says (``max_seq_length``).
        edits : mapping, optional
            See `Subject.run`.

        Returns
        -------
        Tensor [batch, embedding]
            The mean over each text's tokens if the checkpoint says nothing.
        """
        pooling = self.pooling()
        if not isinstance(examples, Batch):
            limit = min(pooling.n_context or self.n_context, self.n_context)
            examples = self.batch([self.windows(text, limit)[0] for text in examples])
        last = f"blocks.{self.n_layers - 1}.hook_normalized_resid_post"
        hidden = self.run(examples, capture=[last], edits=edits, stop_after=last).captured[last]
        return pooling(hidden, examples.mask)


def plain_window(tokens: Sequence[int]) -> TokenWindow:
    """Return token ids as a window without special tokens."""
    ids = np.asarray(tokens, dtype=np.int64)
    return TokenWindow(ids, np.zeros(len(ids), dtype=bool), np.full((len(ids), 2), -1, dtype=np.int64))
