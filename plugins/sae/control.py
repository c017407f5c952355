"""The negative control: a dictionary of random directions, as good as such a one can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.dictionary import Dictionary
from workbench.kernels.topk import sparse_decode, topk_encode
from workbench.plugins.sae.weights import unit_rows, what_follows


def random_dictionary(like: Dictionary, sample: Mapping[str, Tensor], generator: torch.Generator) -> Dictionary:
    """Return random directions with the shape of a dictionary, and as many of them active on a row.

    Parameters
    ----------
    like : Dictionary
        Whose control it is.
    sample : mapping of str to Tensor [rows, ...]
        Rows of each hook point, in the subject's own scale.
    generator : torch.Generator
        On the CPU.

    Notes
    -----
    TopK with the number of latents that are active in `like`, centred on the rows' mean, encoder and decoder of equal
    directions, and of the length with which the reconstruction has the least error. Of several hook points side by side
    each is first brought to the same variance. For a transcoder encoder directions are random, and a decoder row is
    that of what is written when its latent is active: the control has no training, but sees what follows from what.
    """
    device = like.W_enc.device
    x, y = (side(sample).to(device).float() for side in (like.rows_in, like.rows_out))
    k = like.k
    if k is None:
        k = max(1, round(float((like.encode(x)[0] > 0).sum(1).float().mean())))
    read, written = x.mean(0), y.mean(0)
    x, y = x - read, y - written
    spread_in, spread_out = (spread(sample, names).to(device) for names in (like.hooks_in, like.hooks_out))
    W_enc = unit_rows(like.n_latents, x.shape[1], generator).to(device)
    b_enc = W_enc.new_zeros(like.n_latents)
    values, indices = topk_encode(x / spread_in, W_enc, b_enc, k)
    y = y / spread_out
    same = like.hook_in == like.hook_out
    W_dec = W_enc if same else what_follows(values.relu(), indices, y, like.n_latents, generator)
    first = sparse_decode(values.relu(), indices, W_dec)
    factor = (y * first).sum() / first.pow(2).sum().clamp_min(1e-12)
    return replace(
        like,
        W_enc=factor.abs() * W_enc / spread_in,
        b_enc=b_enc,
        W_dec=factor.sign() * W_dec * spread_out,
        b_dec=written,
        b_pre=read,
        activation="topk",
        k=k,
        threshold=None,
        scale=1.0,
        normalisation="none",
        address="random",
    )


def spread(sample: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return the root mean square deviation of each hook point's entries, for each entry side by side; 1 for one."""
    if len(names) == 1:
        return torch.ones(())
    rows = [sample[name].flatten(1).float() for name in names]
    return torch.cat(
        [(each - each.mean(0)).pow(2).mean().sqrt().clamp_min(1e-30).expand(each.shape[1]) for each in rows]
    )
