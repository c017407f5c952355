"""The text of a store's tokens, by the tokenizer that it keeps: no subject is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.cache import Store


def token_texts(store: Store) -> dict[int, str] | None:
    """Return the text of every token id that the store holds; None where it keeps no tokenizer, or holds images."""
    path = store.folder / "tokenizer" / "tokenizer.json"
    if store.examples.modality != "text" or not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ids = np.unique(store.examples.ids).tolist()
    return dict(zip(ids, tokenizer.decode_batch([[each] for each in ids], skip_special_tokens=False), strict=True))
