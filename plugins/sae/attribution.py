"""Which hook points, or which attention heads, a latent belongs to: by its weights, and by what makes it active."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import Store
from workbench.dictionary import Dictionary
from workbench.kernels.topk import gathered_dot
from workbench.plugins.sae.metrics import BATCH_ROWS, Codes


@dataclass(frozen=True)
class Parts:
    """How the entries of a row fall into parts that are told apart.

    Attributes
    ----------
    kind : str
        ``head`` or ``hook point``.
    names : list of str
        Of each.
    widths : list of int
        Entries of each, side by side.
    """

    kind: str
    names: list[str]
    widths: list[int]

    @property
    def slices(self) -> list[slice]:
        """Where each lies."""
        ends = np.cumsum([0, *self.widths]).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]


def parts_of(store: Store, hook_points: tuple[str, ...]) -> Parts | None:
    """Return the parts of some hook points side by side: several hook points, or the heads of one; None without any."""
    shapes = [store.hook_points[name].shape for name in hook_points]
    if len(hook_points) > 1:
        return Parts("hook point", list(hook_points), [int(np.prod(shape)) for shape in shapes])
    axes = store.hook_points[hook_points[0]].axes
    if axes[0] != "head" or len(axes) != 2:
        return None
    n_heads, width = shapes[0]
    return Parts("head", [f"head {head}" for head in range(n_heads)], [width] * n_heads)


def decoder_shares(W_dec: Tensor, parts: Parts) -> NDArray[np.float64]:
    """Return the length of each latent's decoder row in each part, as a share of their sum, [latents, parts].

    Kissane et al. 2024 (arXiv:2406.17759) tell by it which heads a latent of attention outputs is of; Lindsey et al.
    2024, which layers a crosscoder's latent is of.
    """
    lengths = torch.stack([W_dec[:, part].float().norm(dim=1) for part in parts.slices], dim=1).double()
    return (lengths / lengths.sum(1, keepdim=True).clamp_min(1e-30)).cpu().numpy()


@torch.no_grad()
def score_parts(store: Store, dictionary: Dictionary, codes: Codes, parts: Parts) -> NDArray[np.float64]:
    """Return what each part adds to a latent's score, the mean over rows on which it is active, [latents, parts].

    Parameters
    ----------
    store : Store
        Activations.
    dictionary : Dictionary
        Of the codes; rows must not be normalised one by one.
    codes : Codes
        Rows that were looked at.
    parts : Parts
        Of what is read.

    Returns
    -------
    float64 array [latents, parts]
        In units of the latent's activation, biases left out: W_enc (scale x − b_pre) over one part's entries. Zeros for
        a latent that is never active.
    """
    sums = torch.zeros(dictionary.n_latents, len(parts.names), dtype=torch.float64)
    count = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    W_enc = dictionary.W_enc.float()
    for first in range(0, len(codes.rows), BATCH_ROWS):
        at = slice(first, first + BATCH_ROWS)
        active, latents = codes.values[at] > 0, codes.indices[at]
        batch = {name: store.read_tensor(name, codes.rows[at]) for name in dictionary.hooks_in}
        x = dictionary.scale * dictionary.rows_in(batch).to(W_enc.device, torch.float32) - dictionary.b_pre.float()
        chosen = latents[active]
        count.index_add_(0, chosen, torch.ones(len(chosen), dtype=torch.float64))
        for number, part in enumerate(parts.slices):
            added = gathered_dot(x[:, part].contiguous(), latents.to(x.device), W_enc[:, part].contiguous())
            sums[:, number].index_add_(0, chosen, added.cpu()[active].double())
    return (sums / count.clamp_min(1)[:, None]).numpy()
