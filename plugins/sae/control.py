"""The negative control: a dictionary of random directions, as good as such a one can be made."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.dictionary import Dictionary
from workbench.kernels.topk import sparse_decode, topk_encode


def random_dictionary(like: Dictionary, x: Tensor, y: Tensor, generator: torch.Generator) -> Dictionary:
    """Return random directions with the shape of a dictionary, and as many of them active on a row.

    Parameters
    ----------
    like : Dictionary
        Whose control it is.
    x, y : Tensor [rows, width]
        Rows that it reads, and what they are reconstructed to, in the subject's own scale.
    generator : torch.Generator
        On the CPU.

    Notes
    -----
    TopK with the number of latents that are active in `like`, centred on the rows' mean, encoder and decoder of equal
    directions, and of the length with which the reconstruction has the least error.
    """
    k = like.k
    if k is None:
        k = max(1, round(float((like.encode(x)[0] > 0).sum(1).float().mean())))
    W_dec = torch.randn(like.n_latents, y.shape[1], generator=generator)
    W_enc = W_dec if like.hook_in == like.hook_out else torch.randn(like.n_latents, x.shape[1], generator=generator)
    W_dec, W_enc = (torch.nn.functional.normalize(W, dim=1).to(x.device) for W in (W_dec, W_enc))
    read, written = x.float().mean(0), y.float().mean(0)
    b_enc = W_enc.new_zeros(like.n_latents)
    values, indices = topk_encode(x.float() - read, W_enc, b_enc, k)
    first = sparse_decode(values.relu(), indices, W_dec)
    factor = ((y.float() - written) * first).sum() / first.pow(2).sum().clamp_min(1e-12)
    return replace(
        like,
        W_enc=factor.abs() * W_enc,
        b_enc=b_enc,
        W_dec=factor.sign() * W_dec,
        b_dec=written,
        b_pre=read,
        activation="topk",
        k=k,
        threshold=None,
        scale=1.0,
        normalisation="none",
        address="random",
    )
