"""What each head adds to the residual stream, averaged over the positions of each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from workbench.subjects.protocol import Subject


@dataclass(frozen=True)
class Tokens:
    """Prompts as token ids.

    Attributes
    ----------
    ids : int64 array [example, pos]
        Padded on the right with 0.
    lengths : int64 array [example]
        Real tokens of each.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> Tokens:
        """Pad token lists."""
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        ids = np.zeros((len(prompts), int(lengths.max(initial=0))), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return cls(ids, lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def prompts(self, start: int, end: int) -> list[list[int]]:
        """Return some of the prompts without their padding."""
        return [self.ids[row, : self.lengths[row]].tolist() for row in range(start, min(end, len(self)))]


def mean_head_outputs(
    subject: Subject, tokens: Tokens, batch_size: int = 16, on_batch: Callable[[int], object] | None = None
) -> Float[np.ndarray, "example head d_model"]:
    """Return every head's output in the residual basis, averaged over all real positions of each prompt.

    The mean is taken of ``hook_z`` and then goes through W_O, which is the mean of ``hook_result`` at a fraction of its
    cost: both are linear.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    tokens : Tokens
        Special tokens at the beginning count as positions.
    batch_size : int
        Prompts in a pass.
    on_batch : callable, optional
        Told how many prompts were done.

    Returns
    -------
    np.ndarray
        float32, heads by layer, then head.
    """
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(subject.n_layers)]
    rows = []
    for start in range(0, len(tokens), batch_size):
        prompts = tokens.prompts(start, start + batch_size)
        batch = subject.batch(prompts)
        captured = subject.run(batch, capture=names, stop_after=names[-1]).captured  # no logits are needed
        layers = []
        for layer, name in enumerate(names):
            share = batch.mask / batch.mask.sum(1, keepdim=True)
            mean = torch.einsum("bp,bphe->bhe", share.to(captured[name]), captured[name])
            layers.append(torch.einsum("bhe,hed->bhd", mean, subject.weights("W_O", layer).to(mean)).float().cpu())
        rows.append(torch.cat(layers, dim=1))
        if on_batch is not None:
            on_batch(len(prompts))
    return torch.cat(rows).detach().numpy()
