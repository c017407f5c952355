"""The text tower beside a vision tower, and embeddings of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Subject
from workbench.subjects.sources import load_subject

if TYPE_CHECKING:
    from workbench.context import Context

VISION, TEXT = "#vision", "#text"
TEXTS_AT_ONCE = 256


def text_tower(context: Context, subject: Subject, n_output: int) -> Subject | None:
    """Load the text tower: the one named by the option `text_model`, or the other tower of the same model.

    Returns
    -------
    Subject or None
        None for a vision tower that has no other (ViT, DINO, a tower saved alone).

    Raises
    ------
    UserError
        If what was named reads no text, or embeds it elsewhere.
    """
    address = context.config.text_model
    if address is None:
        if not subject.address.endswith(VISION):
            return None
        address = subject.address.removesuffix(VISION) + TEXT
    context.log.info("loading text tower %s", address)
    text = load_subject(address, device=context.device, dtype=context.dtype)
    if text.modality != "text" or "hook_output" not in text.hook_points:
        raise UserError(f"text_model={address}: is no text tower, which gives one embedding for a text")
    size = text.hook_points["hook_output"].shape[-1]
    if size != n_output:
        raise UserError(
            f"text_model={address}: embeds texts in {size} dimensions, and {subject.address} images in {n_output}"
        )
    return text


def embed_texts(context: Context, tower: Subject, texts: Sequence[str], what: str) -> Tensor:
    """Embed texts; returns [text, embedding], each of length 1, on the vision tower's side of the device.

    Texts are run in the order of their lengths, to save padding; of one that is too long the first window is read.
    """
    windows = [tower.windows(text)[0] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(windows[i].tokens))
    found: list[Tensor | None] = [None] * len(texts)
    with context.progress(len(texts), "texts", what) as ticker:
        for start in range(0, len(order), TEXTS_AT_ONCE):
            at = order[start : start + TEXTS_AT_ONCE]
            value = tower.run(tower.batch([windows[i] for i in at])).value
            assert value is not None
            unit = torch.nn.functional.normalize(value.to(torch.promote_types(value.dtype, torch.float32)), dim=-1)
            for i, row in zip(at, unit, strict=True):
                found[i] = row
            ticker.advance(len(at))
    return torch.stack([row for row in found if row is not None])
